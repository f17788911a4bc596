"""Fit what reads units again after some of them went, block by block, so that each layer adds what it added before.

A reader (o or down) gave y = W x in the uncut model; with the residual r that it is added to, the layer gave r + y. In
the cut model x and r are others, because of what went before. With K the columns that stay, over all real tokens:

    weights   min Σ |W' x_K + b' - t|² + δ |W' - W_K|²     t = r_uncut + y_uncut - r, in closed form
    gates     min Σ |Σ_j m_j W_j x_j + b - t|² + δ |m - 1|²   one factor m_j a unit j, multiplied into its columns

δ is `DAMP` times the mean of the diagonal of the matrix that is inverted: where texts say nothing, all stays as it was.
Sources: Kwon et al. 2022, "A fast post-training pruning framework for Transformers", section 4.3 (gates, and the
residual in the target); He et al. 2017, "Channel pruning for accelerating very deep neural networks", section 3.1
(weights). Ours: normal equations with a pull towards 1 instead of LSMR. Where there are several stacks, or a block runs
more than once, "uncut" means: as it was before this block was cut, on what the cut ones before it give.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lissom.anatomy import Anatomy, Slot, is_transposed, stored_maps
from lissom.anatomy.parts import Block
from lissom.errors import LissomError
from lissom.stats.blocks import Case, walk

Kind = Literal["weights", "gates", "none"]
DAMP = 1e-2
_LARGEST = 10.0  # of a gate, as in the authors' code


def readers(block: Block) -> list[Slot]:
    """o of each attention and down, in the order in which they run."""
    cross = [] if block.cross is None else [block.cross.o]
    return [block.attention.o, *cross, block.ffn.down]


def refit(
    anatomy: Anatomy,
    batches: Sequence[Mapping[str, Tensor]],
    kept: Mapping[str, Tensor],
    *,
    kind: Kind,
    report: Callable[[str, float], None] = lambda phrase, fraction: None,
) -> None:
    """Set the columns of units that go to zero and fit the others, in place; the shapes stay, for an edit to cut.

    kept: path of each reader -> (units,) bool, units of equal size side by side. Readers that are not named stay as
        they are.
    kind: a reader that is not stored as one plain weight gets gates instead of weights, and one that shares its weight
        with another reader gets neither.
    Raises LissomError LSM-901 when an input holds NaN or infinity.
    """
    blocks = [block for stack in anatomy.stacks for block in stack.blocks]
    if kind == "none":
        for slot in (slot for block in blocks for slot in readers(block) if slot.path in kept):
            scale_columns(slot, kept[slot.path].float())
        return
    shared = _shared([slot for block in blocks for slot in readers(block)])
    for number, step in enumerate(walk(anatomy, batches, targets=True)):
        report(step.block.path, number / len(blocks))
        layer = _Layer(anatomy.model.get_submodule(step.block.path), step.block, step.cases)
        for slot in readers(step.block):
            if slot.path not in kept:
                continue
            scale_columns(slot, kept[slot.path].float())
            if step.cases and slot.path not in shared:
                _fit(slot, kept[slot.path], layer.sums(slot), kind)


def _shared(slots: Sequence[Slot]) -> set[str]:
    """Paths of readers whose weight another reader has too."""
    owners = [id(next(stored_maps(slot)[0].module.parameters(), slot)) for slot in slots]
    return {slot.path for slot, own in zip(slots, owners, strict=True) if owners.count(own) > 1}


@dataclasses.dataclass(frozen=True)
class Sums:
    """Over all real tokens: xx Σ xxᵀ (in, in), xe Σ x eᵀ (in, out), x Σ x (in,), e Σ e (out,), and their number.

    x goes into the map, e is what its output lacks.
    """

    xx: Tensor
    xe: Tensor
    x: Tensor
    e: Tensor
    tokens: int


class _Layer:
    """A block, and what residual and output of each of its readers added up to before it was changed.

    last: whether it normalises last, so that what an attention or feed-forward layer reads is the residual as well.
    """

    def __init__(self, module: nn.Module, block: Block, cases: Sequence[Case]) -> None:
        self._module, self._readers, self._cases = module, readers(block), cases
        self._first = {block.ffn.down.path: block.ffn.up}
        if block.cross is not None:
            self._first[block.cross.o.path] = block.cross.q
        self._last = False
        self._wanted: dict[str, list[Tensor]] = {slot.path: [] for slot in self._readers}
        for number, case in enumerate(cases):
            inputs, outputs, out = self._run(case.clean, case.kwargs)
            if number == 0:
                added = _hidden(case.clean, case.kwargs) + sum(outputs.values())
                self._last = bool((added - out).abs().max() > 1e-3 * out.abs().max())
            for slot in self._readers:
                residual = self._residual(slot, _hidden(case.clean, case.kwargs), inputs, outputs)
                self._wanted[slot.path].append(residual + outputs[slot.path])

    def _run(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """What goes into the readers and the first maps, what the readers give, and what the block gives."""
        inputs: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}
        shape = _hidden(args, kwargs).shape[:-1]  # some families lay all tokens in one row

        def note(path: str, gives: bool) -> Callable[[Tensor, Tensor], None]:
            def look(x: Tensor, y: Tensor) -> None:
                inputs[path] = x.reshape(*shape, -1)
                if gives:
                    outputs[path] = y.reshape(*shape, -1)

            return look

        with contextlib.ExitStack() as hooks, torch.no_grad():
            for slot in self._readers:
                hooks.callback(slot.watch(note(slot.path, True)).remove)
            for slot in self._first.values():
                hooks.callback(slot.watch(note(slot.path, False)).remove)
            out = self._module(*args, **kwargs)
        return inputs, outputs, out[0] if isinstance(out, tuple) else out

    def _residual(
        self, slot: Slot, hidden: Tensor, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
    ) -> Tensor:
        if self._last:
            return inputs[self._first[slot.path].path] if slot.path in self._first else hidden
        paths = [one.path for one in self._readers]
        for path in paths[: paths.index(slot.path)]:
            hidden = hidden + outputs[path]
        return hidden

    def sums(self, slot: Slot) -> Sums:
        """Of a reader, on the block as it is now. Raises LissomError LSM-901 for NaN and infinity."""
        device, size, out = slot.weight.device, slot.in_features, slot.out_features
        xx, xe = torch.zeros(size, size, device=device), torch.zeros(size, out, device=device)
        sx, se, tokens = torch.zeros(size, device=device), torch.zeros(out, device=device), 0
        for case, wanted in zip(self._cases, self._wanted[slot.path], strict=True):
            inputs, outputs, _ = self._run(case.args, case.kwargs)
            residual = self._residual(slot, _hidden(case.args, case.kwargs), inputs, outputs)
            x, e = (_real(one, case.mask) for one in (inputs[slot.path], wanted - residual - outputs[slot.path]))
            xx += x.t() @ x
            xe += x.t() @ e
            sx += x.sum(0)
            se += e.sum(0)
            tokens += len(x)
        if not bool(torch.isfinite(xx).all() and torch.isfinite(xe).all()):
            raise LissomError(901, "an input holds NaN or infinity on a calibration text", place=slot.path)
        return Sums(xx, xe, sx, se, tokens)


def _hidden(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def _real(states: Tensor, mask: Tensor | None) -> Tensor:
    """The states of real tokens: (tokens, width) float32."""
    if mask is not None and mask.shape == states.shape[:-1]:
        states = states[mask.to(states.device).bool()]
    return states.reshape(-1, states.shape[-1]).float()


def added_weights(sums: Sums, columns: Tensor, *, shift: bool) -> tuple[Tensor, Tensor]:
    """What to add to the columns `columns` (numbers) of a weight, (out, columns), and to its bias, (out,).

    shift: fit the bias as well; else nothing is to be added to it.
    """
    xx, xe, x = sums.xx[columns][:, columns], sums.xe[columns], sums.x[columns]
    if not shift:
        return _solved(xx, xe).t(), torch.zeros_like(sums.e)
    mean, lack = x / max(sums.tokens, 1), sums.e / max(sums.tokens, 1)
    added = _solved(xx - torch.outer(x, mean), xe - torch.outer(x, lack)).t()  # sums around the means
    return added, lack - added @ mean


def fitted_gates(weight: Tensor, sums: Sums, kept: Tensor) -> Tensor:
    """The factor of each unit: 0 for those that go, near 1 where texts say nothing; within -10 to 10.

    weight: (out, in).  kept: (units,) bool, units of equal size side by side.  Returns (units,), float32.
    """
    w, units = weight.float(), len(kept)
    size = w.shape[1] // units
    products = (sums.xx * (w.t() @ w)).reshape(units, size, units, size).sum(dim=(1, 3))
    lacks = (sums.xe * w.t()).sum(dim=1).reshape(units, size).sum(dim=1)
    stay = kept.nonzero().flatten().to(w.device)
    gates = torch.zeros(units, device=w.device)
    gates[stay] = (1 + _solved(products[stay][:, stay], lacks[stay])).clamp(-_LARGEST, _LARGEST)
    return gates


def _solved(a: Tensor, b: Tensor) -> Tensor:
    """(a + δ I)⁻¹ b, in double precision."""
    a = a.double()
    damp = DAMP * a.diagonal().mean().clamp_min(1e-12)
    found: Tensor = torch.linalg.solve(a + damp * torch.eye(len(a), dtype=a.dtype, device=a.device), b.double())
    return found.float()


def _fit(slot: Slot, units: Tensor, sums: Sums, kind: Kind) -> None:
    plain = isinstance(slot.module, nn.Linear) or is_transposed(slot.module)
    if kind == "gates" or not plain:
        scale_columns(slot, fitted_gates(slot.weight.detach(), sums, units))
        return
    columns = units.repeat_interleave(slot.in_features // len(units)).nonzero().flatten()
    added, shift = added_weights(sums, columns, shift=slot.bias is not None)
    module: Any = slot.module
    with torch.no_grad():
        weight = module.weight.t() if is_transposed(module) else module.weight
        weight[:, columns] += added.to(weight.dtype)
        if module.bias is not None:
            module.bias.add_(shift.to(module.bias.dtype))


def scale_columns(slot: Slot, factors: Tensor) -> None:
    """Multiply what reads each unit by its factor, in place. factors: (units,), units of equal size side by side."""
    inner = stored_maps(slot)[0]
    weight: Any = inner.module.weight
    each = factors.repeat_interleave(inner.in_features // len(factors)).to(weight)
    with torch.no_grad():
        weight.mul_(each[:, None] if is_transposed(inner.module) else each)
