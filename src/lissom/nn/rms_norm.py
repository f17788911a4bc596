"""A norm by the root mean square alone: y = x / √(mean x² + eps) · weight + bias.

It stands for a layer norm whose inputs have a mean of 0: then both compute the same.
Source: Zhang and Sennrich 2019, "Root mean square layer normalization", eq. 4, with a bias.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RmsNorm(nn.Module):
    """State: `weight` (width,) and, if there is one, `bias` (width,), named as those of a layer norm."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., width) -> (..., width), computed in float32, in the dtype of `x`."""
        full = x.float()
        full = full * torch.rsqrt(full.square().mean(-1, keepdim=True) + self.eps)
        y = self.weight * full.to(x.dtype)
        return y if self.bias is None else y + self.bias
