"""A linear map with a low-rank delta: y = W x + b + U (V x).

For maps whose W several layers share: each use has a delta of its own.
Source: Hu et al. 2021, "LoRA", eq. 3; Bae et al. 2024, "Relaxed Recursive Transformers", section 2.4 (one a depth).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from lissom.nn.computed import dense_of, dtype_of
from lissom.nn.low_rank import ThinMaps


class LoraLinear(ThinMaps):
    """The linear module `inner`, and beside it `down` (rank, in) and `up` (out, rank), both without bias.

    Each of the three may be packed later. It computes rank * (in + out) products more than `inner` alone.
    """

    def __init__(
        self,
        inner: nn.Module,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, rank, bias=False, device=device, dtype=dtype)
        self.inner = inner

    @property
    def bias(self) -> Tensor | None:
        """The bias, shape (out,), or None."""
        return cast("Any", self.inner).bias  # type: ignore[no-any-return]

    def dense(self) -> Tensor:
        """W + U V, shape (out, in)."""
        return dense_of(self.inner) + dense_of(self.up) @ dense_of(self.down)

    def dense_dtype(self) -> torch.dtype:
        """The dtype of `dense`."""
        return torch.promote_types(dtype_of(self.inner), dtype_of(self.up))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) -> (..., out)."""
        y: Tensor = self.inner(x) + self.up(self.down(x))
        return y
