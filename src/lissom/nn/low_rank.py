"""A linear map of low rank: y = U (V x) + b."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lissom.nn.int8 import Int8Linear


def _dense(linear: nn.Linear | Int8Linear) -> Tensor:
    return linear.dense() if isinstance(linear, Int8Linear) else linear.weight


class LowRankLinear(nn.Module):
    """Two thin linear maps in the place of one: `down` (rank, in) without bias, then `up` (out, rank) with the bias.

    Either may be packed to int8 later. It computes rank * (in + out) instead of in * out products: fewer wherever
    rank < in * out / (in + out).
    """

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

    @property
    def bias(self) -> Tensor | None:
        """The bias, shape (out,), or None."""
        return self.up.bias

    @property
    def weight(self) -> Tensor:
        """The product of the two maps, shape (out, in); computed at each call, not stored."""
        return self.dense()

    def dense(self) -> Tensor:
        """The product of the two maps, shape (out, in)."""
        return _dense(self.up) @ _dense(self.down)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) -> (..., out)."""
        y: Tensor = self.up(self.down(x))
        return y
