"""Fixed ranges for the inputs of linear maps, clipped so that the last hidden states of the model change least.

Few tokens, often separators, hold values that others are far from, and clipping those costs little. Two stages:

    coarse   c_high = the a-quantile of the tokens' largest values, c_low = the (1 - a)-quantile of their least;
             one share a for all maps, by a search over `SHARES` for the least ||f_q(x) - f(x)||²
    fine     step s <- s - gradient of the same error, straight through the rounding; the zero point stays

f: the last hidden states of all real tokens. The few logits of a classifier say too little: on texts that it was
trained on they hardly move, whatever is clipped. Weights are not rounded meanwhile.
Source: Wei et al. 2022, "Outlier suppression", section 4.2. Differs: every range holds zero; steps are trained by Adam
on their logarithms, and the best of all passes is kept, so that the fine stage never loses to the coarse one.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lissom.anatomy import Slot
from lissom.stats.batches import cut
from lissom.stats.ranges import LEVELS, scale_and_zero
from lissom.stats.sensitivity import answers_of, real_answers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHARES = tuple(1 - step / 100 for step in range(11))
"""Candidates for a: the share of the tokens that are not clipped at one end, from all down to nine tenths."""
_PASSES = 3  # of the fine stage over the texts
_RATE = 0.003  # of Adam, about the relative change of a step at once
_ROWS = 8  # texts at once
_Batch = Mapping[str, Tensor]


def clip_tokens(
    model: PreTrainedModel,
    groups: Sequence[Sequence[Slot]],
    extremes: Sequence[tuple[Tensor, Tensor]],
    batches: Sequence[_Batch],
    report: Callable[[str, float], None] = lambda phrase, fraction: None,
) -> list[tuple[Tensor, Tensor]]:
    """The scale, () float32, and zero point, () uint8, for the inputs of each set of maps.

    groups: maps that read one input, set by set.  extremes: of each set, as `token_ranges` gives them.
    """
    was = model.training
    model.train(False)
    try:
        judge = Judge.of(model, groups, batches)

        def tried(number: int) -> float:
            report("token-wise clipping, coarse", number / (len(SHARES) + 3 * _PASSES))
            return judge.error(grids_at(extremes, SHARES[number]))

        best = min(range(len(SHARES)), key=tried)
        return _fine(judge, grids_at(extremes, SHARES[best]), report)
    finally:
        model.train(was)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judge:
    """What the model gives unrounded, and how far it is from that with inputs on other grids.

    groups: sets of maps, each with one grid.  texts: batches.  wanted: hidden states of the real tokens of each.
    """

    model: PreTrainedModel
    groups: Sequence[Sequence[Slot]]
    texts: Sequence[_Batch]
    wanted: Sequence[Tensor]

    @classmethod
    def of(cls, model: PreTrainedModel, groups: Sequence[Sequence[Slot]], batches: Sequence[_Batch]) -> Judge:
        """Run the model, in eval mode, as it is."""
        texts = list(cut(batches, _ROWS))
        with torch.no_grad():
            return cls(model=model, groups=groups, texts=texts, wanted=[_hidden(model, batch) for batch in texts])

    def error(self, grids: Sequence[tuple[Tensor, Tensor]]) -> float:
        """Sum of the squared differences of all hidden states."""
        with torch.no_grad(), _rounding(self.groups, grids):
            pairs = zip(self.texts, self.wanted, strict=True)
            return sum(float((_hidden(self.model, batch) - was).square().sum()) for batch, was in pairs)

    def loss(self, number: int, grids: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """The mean squared difference on one batch, with a gradient for the scales: ()."""
        with torch.enable_grad(), _rounding(self.groups, grids):
            return (_hidden(self.model, self.texts[number]) - self.wanted[number]).square().mean()


def grids_at(extremes: Sequence[tuple[Tensor, Tensor]], share: float) -> list[tuple[Tensor, Tensor]]:
    """The grid of each input for one share of tokens. A quantile is a value that was seen, the nearest outwards."""
    found = []
    for lows, highs in extremes:
        last = len(highs) - 1
        inside = min(last, int(-(-(share * last) // 1)))
        low, high = lows.sort(descending=True).values[inside], highs.sort().values[inside]
        found.append(scale_and_zero(float(low), float(high)))
    return found


def _fine(
    judge: Judge, grids: list[tuple[Tensor, Tensor]], report: Callable[[str, float], None]
) -> list[tuple[Tensor, Tensor]]:
    """The steps after training, or before it where that was better."""
    logs = [scale.to(judge.model.device).log().requires_grad_() for scale, _ in grids]
    adam = torch.optim.Adam(logs, lr=_RATE)
    zeros = [zero for _, zero in grids]
    best, least = grids, judge.error(grids)
    for number in range(_PASSES):
        report("token-wise clipping, fine", (len(SHARES) + 3 * number) / (len(SHARES) + 3 * _PASSES))
        for batch in range(len(judge.texts)):
            with torch.enable_grad():
                loss = judge.loss(batch, [(log.exp(), zero) for log, zero in zip(logs, zeros, strict=True)])
            for log, slope in zip(logs, torch.autograd.grad(loss, logs), strict=True):
                log.grad = slope
            adam.step()
        now = [(log.detach().exp(), zero) for log, zero in zip(logs, zeros, strict=True)]
        error = judge.error(now)
        if error < least:
            best, least = now, error
    return [(scale.cpu(), zero) for scale, zero in best]


def _hidden(model: PreTrainedModel, batch: _Batch) -> Tensor:
    """The last hidden states of the real tokens: (tokens, width)."""
    [found] = answers_of(model.base_model, dict(batch)).values()
    return real_answers(found, batch["attention_mask"])


@contextlib.contextmanager
def _rounding(groups: Sequence[Sequence[Slot]], grids: Sequence[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """While it lasts, maps round what they read."""

    def hook(scale: Tensor, zero: Tensor) -> Callable[..., Any]:
        return lambda _module, args: (rounded(args[0], scale, zero), *args[1:])

    handles = [
        slot.module.register_forward_pre_hook(hook(*grid))
        for group, grid in zip(groups, grids, strict=True)
        for slot in group
    ]
    try:
        yield
    finally:
        for one in handles:
            one.remove()


def rounded(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """`x` as `StaticInt8Linear` sees it, in its dtype; with the gradient of Esser et al. 2020, eq. 3, for the scale."""
    scale, zero = scale.to(x.device), zero.to(x.device).float()
    ratio = x.float() / scale
    codes = (ratio + (ratio.round() - ratio).detach() + zero).clamp(0, LEVELS)
    return ((codes - zero) * scale).to(x.dtype)
