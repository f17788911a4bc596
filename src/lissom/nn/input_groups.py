"""An int8 linear layer whose inputs are rounded with a fixed scale and zero point for each group of columns.

    code_j = clamp(round(x_j / s_g) + z_g, 0, 255)        g: the group of column j
    y = Σ_g s_g · (Σ of j in g: (code_j - z_g) · code of the weight) · weight_scale + bias

Weights are rounded as they are, one scale a row: columns that read outlying inputs take no bits from the others, which
they would if the groups' scales were multiplied into the weights beforehand.

In torch the whole numbers are multiplied in float32. In a graph the layer is one of fixed input scale for each group
(`lissom.nn.static`), over the columns of the group, and a sum: whole numbers in engines that multiply those.
Source: Bondarenko et al. 2021, "Understanding and overcoming the challenges of efficient transformer quantization",
section 4 (per-embedding-group quantization).
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lissom.nn.low_bit import LowBitLinear
from lissom.nn.static import StaticInt8Linear


class InputGroupsLinear(LowBitLinear):
    """A linear layer of 8 bits a weight, one scale a row, and `groups` scales and zero points of its inputs.

    State: buffers `weight` (out, in) int8 bytes as `LowBitLinear` of 8 bits, `weight_scale` and `bias` (out,), and
    `input_scale` (groups,) float32, `input_zero` (groups,) uint8, `input_group` (in,) uint8, the group of each column.
    """

    input_scale: Tensor
    input_zero: Tensor
    input_group: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        groups: int,
        bias: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bits=8, bias=bias, device=device)
        self.register_buffer("input_scale", torch.ones(groups, device=device))
        self.register_buffer("input_zero", torch.zeros(groups, dtype=torch.uint8, device=device))
        self.register_buffer("input_group", torch.zeros(in_features, dtype=torch.uint8, device=device))

    def check(self) -> None:
        """Raise ValueError when a column is of a group that there is not. An empty (meta) layer passes."""
        if not self.input_group.is_meta and int(self.input_group.max()) >= len(self.input_scale):
            raise ValueError(f"a column is of group {int(self.input_group.max())}, of {len(self.input_scale)} groups")

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in). Returns (..., out), in the dtype of `x`."""
        return self._compute(x) if torch.compiler.is_compiling() else super().forward(x)

    def _prepare(self) -> Tensor:
        self.check()
        return self.codes().float()

    def _compute(self, x: Tensor) -> Tensor:
        weight, group = self._ready(), self.input_group.long()
        scale, zero = self.input_scale[group], self.input_zero[group].float()
        codes = (x.float() / scale).round().add(zero).clamp(0, 255)
        y = F.linear((codes - zero) * scale, weight) * self.weight_scale
        return (y if self.bias is None else y + self.bias).to(x.dtype)

    def unpacked(self) -> nn.Module:  # type: ignore[override]
        """The sum of layers, one a group, that gives the same."""
        return _Sum(self).train(self.training)

    def keep(self, out: Tensor | None = None, in_: Tensor | None = None) -> None:
        """Keep only these output rows and input columns, in this order, in place. out, in_: 1-D int64 index tensors."""
        super().keep(out=out, in_=in_)
        if in_ is not None:
            self.input_group = self.input_group[in_.to(self.input_group.device)]


class _Sum(nn.Module):
    """One layer for each group that has columns; the bias is in the first."""

    order: Tensor

    def __init__(self, layer: InputGroupsLinear) -> None:
        super().__init__()
        layer.check()
        self.register_buffer("order", layer.input_group.long().argsort(stable=True))
        codes, bias = layer.codes()[:, self.order], layer.bias
        self.parts, self.widths = nn.ModuleList(), list[int]()
        start = 0
        for group, count in enumerate(layer.input_group.long().bincount().tolist()):
            if count:
                made = StaticInt8Linear(count, len(codes), bias=False, device="meta")
                made.weight, made.weight_scale = codes[:, start : start + count].contiguous(), layer.weight_scale
                made.bias, bias = bias, None
                made.input_scale, made.input_zero = layer.input_scale[group].clone(), layer.input_zero[group].clone()
                self.parts.append(made)
                self.widths.append(count)
                start += count

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in). Returns (..., out)."""
        ordered = torch.split(x.index_select(-1, self.order), self.widths, dim=-1)
        answers: list[Tensor] = [part(own) for part, own in zip(self.parts, ordered, strict=True)]
        return functools.reduce(torch.add, answers)
