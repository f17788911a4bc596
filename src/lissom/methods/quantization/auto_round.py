"""Store weights in few bits, with rounding and the ends of groups learnt block by block from what a block gives.

    scale = (alpha · max(w, 0) - beta · min(w, 0)) / (2^bits - 1)    zero = round(-beta · min(w, 0) / scale)
    code = clip(round(w / scale + zero + V), 0, 2^bits - 1)

with V in [-1/2, 1/2] for each weight, and alpha and beta in [0, 1] for each group, from V = 0, alpha = beta = 1, which
is rounding to nearest. They go down the sign of the gradient of the squared error of the block's outputs, by 1/steps
at first and linearly less to nothing. Rounding has the gradient of the value that is rounded (straight through). The
target is what the block gives in the whole model; its inputs are those after the blocks before were rounded.

The numbers of the best step are kept. Differs: a step is judged by its loss as a share of that of rounding to nearest
on the same texts, so that texts which are easy do not win; texts stay together in the groups that they are drawn in.
Source: Cheng et al. 2023, "Optimize weight rounding via signed gradient descent for the quantization of LLMs",
section 3 and algorithm 1; inputs after rounded blocks are those of the authors' code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from lissom.anatomy import Anatomy, Slot
from lissom.anatomy.slot import is_transposed
from lissom.methods.quantization.calibrated import Calibrated
from lissom.methods.quantization.groups import Stored
from lissom.nn.grouped import grid_between, groups_of, spread
from lissom.stats.blocks import Case, Step
from lissom.stats.finite import check_finite_inputs, finite_weight


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoRound(Calibrated):
    """Rounding learnt by the signs of gradients."""

    name: ClassVar[str] = "auto_round"
    source: ClassVar[str] = "Cheng et al. 2023, section 3"
    targets: ClassVar[bool] = True

    steps: Annotated[int, Field(ge=1, le=10_000, description="steps for each block")] = 200
    batch: Annotated[int, Field(ge=1, le=1024, description="texts, or blocks of running text, a step")] = 8

    @property
    def rows(self) -> int:
        """A step looks at one batch."""
        return self.batch

    def chosen(self, step: Step, slots: list[Slot], anatomy: Anatomy) -> dict[str, Stored]:
        """Learn the rounding of all maps of a block together."""
        if not step.cases or not slots:
            return {}
        block = anatomy.model.get_submodule(step.block.path)
        learnt = {slot.path: Learnt(slot, self.bits, self.group) for slot in slots}
        names = {slot.path: f"{slot.path.removeprefix(step.block.path + '.')}.weight" for slot in slots}

        def loss(case: Case) -> Tensor:
            weights = {names[path]: one.weight() for path, one in learnt.items()}
            return error(block, weights, case, step.block.path)

        frozen = [one for one in block.parameters() if one.requires_grad]
        for one in frozen:
            one.requires_grad_(False)
        try:
            self._learn(list(learnt.values()), step.cases, loss)
        finally:
            for one in frozen:
                one.requires_grad_(True)
        return {path: one.stored() for path, one in learnt.items()}

    def _learn(self, learnt: Sequence[Learnt], cases: Sequence[Case], loss: Callable[[Case], Tensor]) -> None:
        with torch.no_grad():
            start = [max(float(loss(case)), 1e-30) for case in cases]
        best, least = [one.numbers() for one in learnt], 1.0
        order: list[int] = []
        draw = torch.Generator().manual_seed(0)
        for step in range(self.steps):
            order = order or torch.randperm(len(cases), generator=draw).tolist()
            number = order.pop()
            now = loss(cases[number])
            share = float(now.detach()) / start[number]
            if share < least:
                best, least = [one.numbers() for one in learnt], share
            now.backward()  # type: ignore[no-untyped-call]
            for one in learnt:
                one.move((1 - step / self.steps) / self.steps)
        for one, numbers in zip(learnt, best, strict=True):
            one.take(numbers)


class Learnt:
    """What is learnt for one map: V (out, in), alpha and beta (out, groups), beside its weight.

    Raises LissomError LSM-901 when the weight holds NaN or infinity.
    """

    def __init__(self, slot: Slot, bits: int, group: int) -> None:
        self.bits, self.group = bits, group
        self.whole = finite_weight(slot.weight, slot.path)
        self.turned, self.dtype = is_transposed(slot.module), cast("Tensor", slot.module.weight).dtype
        rows, columns = self.whole.shape
        short = groups_of(columns, group) * group - columns
        parts = torch.nn.functional.pad(self.whole, (0, short)).reshape(rows, -1, group)
        self.low, self.high = parts.amin(-1).clamp(max=0.0), parts.amax(-1).clamp(min=0.0)
        self.shift = torch.zeros_like(self.whole).requires_grad_()
        self.alpha, self.beta = (torch.ones_like(self.low).requires_grad_() for _ in range(2))

    def codes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes (out, in), scale and zero point (out, groups): float32, with gradients straight through rounding."""
        largest = 2**self.bits - 1
        with torch.no_grad():
            held, at = grid_between(self.beta * self.low, self.alpha * self.high, bits=self.bits)
        scale = (self.alpha * self.high - self.beta * self.low) / largest
        scale = held + (scale - scale.detach())
        zero = -self.beta * self.low / scale
        zero = at + (zero - zero.detach())
        columns = self.whole.shape[1]
        exact = self.whole / spread(scale, columns, self.group) + spread(zero, columns, self.group) + self.shift
        return (exact + (exact.detach().round() - exact.detach())).clamp(0, largest), scale, zero

    def weight(self) -> Tensor:
        """What the codes stand for, laid out as the module has it."""
        codes, scale, zero = self.codes()
        columns = codes.shape[1]
        whole = (codes - spread(zero, columns, self.group)) * spread(scale, columns, self.group)
        return (whole.t() if self.turned else whole).to(self.dtype)

    def numbers(self) -> tuple[Tensor, ...]:
        """A copy of what is learnt."""
        return tuple(one.detach().clone() for one in (self.shift, self.alpha, self.beta))

    def take(self, numbers: Sequence[Tensor]) -> None:
        """Go back to a copy."""
        with torch.no_grad():
            for one, number in zip((self.shift, self.alpha, self.beta), numbers, strict=True):
                one.copy_(number)

    def move(self, rate: float) -> None:
        """One step down the sign of the gradients, which are dropped."""
        with torch.no_grad():
            for one, low, high in ((self.shift, -0.5, 0.5), (self.alpha, 0.0, 1.0), (self.beta, 0.0, 1.0)):
                if one.grad is not None:
                    one.sub_(one.grad.sign_(), alpha=rate).clamp_(low, high)
                    one.grad = None

    @torch.no_grad()
    def stored(self) -> Stored:
        """The numbers as they are stored."""
        codes, scale, zero = self.codes()
        return Stored(codes.round().to(torch.uint8), scale, zero)


def error(block: nn.Module, weights: dict[str, Tensor], case: Case, path: str) -> Tensor:
    """Mean squared difference of a block with these weights from the case's target, over tokens that are not padding.

    Raises LissomError LSM-901 for NaN and infinity.
    """
    out = torch.func.functional_call(block, weights, case.args, dict(case.kwargs))
    change = (out[0] if isinstance(out, tuple) else out).float() - case.target.float()
    if case.mask is not None and case.mask.shape == change.shape[:-1]:
        change = change[case.mask.to(change.device).bool()]
    found: Tensor = change.square().mean()
    check_finite_inputs(found, path)
    return found
