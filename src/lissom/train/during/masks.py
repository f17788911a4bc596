"""Masks on weights: how many are removed by when, which ones, and how one value a unit spreads over a weight."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lissom.errors import LissomError
from lissom.train.during.weights import original, transform
from lissom.train.ramp import Ramp

_GOLDEN = (math.sqrt(5) - 1) / 2


def even(count: int) -> Tensor:
    """The numbers 0 to count - 1 in an order whose every beginning lies evenly over them. (count,) int64."""
    return (torch.arange(count, dtype=torch.float64) * _GOLDEN % 1).argsort()


def lowest(scores: Tensor, share: float, costs: Tensor | None = None) -> Tensor:
    """Which of `scores` are the lowest, so many that their cost comes nearest to `share` of the whole.

    scores: any shape.  costs: of the same shape; None: all alike, and then the count is share · n, rounded half up.
    Of equal scores the first ones go; with costs, some everywhere.
    Returns bool, of the same shape.
    """
    flat = scores.detach().flatten()
    if costs is not None:
        spread = even(len(flat)).to(flat.device)
        order = spread[flat[spread].argsort(stable=True)]
        ordered = costs.flatten().to(flat.device, torch.float64)[order]
        below = ordered.cumsum(0) - ordered / 2 <= share * ordered.sum() * (1 + 1e-12)
        return torch.zeros_like(flat, dtype=torch.bool).index_fill_(0, order[below], True).view(scores.shape)
    count = int(share * len(flat) + 0.5)
    if not count:
        return torch.zeros_like(scores, dtype=torch.bool)
    bound = flat.kthvalue(count).values
    found = flat < bound
    found[(flat == bound).nonzero().flatten()[: count - int(found.sum())]] = True
    return found.view(scores.shape)


def lowest_of(
    scores: Sequence[Tensor], share: float, costs: Sequence[Tensor] | None = None, *, together: bool
) -> list[Tensor]:
    """`lowest` in each of `scores`, or in all of them together."""
    if not together:
        each: Sequence[Tensor | None] = costs or [None] * len(scores)
        return [lowest(one, share, cost) for one, cost in zip(scores, each, strict=True)]
    flat = torch.cat([one.detach().flatten() for one in scores])
    whole = None if costs is None else torch.cat([one.flatten() for one in costs])
    parts = torch.split(lowest(flat, share, whole), [one.numel() for one in scores])
    return [part.view(one.shape) for part, one in zip(parts, scores, strict=True)]


class Schedule:
    """How much is removed when, and when a mask is chosen anew.

    The share rises from 0 to `sparsity` by the cubic schedule (Zhu and Gupta 2017, eq. 1) after the share `warmup` of
    the run, until the share `cooldown` of it is left. A mask is chosen anew `refreshes` times in a run, and once more
    when the share has reached its end.
    """

    def __init__(self, sparsity: float, warmup: float, cooldown: float, refreshes: int) -> None:
        self.finish = 1 - cooldown
        self._ramp = Ramp(start=0.0, end=sparsity, begin=min(warmup, self.finish), finish=self.finish, shape="cubic")
        self._refreshes = refreshes
        self._last = (-1, False)
        self.progress = 0.0

    @property
    def share(self) -> float:
        """What is to be removed now."""
        return self._ramp.at(self.progress)

    @property
    def settled(self) -> bool:
        """Whether the share has reached its end."""
        return self.progress >= self.finish

    def move(self, progress: float) -> bool:
        """The share `progress` of the run is done. Returns whether the mask is to be chosen anew."""
        self.progress = progress
        now = (math.floor(progress * self._refreshes + 1e-9), self.settled)
        due, self._last = now != self._last, now
        return due

    def state(self) -> dict[str, Tensor]:
        """When the mask was chosen last."""
        return {"chosen": torch.tensor([int(one) for one in self._last])}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state`."""
        number, settled = state["chosen"].tolist()
        self._last = (number, bool(settled))


def check_shares(warmup: float, cooldown: float) -> None:
    """Raise LSM-318 when no time is left between the two."""
    if warmup + cooldown > 1:
        cause = f"warmup {warmup:g} and cooldown {cooldown:g} are more than the whole run"
        raise LissomError(318, cause, place="while", remedy="Lower one of them.")


# from one value a unit to one a weight


@dataclasses.dataclass(frozen=True)
class Squares:
    """One value a square of `side` x `side` weights; those at the end of a matrix may be smaller."""

    rows: int
    columns: int
    side: int

    def __call__(self, values: Tensor) -> Tensor:
        """values: (ceil(rows / side), ceil(columns / side)) -> (rows, columns)."""
        wide = values.repeat_interleave(self.side, 0)[: self.rows]
        return wide.repeat_interleave(self.side, 1)[:, : self.columns]

    def units(self) -> tuple[int, int]:
        """How many squares there are, down and across."""
        return -(-self.rows // self.side), -(-self.columns // self.side)


class Along(nn.Module):
    """One value for all weights of a row or of a column.

    index: for each row (dim 0) or column (dim 1) of a weight of `shape` its unit; the number of units: it has none and
    always keeps the factor 1.
    """

    index: Tensor

    def __init__(self, index: Tensor, dim: int, shape: torch.Size) -> None:
        super().__init__()
        self.register_buffer("index", index, persistent=False)
        self.dim, self.shape = dim, shape

    def forward(self, values: Tensor) -> Tensor:
        """values: (units,) -> the shape of the weight."""
        found = torch.cat([values, values.new_ones(1)])[self.index]
        return found.unsqueeze(1 - self.dim).expand(self.shape)


def same(values: Tensor) -> Tensor:
    """One value a weight."""
    return values


Spread = Callable[[Tensor], Tensor]


class Plan:
    """What shall stand before which weights; several modules that share a weight count as one."""

    def __init__(self) -> None:
        self._modules: list[nn.Module] = []
        self._made: dict[int, nn.Module] = {}

    def add(self, module: nn.Module, name: str, make: Callable[[Tensor], nn.Module]) -> None:
        """make: called with the stored tensor, if nothing stands before it yet."""
        tensor = original(module, name)
        if not any(one is module for one in self._modules):
            self._modules.append(module)
        if id(tensor) not in self._made:
            self._made[id(tensor)] = make(tensor)

    def carry_out(self, name: str = "weight") -> list[nn.Module]:
        """Put them in; returns what `untransform` wants."""
        return transform(self._modules, lambda _module, tensor: self._made[id(tensor)], name)


class Straight(torch.autograd.Function):
    """weight · keep, whose gradient goes to the scores behind `keep` as if they stood in its place."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scores: Tensor, keep: Tensor) -> Tensor:
        """All of one shape; keep is bool."""
        ctx.save_for_backward(weight, keep)
        return weight * keep

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """dL/dw = dL/dw' · keep;  dL/ds = dL/dw' · w (Sanh et al. 2020, section 4)."""
        weight, keep = ctx.saved_tensors
        return gradient * keep, gradient * weight, None
