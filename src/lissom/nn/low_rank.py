"""A linear map of low rank: y = U (V x) + b."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lissom.nn.computed import ComputedLinear, dense_of, dtype_of
from lissom.nn.int8 import Int8Linear


class ThinMaps(ComputedLinear):
    """Two thin linear maps: `down` (rank, in) without bias, and `up` (out, rank). Either may be packed later."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """bias: whether `up` has one."""
        super().__init__()
        self.down: nn.Linear | Int8Linear = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.up: nn.Linear | Int8Linear = nn.Linear(rank, out_features, bias=bias, device=device, dtype=dtype)

    @property
    def in_features(self) -> int:
        """Number of inputs."""
        return self.down.in_features

    @property
    def out_features(self) -> int:
        """Number of outputs."""
        return self.up.out_features

    @property
    def rank(self) -> int:
        """Number of values between the two maps."""
        return self.down.out_features


class LowRankLinear(ThinMaps):
    """Two thin linear maps in the place of one: `down` (rank, in) without bias, then `up` (out, rank) with the bias.

    Either may be packed to int8 later. It computes rank * (in + out) instead of in * out products: fewer wherever
    rank < in * out / (in + out).
    """

    @property
    def bias(self) -> Tensor | None:
        """The bias, shape (out,), or None."""
        return self.up.bias

    def dense(self) -> Tensor:
        """The product of the two maps, shape (out, in)."""
        return dense_of(self.up) @ dense_of(self.down)

    def dense_dtype(self) -> torch.dtype:
        """The dtype of `dense`."""
        return dtype_of(self.up)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) -> (..., out)."""
        y: Tensor = self.up(self.down(x))
        return y
