"""The edit that stores linear maps and tables as numbers into a short table of values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from torch import nn

from lissom.edits.edit import EDIT_MISFIT, Edit
from lissom.edits.linear import store_linear, store_table
from lissom.errors import LissomError
from lissom.nn.palette import PaletteEmbedding, PaletteLinear

_LARGEST = 2**31 - 1  # positions are int32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Palette(Edit):
    """Store linear maps and embedding tables in `bits` bits a weight: the number of a value in a table of 2^bits.

    vector: how many weights side by side share a number; the table then holds vectors (2^bits, vector).

    linears, embeddings: module paths.
    outliers: path of one of them -> how many of its weights are stored whole instead; none where it is left out.
    The numbers come as tensors `PATH.weight` (int8, the bytes of `lissom.nn.palette.pack_indices`),
        `PATH.weight_table` (2^bits,) and `PATH.weight_outliers` (float32), and `PATH.weight_positions` (int32).
    """

    bits: Literal[2, 3, 4, 8]
    vector: Literal[1, 2, 4, 8] = 1
    linears: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()
    outliers: dict[str, int] = dataclasses.field(default_factory=dict)

    def apply(self, model: nn.Module) -> None:
        """Replace the modules; indices, tables and outliers are not filled in yet."""
        stray = sorted(self.outliers.keys() - {*self.linears, *self.embeddings})
        if stray:
            raise LissomError(EDIT_MISFIT, "outliers of what is not stored in few bits", place=stray[0][:200])
        for path in self.linears:
            store_linear(model, path, self._bounded(PaletteLinear, path))
        for path in self.embeddings:
            store_table(model, path, self._bounded(PaletteEmbedding, path))

    def _bounded(self, kind: Callable[..., Any], path: str) -> Callable[..., Any]:
        count = self.outliers.get(path, 0)

        def make(first: int, second: int, **named: Any) -> Any:
            if not 0 <= count <= first * second <= _LARGEST:
                cause = f"{count} outliers of {first * second} weights, of which there may be {_LARGEST}"
                raise LissomError(EDIT_MISFIT, cause, place=path)
            columns = first if kind is PaletteLinear else second
            if columns % self.vector:
                raise LissomError(EDIT_MISFIT, f"vectors of {self.vector} do not fill {columns} columns", place=path)
            return kind(first, second, bits=self.bits, vector=self.vector, outliers=count, **named)

        return make

    def settle(self, model: nn.Module, later: tuple[Edit, ...] = ()) -> None:
        """Refuse outliers outside their matrix: numbers from a file are nobody's word."""
        for path, module in model.named_modules():
            if isinstance(module, PaletteLinear | PaletteEmbedding):
                try:
                    module.check()
                except ValueError as error:
                    raise LissomError(EDIT_MISFIT, str(error), place=path) from error
