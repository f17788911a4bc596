"""The values that a set of weights starts from, when several layers will use it.

    average   W = mean over the layers l of the set of W_l
    best      W = W_l of the layer l that moves the answers least when all layers of the set use it and no other set is
              shared: KL divergence, as `lissom.stats.sensitivity` measures it
    fit       from the average on,  min over W of  mean over l of  |f_W(x_l) - f_l(x_l)|² / |f_l(x_l) - x_l|²
              with x_l what layer l is given in the original model

Source of the average: Bae et al. 2024, "Relaxed Recursive Transformers", section 2.3. The layer-wise regression is that
of layers trained one by one on what they gave (Yao et al. 2022, "ZeroQuant", section 4.2), here of one layer on what
several gave. The share of what a layer adds to its input lets layers weigh alike, whatever the size of their states.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from lissom import edits
from lissom.anatomy import Stack, dissect
from lissom.nn import LoraLinear
from lissom.nn.shared import once
from lissom.stats.batches import cut
from lissom.stats.sensitivity import answers_of, moved
from lissom.stats.spans import Call, Span, calls

Report = Callable[[str, float], None]
_ROWS = 8  # texts at once: the answers of a language model are large


def groups(source: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Each layer whose weights several use -> the numbers of those layers."""
    every = {root: tuple(i for i, one in enumerate(source) if one == root) for root in dict.fromkeys(source)}
    return {root: members for root, members in every.items() if len(members) > 1}


def _tensors(model: nn.Module, stack: Stack, edit: edits.ShareLayers, layer: int) -> dict[tuple[int, str], Tensor]:
    """What of a layer the edit shares, without deltas, by its place: number of the module, and name in it."""
    found: dict[tuple[int, str], Tensor] = {}
    for i, path in enumerate(edits.shared_paths(stack.blocks[layer], edit.parts)):
        module = model.get_submodule(path)
        maps = [f"{name}." if name else "" for name, one in module.named_modules() if isinstance(one, LoraLinear)]
        deltas = tuple(f"{name}{part}." for name in maps for part in ("down", "up"))
        state = module.state_dict(keep_vars=True)
        found |= {(i, name): one for name, one in state.items() if not name.startswith(deltas)}
    return found


def _named(
    stack: Stack, edit: edits.ShareLayers, root: int, values: Mapping[tuple[int, str], Tensor]
) -> dict[str, Tensor]:
    """The same by their full names in the layer `root`."""
    paths = edits.shared_paths(stack.blocks[root], edit.parts)
    return {f"{paths[i]}.{name}": one for (i, name), one in values.items()}


def means(model: nn.Module, stack: Stack, edit: edits.ShareLayers) -> dict[str, Tensor]:
    """Full name in the source layer of each set -> mean over the layers that will use it."""
    found: dict[str, Tensor] = {}
    for root, members in groups(edit.source).items():
        states = [_tensors(model, stack, edit, layer) for layer in members]
        mean = {
            place: torch.stack([one[place].detach() for one in states if place in one]).mean(dim=0)
            for place, value in _tensors(model, stack, edit, root).items()
            if value.is_floating_point()
        }
        found |= _named(stack, edit, root, mean)
    return found


def copied(model: nn.Module, stack: Stack, edit: edits.ShareLayers, chosen: Mapping[int, int]) -> dict[str, Tensor]:
    """Full name in the source layer of each set -> the value in the layer that is chosen for it."""
    found: dict[str, Tensor] = {}
    for root, layer in chosen.items():
        there, theirs = _tensors(model, stack, edit, root), _tensors(model, stack, edit, layer)
        values = {place: one.detach().clone() for place, one in theirs.items() if place in there}
        found |= _named(stack, edit, root, values)
    return found


def best(
    model: nn.Module, stack: Stack, edit: edits.ShareLayers, batches: Iterable[Mapping[str, Tensor]], report: Report
) -> dict[int, int]:
    """Source layer of each set -> the layer whose weights move the answers least; the first of equals.

    One pass over the batches for each layer that shares, and one more; the model is left as it was.
    Raises LissomError LSM-715 as `answers_of`.
    """
    trials = [(root, layer) for root, members in groups(edit.source).items() for layer in members]
    harm = dict.fromkeys(trials, 0.0)
    training = model.training
    model.train(False)
    try:
        with torch.no_grad():
            for batch in cut(batches, _ROWS):
                before = answers_of(model, batch)
                for root, layer in trials:
                    report(f"layer {layer + 1} for those of its set", trials.index((root, layer)) / len(trials))
                    with _Lent(model, stack, edit, root, layer):
                        after = answers_of(model, batch)
                    harm[root, layer] += float(moved(before, after, batch["attention_mask"])[1].sum())
    finally:
        model.train(training)
    return {root: min(members, key=lambda layer: harm[root, layer]) for root, members in groups(edit.source).items()}


