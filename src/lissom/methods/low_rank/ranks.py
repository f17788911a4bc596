"""How many parts each linear map keeps: the same share of the parameters of every map, or of what its parts weigh."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lissom import edits

_HALVINGS = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """A map of `rows` outputs and `columns` inputs that is stored as `held` numbers now."""

    rows: int
    columns: int
    held: int

    def part(self) -> int:
        """Numbers that each rank takes."""
        return self.rows + self.columns

    def saving(self, rank: int) -> int:
        """`rank` where two thin maps of it take fewer numbers than are held now, else 0."""
        return rank if rank * self.part() < self.held else 0

    def cost(self, rank: int) -> int:
        """Numbers of the map once it is cut to `rank`, or left."""
        return rank * self.part() if self.saving(rank) else self.held


def uniform(sizes: Mapping[str, Size], ratio: float) -> dict[str, int]:
    """Path -> the largest rank at which a map holds at most the share `ratio` of its numbers, at least 1; 0: leave it.

    A ratio of 1 leaves all.
    """
    if ratio == 1:
        return dict.fromkeys(sizes, 0)
    return {path: one.saving(max(1, int(ratio * one.held / one.part()))) for path, one in sizes.items()}


def by_energy(sizes: Mapping[str, Size], costs: Mapping[str, Tensor], ratio: float) -> dict[str, int]:
    """Path -> the fewest parts that keep a share of the summed σ², the same in all maps, or 0: leave it.

    costs: σ² of each map, largest first.  The share is the largest at which all maps together hold at most `ratio` of
    their numbers. A map in which so many parts save nothing is left as it is.
    """
    budget = ratio * sum(one.held for one in sizes.values())
    lost = {path: _tails(one) for path, one in costs.items()}

    def ranks(share: float) -> dict[str, int]:
        return {path: max(1, int((one > share).sum())) for path, one in lost.items()}

    def fits(share: float) -> bool:
        return sum(sizes[path].cost(rank) for path, rank in ranks(share).items()) <= budget

    low, high = -16.0, 0.0  # exponents of the share that is lost
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(10**middle) else (middle, high)
    found = dict.fromkeys(sizes, 0) if ratio == 1 else ranks(10**high)
    return {path: sizes[path].saving(rank) for path, rank in found.items()}


def _tails(costs: Tensor) -> Tensor:
    """The share of all σ² that is lost at rank 0, 1, 2 and so on."""
    tails = costs.flip(0).cumsum(0).flip(0)
    return tails / tails[:1].clamp_min(torch.finfo(tails.dtype).tiny)


def put(model: nn.Module, path: str, up: Tensor, down: Tensor) -> None:
    """Stand two thin maps in the place of a map, without a record of it."""
    edits.Factorize(ranks={path: len(down)}).apply(model)
    for name, values in (("up", up), ("down", down)):
        model.get_parameter(f"{path}.{name}.weight").data.copy_(values)
