"""The edit that lets linear maps multiply their inputs by one factor a column."""

from __future__ import annotations

import dataclasses

from torch import nn

from lissom.edits.edit import EDIT_MISFIT, Edit
from lissom.edits.linear import device_and_dtype, linear_at
from lissom.errors import LissomError
from lissom.nn import ScaledLinear


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaleInputs(Edit):
    """Put a `ScaledLinear` around linear maps; what stands there moves to `PATH.inner`, packed or not.

    linears: module paths. The numbers come as tensors `PATH.input_factor` (float32, (in,)), and, for the same answers,
        `PATH.inner.weight` with its columns divided by them.
    """

    linears: tuple[str, ...] = ()

    def apply(self, model: nn.Module) -> None:
        """Wrap the maps; factors are 1 until they are filled in."""
        for path in self.linears:
            slot = linear_at(model, path)
            if isinstance(slot.module, ScaledLinear):
                raise LissomError(EDIT_MISFIT, "this map multiplies its inputs already", place=path)
            made = ScaledLinear(slot.module, slot.in_features, device=device_and_dtype(slot)[0])
            slot.swap(made.train(slot.module.training))
