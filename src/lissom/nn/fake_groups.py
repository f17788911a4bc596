"""Weights as they will be in groups of few bits (`lissom.nn.grouped`), with a gradient to train them by.

    w' = (code - zero) · scale      code = round(w / scale + zero)      scale, zero: of the weights as they are

The gradient of w' is handed on to w as it is (straight through, Bengio et al. 2013).
Source: Shen et al. 2020, "Q-BERT", section 3 (uniform ranges of groups, straight-through gradient).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lissom.nn.fake_quant import _straight
from lissom.nn.grouped import grid, restore, round_to


class FakeGroups(nn.Module):
    """Lets a weight be used as its nearest one of `bits` bits in groups of `group` columns.

    transposed: the weight is stored as (in, out).  bits: () int64, as a buffer, so that checkpoints hold it; 0 leaves
    the weight as it is.
    """

    bits: Tensor

    def __init__(self, *, group: int, transposed: bool = False) -> None:
        super().__init__()
        self.group, self.transposed = group, transposed
        self.register_buffer("bits", torch.zeros((), dtype=torch.int64))

    def rows(self, weight: Tensor) -> Tensor:
        """A stored weight as (out, in) float32."""
        return (weight.t() if self.transposed else weight).float()

    def rounded(self, weight: Tensor, bits: int) -> Tensor:
        """What a stored weight becomes at `bits` bits: (out, in) float32. Raises ValueError for NaN and infinity."""
        rows = self.rows(weight.detach())
        scale, zero = grid(rows, bits=bits, group=self.group)
        codes = round_to(rows, scale, zero, bits=bits, group=self.group)
        return restore(codes, scale, zero, group=self.group)

    def forward(self, weight: Tensor) -> Tensor:
        """weight: as it is stored. Returns the same shape, float32."""
        bits = int(self.bits)
        if not bits:
            return weight
        made = _straight(self.rows(weight), self.rounded(weight, bits))
        return made.t() if self.transposed else made
