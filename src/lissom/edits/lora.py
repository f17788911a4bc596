"""The edit that gives linear maps a low-rank delta of their own."""

from __future__ import annotations

import dataclasses

from torch import nn

from lissom.edits.edit import EDIT_MISFIT, Edit
from lissom.edits.linear import device_and_dtype, linear_at
from lissom.errors import LissomError
from lissom.nn import LoraLinear


@dataclasses.dataclass(frozen=True, kw_only=True)
class AddLora(Edit):
    """Put a `LoraLinear` around linear maps; what stands there moves to `PATH.inner`, shared, packed or not.

    ranks: path of a linear map -> rank of its delta. The numbers come as tensors `PATH.down.weight` (rank, in) and
    `PATH.up.weight` (out, rank). Layers that share `PATH.inner` do not share the delta.
    """

    ranks: dict[str, int]

    def apply(self, model: nn.Module) -> None:
        """Wrap the maps; the deltas are not filled in yet."""
        for path, rank in self.ranks.items():
            slot = linear_at(model, path)
            if isinstance(slot.module, LoraLinear):
                raise LissomError(EDIT_MISFIT, "this map has a delta already", place=path)
            limit = min(slot.in_features, slot.out_features)
            if not 1 <= rank <= limit:
                raise LissomError(EDIT_MISFIT, f"rank {rank} is outside 1 to {limit}", place=path)
            device, dtype = device_and_dtype(slot)
            made = LoraLinear(slot.module, slot.in_features, slot.out_features, rank, device=device, dtype=dtype)
            slot.swap(made.train(slot.module.training))