class _Lent:
    """While it is entered, all layers of a set compute with the values of one of them. No value is copied."""

    def __init__(self, model: nn.Module, stack: Stack, edit: edits.ShareLayers, root: int, layer: int) -> None:
        lender = {place: one.data for place, one in _tensors(model, stack, edit, layer).items()}
        members = groups(edit.source)[root]
        own = [(one, place) for m in members for place, one in _tensors(model, stack, edit, m).items()]
        self.lent = [(one, one.data, lender[place]) for one, place in own if place in lender]

    def __enter__(self) -> None:
        for tensor, _, value in self.lent:
            tensor.data = value

    def __exit__(self, *_: object) -> None:
        for tensor, own, _lent in self.lent:
            tensor.data = own


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """Trains what layers share, set after set.

    first: the model as it was.  model: the one that `edit` was applied to.  batches: as `calibration_batches` gives.
    """

    first: nn.Module
    model: nn.Module
    edit: edits.ShareLayers
    batches: Sequence[Mapping[str, Tensor]]

    def run(self, steps: int, rate: float, seed: int, report: Report) -> list[dict[str, float]]:
        """Train each set in `steps` steps, on one batch of all its layers each; the error of each before and after.

        Holds what goes into and comes out of the layers of one set on all batches. A set that training leaves worse is
        put back.
        """
        sets = groups(self.edit.source)
        training, found = self.model.training, []
        self.model.train(False)
        self.first.train(False)
        try:
            for number, members in enumerate(sets.values()):
                report(f"set {number + 1} of {len(sets)}", number / len(sets))
                found.append(self._set(members, steps, rate, seed + number))
        finally:
            self.model.train(training)
        return found

    def _set(self, members: Sequence[int], steps: int, rate: float, seed: int) -> dict[str, float]:
        uses = [_Use.of(self, layer) for layer in members]
        weights = self._shared(members)
        frozen = [one for one in weights if not one.requires_grad]
        kept = [one.detach().clone() for one in weights]
        before = self._error(uses)
        adam = torch.optim.Adam(weights, lr=rate)
        order = _endless(min(len(one.calls) for one in uses), seed)
        for one in frozen:
            one.requires_grad_(True)
        for step in range(steps):
            at = next(order)
            with torch.enable_grad():
                loss = torch.stack([one.error(self.model, at) for one in uses]).mean()
                slopes = torch.autograd.grad(loss, weights, allow_unused=True)
            for one, slope in zip(weights, slopes, strict=True):
                one.grad = slope
            adam.param_groups[0]["lr"] = rate * (1 - step / steps)
            adam.step()
        for one in weights:
            one.grad = None
        for one in frozen:
            one.requires_grad_(False)
        after = self._error(uses)
        if not after < before:
            after = before
            with torch.no_grad():
                for one, value in zip(weights, kept, strict=True):
                    one.copy_(value)
        return {"before": before, "after": after}

    def _shared(self, members: Sequence[int]) -> list[nn.Parameter]:
        """The parameters that layers of the set have in common."""
        stack = dissect(self.model).stack(self.edit.stack)
        seen = [one for layer in members for one in self.model.get_submodule(stack.blocks[layer].path).parameters()]
        times = {id(one): sum(other is one for other in seen) for one in seen}
        return once(one for one in seen if times[id(one)] > 1)

    def _error(self, uses: Sequence[_Use]) -> float:
        with torch.no_grad():
            return float(
                torch.stack([one.error(self.model, at) for one in uses for at in range(len(one.calls))]).mean()
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Use:
    """One layer in the original model on all batches. added: mean square of what it adds to the hidden states."""

    span: Span
    calls: Sequence[Call]
    added: Tensor

    @classmethod
    def of(cls, fit: Fit, layer: int) -> _Use:
        stack = dissect(fit.first).stack(fit.edit.stack)
        again = list(stack.order) != list(range(len(stack.blocks)))
        span = Span(blocks=(stack.blocks[layer],), again=again)
        found = calls(fit.first, span, fit.batches)
        added = torch.stack([one.error(one.hidden, one.out) for one in found]).mean().clamp_min(1e-12)
        return cls(span=span, calls=found, added=added)

    def error(self, model: nn.Module, at: int) -> Tensor:
        """How far the layer of `model` is from what the original gave on batch `at`: a share, ()."""
        call = self.calls[at]
        return call.error(call.run(model, self.span, call.hidden), call.out) / self.added


def _endless(count: int, seed: int) -> Iterator[int]:
    """Numbers below `count` in random order, all of them before any comes again."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()
