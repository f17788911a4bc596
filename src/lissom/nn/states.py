"""Keys or values of attention for many tokens, in few bits, with a scale and a smallest value for each group.

    x ≈ code · scale + low        scale = (high - low) / (2^bits - 1)        code = round((x - low) / scale)

A group is either one channel of `group` tokens that follow each other (keys, whose outliers stay in the same channels),
or `group` channels of one token (values). low and high are the smallest and largest value of a group; scale and low
take 16 bits each, so that groups of 64 cost half a bit a value. Codes are packed as `lissom.nn.low_bit` says.
Source: Liu et al. 2024, "KIVI", sections 2 and 3.2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lissom.nn.grouped import storable
from lissom.nn.low_bit import pack_codes, unpack_codes

BITS = (2, 4, 8)


class PackedStates:
    """Grows at its end by what `append` packs.

    bits: a value.  group: of values that share a scale.  over_tokens: whether a group is one channel of many tokens,
    else many channels of one token; of heads with a width that `group` does not divide, the largest share that does.
    """

    def __init__(self, bits: int, group: int, *, over_tokens: bool) -> None:
        self.bits, self.group, self.over_tokens = bits, group, over_tokens
        self.tokens = self.channels = 0
        self._tensors: tuple[
            Tensor, ...
        ] = ()  # codes (batch, heads, rows, bytes) int8; scale and low (…, rows) float16

    def append(self, x: Tensor) -> None:
        """Pack the next tokens. x: (batch, heads, tokens, channels), tokens a multiple of the group if over tokens."""
        self.channels, self.tokens = x.shape[3], self.tokens + x.shape[2]
        rows = self._grouped(x.detach().float())
        low, high, top = rows.amin(-1), rows.amax(-1), 2**self.bits - 1
        edge = torch.finfo(torch.float16).max
        low = low.clamp(-edge, edge).half()
        scale = storable((high - low.float()) / top).half()
        codes = ((rows - low[..., None].float()) / scale[..., None].float()).round_().clamp_(0, top)
        codes -= 2 ** (self.bits - 1)
        packed = pack_codes(codes.flatten(0, 2), self.bits).reshape(*codes.shape[:3], -1)
        old, new = self._tensors, (packed, scale, low)
        self._tensors = tuple(torch.cat(pair, 2) for pair in zip(old, new, strict=True)) if old else new

    def dense(self, dtype: torch.dtype) -> Tensor:
        """What the codes stand for: (batch, heads, tokens, channels), a new tensor. At least one token was appended."""
        packed, scale, low = self._tensors
        codes = unpack_codes(packed, self._width(), self.bits).to(torch.float32) + 2 ** (self.bits - 1)
        rows = torch.addcmul(low[..., None].float(), codes, scale[..., None].float())
        batch, heads = rows.shape[:2]
        if self.over_tokens:
            rows = rows.reshape(batch, heads, -1, self.channels, self.group).transpose(3, 4)
        return rows.reshape(batch, heads, self.tokens, self.channels).to(dtype)

    def select(self, texts: Tensor) -> None:
        """Keep these texts of the batch, in this order, in place. texts: 1-D int64; one may come several times."""
        self._tensors = tuple(one.index_select(0, texts.to(one.device)) for one in self._tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and smallest values."""
        return sum(one.nbytes for one in self._tensors)

    def _width(self) -> int:
        return self.group if self.over_tokens else math.gcd(self.group, self.channels)

    def _grouped(self, x: Tensor) -> Tensor:
        """Each group as a row: (batch, heads, rows, values of a group)."""
        batch, heads, tokens, channels = x.shape
        if self.over_tokens:
            x = x.reshape(batch, heads, tokens // self.group, self.group, channels).transpose(3, 4)
        return x.reshape(batch, heads, -1, self._width())
