"""A linear layer in int8 by rows and tokens, whose columns with outlying inputs stay in floating point.

    y = (code(x_rest) · code(W_rest)) · scale of the token · scale of the row  +  x_outliers · W_outliers  +  bias

Inputs are rounded while it runs, symmetrically, each token by its own largest magnitude / 127; so the answer to a text
does not depend on its batch. The columns are chosen beforehand.

It computes the whole numbers in float32: a quarter of the space on disk, and neither less memory nor less time.
Source: Dettmers et al. 2022, "LLM.int8()", sections 3.1 and 3.2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lissom.nn.low_bit import LowBitLinear, pack_codes

UNUSED = -1  # a column that was cut away


class SplitInt8Linear(LowBitLinear):
    """A linear layer of 8 bits a weight, one scale a row, and `outliers` columns that are multiplied in floating point.

    State: buffers `weight` (out, in) int8 bytes as `LowBitLinear` of 8 bits, zero in the outlying columns,
    `weight_scale` (out,), `bias` (out,), `weight_outliers` (out, outliers) float32, and `weight_positions` (outliers,)
    int32, the numbers of those columns.
    """

    weight_outliers: Tensor
    weight_positions: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        outliers: int = 0,
        bias: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bits=8, bias=bias, device=device)
        self.register_buffer("weight_outliers", torch.zeros(out_features, outliers, device=device))
        self.register_buffer("weight_positions", torch.full((outliers,), UNUSED, dtype=torch.int32, device=device))

    def dense(self) -> Tensor:
        """The weights: (out, in) float32, a new tensor. Raises ValueError for a column that there is not."""
        self.check()
        made = super().dense()
        if not made.is_meta:
            used = self.weight_positions != UNUSED
            made[:, self.weight_positions[used].long()] = self.weight_outliers[:, used]
        return made

    def check(self) -> None:
        """Raise ValueError when an outlying column is not one of the inputs. An empty (meta) layer passes."""
        columns = self.weight_positions
        if columns.is_meta or not len(columns):
            return
        low, high = int(columns.min()), int(columns.max())
        if low < UNUSED or high >= self.columns:
            wrong = low if low < UNUSED else high
            raise ValueError(f"column {wrong} is kept in floating point, of {self.columns} columns")

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in). Returns (..., out), in the dtype of `x`."""
        return self._compute(x) if torch.compiler.is_compiling() else super().forward(x)

    def _prepare(self) -> Tensor:
        self.check()
        return self.codes().float()

    def _compute(self, x: Tensor) -> Tensor:
        weight, rest = self._ready(), x.float()
        used = self.weight_positions != UNUSED
        columns = self.weight_positions[used].long()
        whole = F.linear(rest[..., columns], self.weight_outliers[:, used])
        rest = rest.index_fill(-1, columns, 0.0)
        scale = rest.abs().amax(-1, keepdim=True) / 127
        codes = (rest / torch.where(scale == 0, torch.ones_like(scale), scale)).round()
        y = F.linear(codes, weight) * scale * self.weight_scale + whole
        return (y if self.bias is None else y + self.bias).to(x.dtype)

    def unpacked(self) -> nn.Linear:
        """The float layer of these weights, which does not round its inputs: no int8 layer does so token by token."""
        made = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        made.weight = nn.Parameter(self.dense(), requires_grad=False)
        if self.bias is not None:
            made.bias = nn.Parameter(self.bias, requires_grad=False)
        return made.to(self.dtype).train(self.training)

    def keep(self, out: Tensor | None = None, in_: Tensor | None = None) -> None:
        """Keep only these output rows and input columns, in this order, in place. out, in_: 1-D int64 index tensors."""
        if in_ is not None:
            in_ = in_.to(self.weight.device)
            places = torch.full((self.columns,), UNUSED, dtype=torch.int32, device=in_.device)
            places[in_] = torch.arange(len(in_), dtype=torch.int32, device=in_.device)
            old = self.weight_positions.long()
            self.weight_positions = torch.where(old >= 0, places[old.clamp(min=0)], torch.full_like(places[:1], UNUSED))
        super().keep(out=out, in_=in_)
        if out is not None:
            self.weight_outliers = self.weight_outliers[out.to(self.weight.device)]


def split(weight: Tensor, columns: Tensor) -> dict[str, Tensor]:
    """The four tensors of a `SplitInt8Linear` for `weight` (out, in) float32, finite. columns: 1-D int64."""
    rest = weight.index_fill(1, columns, 0.0)
    scale = (rest.abs().amax(1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
    return {
        "weight": pack_codes((rest / scale[:, None]).round().clamp(-127, 127), 8),
        "weight_scale": scale,
        "weight_outliers": weight[:, columns].contiguous(),
        "weight_positions": columns.to(torch.int32),
    }
