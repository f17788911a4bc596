"""The edit that stores linear maps as int8 and rounds their inputs with one scale for each group of columns."""

from __future__ import annotations

import dataclasses
import functools

from torch import nn

from lissom.edits.edit import EDIT_MISFIT, Edit
from lissom.edits.linear import store_linear
from lissom.errors import LissomError
from lissom.nn.input_groups import InputGroupsLinear


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackInputGroups(Edit):
    """Store linear maps as int8 with one scale a row, and round their inputs with `groups` fixed scales.

    linears: module paths. The numbers come as tensors `PATH.weight` (int8, the bytes of
        `lissom.nn.low_bit.pack_codes`), `PATH.weight_scale` (float32, one a row), `PATH.input_scale` (float32) and
        `PATH.input_zero` (uint8), one a group, and `PATH.input_group` (uint8), the group of each column.
    """

    groups: int
    linears: tuple[str, ...] = ()

    def apply(self, model: nn.Module) -> None:
        """Replace the modules; codes, scales and groups are not filled in yet."""
        if not 1 <= self.groups <= 256:
            raise LissomError(EDIT_MISFIT, f"{self.groups} groups of columns, of 1 to 256", place="PackInputGroups")
        for path in self.linears:
            store_linear(model, path, functools.partial(InputGroupsLinear, groups=self.groups))

    def settle(self, model: nn.Module, later: tuple[Edit, ...] = ()) -> None:
        """Refuse groups that there are not: numbers from a file are nobody's word."""
        for path, module in model.named_modules():
            if isinstance(module, InputGroupsLinear):
                try:
                    module.check()
                except ValueError as error:
                    raise LissomError(EDIT_MISFIT, str(error), place=path) from error
