"""Store weights in few bits, with zero points that make the error small for all weights but the largest.

Minimises Σ|w - restore(codes)|^p with p < 1, which forgives single outliers, over the zero point of each group, by
half-quadratic splitting:

    codes = round(w / s + z)
    e = shrink(w - (codes - z) · s)          shrink(x) = sign(x) · max(|x| - p / beta · |x|^(p - 1), 0)
    z = mean of the group(codes - (w - e) / s)          beta grows by 1.01 a round

until no round improves the mean error. Scales are those of rounding to nearest. No data is needed.
Source: Badri and Shaji 2023, "Half-quadratic quantization of large machine learning models", section 2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lissom.anatomy import Slot
from lissom.edits import Editor
from lissom.methods.base import Given
from lissom.methods.quantization.groups import Groups, Stored
from lissom.methods.quantization.maps import unpacked_maps
from lissom.nn.grouped import grid, groups_of, restore, round_to, spread
from lissom.stats.finite import finite_weight

_BETA, _GROWTH = 10.0, 1.01  # as published


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hqq(Groups):
    """Half-quadratic quantization."""

    name: ClassVar[str] = "hqq"
    source: ClassVar[str] = "Badri and Shaji 2023, section 2"

    norm: Annotated[float, Field(gt=0, lt=1, description="p: the smaller, the less single large errors count")] = 0.7
    rounds: Annotated[
        int, Field(ge=1, le=1000, description="rounds at most; they end when the error no longer falls")
    ] = 20

    def apply(self, editor: Editor, given: Given) -> None:
        """Find the zero points, round and pack every map of the blocks."""
        self.pack(editor, self._all(unpacked_maps(editor, self.skip), given))

    def _all(self, maps: Sequence[Slot], given: Given) -> Iterator[tuple[str, Stored]]:
        for done, slot in enumerate(maps):
            given.report(slot.path, done / len(maps))
            yield slot.path, self.optimized(finite_weight(slot.weight, slot.path))

    def optimized(self, weight: Tensor) -> Stored:
        """Codes, scales and zero points for a weight (out, in) float32. Raises ValueError for NaN and infinity."""
        columns = weight.shape[1]
        scale, zero = grid(weight, bits=self.bits, group=self.group)
        wide = spread(scale, columns, self.group)
        best, least, beta = zero, torch.inf, _BETA
        for _ in range(self.rounds):
            codes = round_to(weight, scale, zero, bits=self.bits, group=self.group)
            error = weight - restore(codes, scale, zero, group=self.group)
            now = float(error.abs().mean())
            if now >= least:
                break
            best, least = zero, now
            size = error.abs()
            shrunk = error.sign() * (size - self.norm / beta * size.clamp_min(1e-8) ** (self.norm - 1)).clamp_min(0)
            zero = self._means(codes - (weight - shrunk) / wide).half().float()  # as it will be stored
            beta *= _GROWTH
        return Stored(round_to(weight, scale, best, bits=self.bits, group=self.group), scale, best)

    def _means(self, values: Tensor) -> Tensor:
        """The mean of each group: (out, groups)."""
        rows, columns = values.shape
        parts = groups_of(columns, self.group)
        number = torch.arange(columns, device=values.device) // self.group
        sums = values.new_zeros(rows, parts).index_add_(1, number, values)
        return sums / torch.bincount(number, minlength=parts)
