"""The edit that stores linear maps as int8 and leaves some of their columns in floating point."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from lissom.edits.edit import EDIT_MISFIT, Edit
from lissom.edits.linear import store_linear
from lissom.errors import LissomError
from lissom.nn.split import SplitInt8Linear


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackSplit(Edit):
    """Store linear maps as int8 with one scale a row, and columns of outlying inputs in floating point.

    columns: path of each map -> how many of its columns stay, 0 or more.
    The numbers come as the tensors of `lissom.nn.split.split`, by the names `PATH.weight` and so on.
    """

    columns: dict[str, int]

    def apply(self, model: nn.Module) -> None:
        """Replace the modules; codes, scales and columns are not filled in yet."""
        for path, count in self.columns.items():

            def make(width: int, rows: int, *, count: int = count, path: str = path, **named: Any) -> SplitInt8Linear:
                if not 0 <= count <= width:
                    cause = f"{count} columns of {width} cannot stay in floating point"
                    raise LissomError(EDIT_MISFIT, cause, place=path)
                return SplitInt8Linear(width, rows, outliers=count, **named)

            store_linear(model, path, make)

    def settle(self, model: nn.Module, later: tuple[Edit, ...] = ()) -> None:
        """Refuse columns that there are not: numbers from a file are nobody's word."""
        for path, module in model.named_modules():
            if isinstance(module, SplitInt8Linear):
                try:
                    module.check()
                except ValueError as error:
                    raise LissomError(EDIT_MISFIT, str(error), place=path) from error
