"""The edit that stores the rows of linear maps in bits of their own."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

from torch import nn

from lissom.edits.edit import EDIT_MISFIT, Edit
from lissom.edits.linear import linear_at, store_linear
from lissom.errors import LissomError
from lissom.nn.mixed_bits import MixedBitLinear


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackRows(Edit):
    """Store linear maps with 8, 4, 2 or no bits a weight, row by row, with one scale a row.

    runs: path of a map -> (bits, rows) of its rows, in turn. The numbers come as tensors `PATH.weight` (int8, the bytes
        of `lissom.nn.mixed_bits.pack_runs`) and `PATH.weight_scale` (float32, one a row).
    rounds: whether the maps round their inputs to 8 bits and compute as int8, else in float.
    """

    runs: dict[str, tuple[tuple[Literal[0, 2, 4, 8], int], ...]]
    rounds: bool = True

    def apply(self, model: nn.Module) -> None:
        """Replace the modules; codes and scales are not filled in yet."""
        for path, runs in self.runs.items():
            rows, found = linear_at(model, path).out_features, sum(count for _, count in runs)
            if found != rows or any(count < 1 for _, count in runs):
                raise LissomError(EDIT_MISFIT, f"runs of {found} rows in a matrix of {rows}", place=path)
            store_linear(model, path, functools.partial(MixedBitLinear, runs=runs, rounds=self.rounds))
