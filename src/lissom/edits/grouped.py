"""The edit that stores linear maps in few bits, with a scale and a zero point for each group of columns."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

from torch import nn

from lissom.edits.edit import EDIT_MISFIT, Edit
from lissom.edits.linear import store_linear
from lissom.errors import LissomError
from lissom.nn.grouped import GroupedLinear


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackGroups(Edit):
    """Store linear maps in `bits` bits a weight, in groups of `group` columns of a row, and compute in float.

    linears: module paths. The numbers come as tensors `PATH.weight` (int8, the bytes of
        `lissom.nn.palette.pack_indices`), `PATH.weight_scale` and `PATH.weight_zero` (float16, one a group of a row).
    """

    bits: Literal[2, 3, 4, 8]
    group: int
    linears: tuple[str, ...] = ()

    def apply(self, model: nn.Module) -> None:
        """Replace the modules; codes, scales and zero points are not filled in yet."""
        if self.group < 1:
            raise LissomError(EDIT_MISFIT, f"groups of {self.group} columns", place=", ".join(self.linears)[:200])
        for path in self.linears:
            store_linear(model, path, functools.partial(GroupedLinear, bits=self.bits, group=self.group))
