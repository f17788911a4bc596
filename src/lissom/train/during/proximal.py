"""Reweighted proximal pruning: a pull towards zero beside the optimizer, the stronger the smaller a weight is.

    w <- sign(w) · max(|w| - strength · Δ · α, 0)        α = m² / (|w_t| + m / 100)

after each step, Δ the share of the run that it took, m the |w| below which the share `sparsity` of the matrix lay at
first, and w_t the weight when α was set last. The optimizer sees the loss alone, so that the pull stays out of its
moments. A weight that no gradient holds vanishes during a whole run if |w|² < strength · m². A matrix is pulled only
while it has fewer zeros than the cubic schedule wants; at its end the lowest |w| fill up to `sparsity`, and the zeros
stay.
Source: Guo et al. 2019, "Reweighted proximal pruning for large-scale language representation", section 3, algorithm 1.
Ours: the scale m², so that strength means the same in every matrix; the schedule, where the paper chooses gamma by
hand; one step size for the pull, not the learning rate's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lissom.train.during.base import Acting, During
from lissom.train.during.masks import Plan, Schedule, check_shares, lowest
from lissom.train.during.weights import trained, untransform

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lissom.anatomy import Anatomy
    from lissom.edits import Editor

_SMALLEST = 0.01  # epsilon, in units of m


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proximal(During):
    """Remove the share `sparsity` of the weights of the linear maps in the blocks."""

    name: ClassVar[str] = "proximal"
    source: ClassVar[str] = "Guo et al. 2019, section 3, algorithm 1"
    speed: ClassVar[str] = "no faster: no dense engine skips zeros"
    order: ClassVar[int] = 70

    sparsity: Annotated[
        float, Field(ge=0, lt=1, description="share of the weights in each matrix that is removed at the end")
    ] = 0.5
    strength: Annotated[
        float,
        Field(gt=0, le=1e6, description="of the pull; with 1 a whole run takes what is to go, if nothing holds it"),
    ] = 2.0
    warmup: Annotated[float, Field(ge=0, le=1, description="share of the run before anything is pulled")] = 0.0
    cooldown: Annotated[float, Field(ge=0, le=1, description="share of the run at full sparsity, without pull")] = 0.3
    refreshes: Annotated[int, Field(ge=1, description="how often in the run the pull is set anew")] = 10

    def check(self, anatomy: Anatomy, teacher: PreTrainedModel | None) -> None:
        """Raises LSM-318 when warmup and cooldown are more than the whole run."""
        check_shares(self.warmup, self.cooldown)

    def begin(self, editor: Editor, teacher: PreTrainedModel | None) -> Acting:
        """Put what pulls before each weight."""
        return _Pulling(editor, self)


class Pull(nn.Module):
    """w -> w · keep, and how strongly each weight is pulled."""

    keep: Tensor
    alpha: Tensor
    size: Tensor

    def __init__(self, tensor: Tensor, sparsity: float) -> None:
        super().__init__()
        self.register_buffer("keep", torch.ones_like(tensor, dtype=torch.bool))
        self.register_buffer("alpha", torch.zeros_like(tensor, requires_grad=False))
        place = max(1, int(sparsity * tensor.numel() + 0.5))
        self.register_buffer("size", tensor.detach().float().abs().flatten().kthvalue(place).values.clamp_min(1e-12))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with zeros where it is not kept."""
        return weight * self.keep

    def set(self, weight: Tensor) -> None:
        """Pull by the weights as they are now."""
        self.alpha.copy_(self.size.square() / (weight.abs() + _SMALLEST * self.size))

    def pull(self, weight: Tensor, length: float) -> None:
        """One proximal step, in place."""
        weight.copy_(weight.sign() * (weight.abs() - length * self.alpha).clamp_min(0))


class _Pulling(Acting):
    def __init__(self, editor: Editor, options: Proximal) -> None:
        self.model, self.options = editor.model, options
        self.schedule = Schedule(options.sparsity, options.warmup, options.cooldown, options.refreshes)
        self.pulls: list[Pull] = []
        self.stored: list[Tensor] = []
        plan = Plan()
        for slot in trained(editor.anatomy()):
            plan.add(slot.module, "weight", self._pull)
        self.made = plan.carry_out()

    def _pull(self, tensor: Tensor) -> nn.Module:
        self.stored.append(tensor)
        self.pulls.append(Pull(tensor, self.options.sparsity))
        return self.pulls[-1]

    @torch.no_grad()
    def at(self, progress: float) -> None:
        length = self.options.strength * (progress - self.schedule.progress)
        due = self.schedule.move(progress)
        for one, weight in zip(self.pulls, self.stored, strict=True):
            if due and not self.settled:
                one.set(weight)
            elif due:
                one.keep.copy_(~lowest(weight.abs(), self.options.sparsity))
            if not self.settled and length > 0 and float((weight == 0).float().mean()) < self.schedule.share:
                one.pull(weight, length)
            weight.mul_(one.keep)

    @property
    def settled(self) -> bool:
        return self.schedule.settled

    def state(self) -> dict[str, Tensor]:
        return self.schedule.state() | {"progress": torch.tensor(self.schedule.progress, dtype=torch.float64)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.schedule.load(state)
        self.schedule.progress = float(state["progress"])

    def bake(self) -> None:
        untransform(self.model, self.made, bake=True)

    def remove(self) -> None:
        untransform(self.model, self.made, bake=False)
