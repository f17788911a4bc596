"""A linear map of low rank: y = U (V x) + b."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LowRankLinear(nn.Module):
    """Two thin linear maps in the place of one: `down` (rank, in) without bias, then `up` (out, rank) with the bias.

    It computes rank * (in + out) instead of in * out products, so it is faster wherever rank < in*out / (in + out).
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
        self.down = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.up = nn.Linear(rank, out_features, bias=bias, device=device, dtype=dtype)

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
        return self.up.weight @ self.down.weight

    def keep(self, *, out: Tensor | None = None, in_: Tensor | None = None) -> None:
        """Keep only these outputs and inputs, in place; the rank stays."""
        if out is not None:
            self.up.weight = nn.Parameter(self.up.weight.detach()[out].contiguous(), self.up.weight.requires_grad)
            if self.up.bias is not None:
                self.up.bias = nn.Parameter(self.up.bias.detach()[out].contiguous(), self.up.bias.requires_grad)
            self.up.out_features = len(out)
        if in_ is not None:
            weight = self.down.weight
            self.down.weight = nn.Parameter(weight.detach()[:, in_].contiguous(), weight.requires_grad)
            self.down.in_features = len(in_)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) -> (..., out)."""
        y: Tensor = self.up(self.down(x))
        return y
