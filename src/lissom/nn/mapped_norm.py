"""A norm whose channels are mixed by one square map: y = M norm(x)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MappedNorm(nn.Module):
    """`norm` as it was, and `map`, M (width, width), which starts as the identity.

    A head that is the table of tokens reads hidden states in the basis of the table; M brings them there.
    """

    def __init__(self, norm: nn.Module, width: int, *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = norm
        self.map = nn.Linear(width, width, bias=False, device=device, dtype=dtype)
        self.map.weight = nn.Parameter(torch.eye(width, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., width) -> (..., width)."""
        y: Tensor = self.map(self.norm(x))
        return y
