"""A linear layer that stores 2, 3, 4 or 8 bits a weight, with a scale and a zero point for each group of a row.

    w = (code - zero) · scale        code in 0 .. 2^bits - 1

A group is `group` columns side by side; the last one of a row may be shorter. Codes are packed as
`lissom.nn.palette.pack_indices` says; scales and zero points take 16 bits each, so that groups of 64 cost half a bit a
weight. Zero points need not be whole numbers (HQQ's are not).

It computes in float: the weight is decoded once and kept beside its codes. So in torch it saves space on disk, and
neither time nor memory while it runs; ONNX Runtime multiplies 4-bit groups as they are (MatMulNBits).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lissom.nn.low_bit import LowBitLinear
from lissom.nn.palette import pack_indices, unpack_indices

BITS = (2, 3, 4, 8)


def groups_of(columns: int, group: int) -> int:
    """How many groups a row of `columns` has."""
    return -(-columns // group)


def spread(values: Tensor, columns: int, group: int) -> Tensor:
    """One value a group (rows, groups) as one a column (rows, columns)."""
    return values.repeat_interleave(group, dim=1)[:, :columns]


def grid(weight: Tensor, *, bits: int, group: int, symmetric: bool = False) -> tuple[Tensor, Tensor]:
    """Scale and zero point of each group by its smallest and largest weight, zero included.

    weight: (rows, columns), floating point.  Returns (rows, groups) float32 each, rounded to what float16 holds; scales
    are not zero, zero points are whole. symmetric: the zero point is the middle code, 2^(bits - 1).
    Raises ValueError when `weight` holds NaN or infinity.
    """
    full = weight.detach().float()
    if not bool(torch.isfinite(full).all()):
        raise ValueError("the weight holds NaN or infinity and cannot be quantized")
    short = groups_of(full.shape[1], group) * group - full.shape[1]
    parts = torch.nn.functional.pad(full, (0, short)).reshape(len(full), -1, group)
    return grid_between(parts.amin(-1), parts.amax(-1), bits=bits, symmetric=symmetric)


def grid_between(low: Tensor, high: Tensor, *, bits: int, symmetric: bool = False) -> tuple[Tensor, Tensor]:
    """`grid` for given ends of the groups, of any shape; they are widened to hold zero."""
    low, high, largest = low.clamp(max=0.0), high.clamp(min=0.0), 2**bits - 1
    if symmetric:
        middle = 2 ** (bits - 1)
        scale = storable(torch.maximum(high, -low) / (middle - 1))
        return scale, torch.full_like(scale, middle)
    scale = storable((high - low) / largest)
    return scale, (-low / scale).round_().clamp_(0, largest)


def storable(scale: Tensor) -> Tensor:
    """`scale` as float16 holds it, in float32, and not zero: codes are chosen for the scale that is stored."""
    smallest = 2.0**-24  # of float16
    return scale.clamp(smallest, torch.finfo(torch.float16).max).half().float()


def round_to(weight: Tensor, scale: Tensor, zero: Tensor, *, bits: int, group: int) -> Tensor:
    """The nearest code of each weight (rows, columns): uint8, 0 to 2^bits - 1. scale, zero: (rows, groups)."""
    columns = weight.shape[1]
    at = weight.float() / spread(scale, columns, group) + spread(zero, columns, group)
    return at.round_().clamp_(0, 2**bits - 1).to(torch.uint8)


def restore(codes: Tensor, scale: Tensor, zero: Tensor, *, group: int) -> Tensor:
    """What the codes stand for: (rows, columns) float32. scale, zero: (rows, groups)."""
    columns = codes.shape[1]
    return (codes.float() - spread(zero.float(), columns, group)) * spread(scale.float(), columns, group)


class GroupedLinear(LowBitLinear):
    """A linear layer of `bits` bits a weight in groups of `group` columns, computed in float.

    State: buffers `weight` (int8, the bytes of `pack_indices`), `weight_scale` and `weight_zero` (out, groups) float16,
    and `bias` (out,) float32. It has no gradient.
    """

    weight_zero: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bits: int,
        group: int,
        bias: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bits=8, rounds=False, bias=bias, device=device)
        self.bits, self.group = bits, group
        parts = groups_of(in_features, group)
        self.weight = torch.zeros(out_features, -(-in_features * bits // 8), dtype=torch.int8, device=device)
        self.weight_scale = torch.ones(out_features, parts, dtype=torch.float16, device=device)
        self.register_buffer("weight_zero", torch.zeros(out_features, parts, dtype=torch.float16, device=device))

    def codes(self) -> Tensor:
        """The codes, without sign: (out, in) int64, unpacked at each call."""
        return unpack_indices(self.weight, self.columns, self.bits)

    def dense(self) -> Tensor:
        """The weights that the codes stand for: (out, in) float32, a new tensor."""
        return restore(self.codes(), self.weight_scale, self.weight_zero, group=self.group)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in). Returns (..., out), in the dtype of `x`."""
        return self._compute(x) if torch.compiler.is_compiling() else super().forward(x)

    def keep(self, out: Tensor | None = None, in_: Tensor | None = None) -> None:
        """Keep only these output rows and input columns, in this order, in place. out, in_: 1-D int64 index tensors.

        Columns bring the scales of their groups along; groups that are no longer side by side become groups of one.
        """
        if out is not None:
            out = out.to(self.weight.device)
            self.weight, self.weight_scale, self.weight_zero = (
                self.weight[out],
                self.weight_scale[out],
                self.weight_zero[out],
            )
            self.bias = None if self.bias is None else self.bias[out]
        if in_ is not None:
            in_ = in_.to(self.weight.device)
            codes = self.codes()[:, in_]
            self.weight_scale = spread(self.weight_scale, self.columns, self.group)[:, in_].contiguous()
            self.weight_zero = spread(self.weight_zero, self.columns, self.group)[:, in_].contiguous()
            self.weight, self.columns, self.group = pack_indices(codes, self.bits), codes.shape[1], 1

    def extra_repr(self) -> str:
        """Shape, bits and group."""
        return f"{super().extra_repr()}, group={self.group}"
