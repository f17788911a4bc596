"""A module whose tensors stay exact when the model is converted to another floating dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn


class KeepsDtype(nn.Module):
    """Its own buffers move to another device with the model, and keep their dtype whatever the model is converted to.

    So `model.half()` does not round scales. Its parameters and its children are converted as everywhere.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        held = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in held.items():
            after = self._buffers[name]
            if before is not None and after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)  # take the move, not the rounding
        return self
