"""A weight with zeros as it is stored: one bit for each weight, and the numbers that are not zero, row by row.

    [[0, 1.5, 0], [2, 0, 0.5]]  ->  bits 0 1 0, 1 0 1, the first in the lowest: 2 + 8 + 32 = 42;  numbers 1.5, 2, 0.5

It is a form for files alone: nothing multiplies it, so a model that is loaded has whole weights again, zeros included.
Two of every four weights (2:4) take no more room so than as 2-bit positions: a bit a weight.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pack_zeros(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The bits (ceil(n / 8),) uint8 and the numbers that are not zero (kept,), of a weight of n numbers, any shape."""
    flat = weight.detach().flatten()
    bits = flat != 0
    eights = F.pad(bits, (0, -len(bits) % 8)).reshape(-1, 8).to(torch.uint8)
    shifts = torch.arange(8, dtype=torch.uint8, device=flat.device)
    return torch.bitwise_left_shift(eights, shifts).sum(1, dtype=torch.uint8), flat[bits]


def unpack_zeros(bits: Tensor, numbers: Tensor, shape: torch.Size) -> Tensor:
    """What `pack_zeros` was given, with 0 where it had -0. Raises ValueError for other bits set than numbers given."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    mask = torch.bitwise_right_shift(bits[:, None], shifts).bitwise_and(1).bool().flatten()
    size = shape.numel()
    if int(mask.sum()) != len(numbers) or bool(mask[size:].any()):
        raise ValueError(f"{int(mask.sum())} bits are set in the mask of {size} weights, and {len(numbers)} are stored")
    return numbers.new_zeros(size).masked_scatter_(mask[:size], numbers).reshape(shape)


class StoredSparse(nn.Module):
    """What stands in the place of a linear module or a table while its file is read. It computes nothing.

    whole: the module that shall stand there afterwards.  kept: how many of its weights are not zero.
    State: `weight` (kept,), buffer `weight_mask` (ceil(n / 8),) uint8, and the `bias` of the module, if any.
    """

    weight_mask: Tensor

    def __init__(self, whole: nn.Module, kept: int) -> None:
        super().__init__()
        weight = cast("Tensor", whole.weight)
        self._whole = (whole,)  # in a tuple, so that torch does not see it
        self.weight = nn.Parameter(weight.new_empty(kept), weight.requires_grad)
        mask = torch.zeros(-(-weight.numel() // 8), dtype=torch.uint8, device=weight.device)
        self.register_buffer("weight_mask", mask)
        self.register_parameter("bias", cast("Any", getattr(whole, "bias", None)))

    def whole(self, *, filled: bool = True) -> nn.Module:
        """The module, with the weight that was read and the bias. filled: whether one was read, else it is any.

        Raises ValueError as `unpack_zeros`.
        """
        module, shape = self._whole[0], cast("Tensor", self._whole[0].weight).shape
        read = self.weight.detach()
        dense = unpack_zeros(self.weight_mask, read, shape) if filled else read.new_empty(shape)
        module.weight = nn.Parameter(dense, self.weight.requires_grad)
        if self.bias is not None:
            module.bias = self.bias
        return module.train(self.training)
