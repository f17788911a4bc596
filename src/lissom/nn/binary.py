"""A linear layer of one bit a weight: a sum of binary matrices, whose inputs may have few bits as well.

    y = (sum over planes p of  s_p · b_p) x + bias,      b_p in {-1, 1},  s_p one float32 scale a row

Two planes hold what a ternary matrix holds, and more: s and -s are apart, and a weight can be s_1 + s_2, s_1 - s_2 and
their negatives. Inputs are rounded as by `lissom.nn.int8`, put on levels (`lissom.nn.levels`), or left alone.
Like other layers of few bits it is small on disk, and computes with int8 codes or in float: no faster than those.
Sources: Bai et al. 2021 (BinaryBERT), section 3; Liu et al. 2022 (BiT), section 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lissom.nn.int8 import Int8Linear, Rounded, _onednn, exact
from lissom.nn.levels import Levels
from lissom.nn.low_bit import LowBitLinear
from lissom.nn.static import StaticInt8Linear


class BinaryLinear(LowBitLinear):
    """A linear layer of `planes` binary matrices.

    rounds: whether inputs are rounded to 8 bits while it runs.  levels: what puts them on levels instead, or None.
    State: buffers `weight` (planes · out, bytes of a row) int8, the rows of the first plane first, `weight_scale`
    (planes · out,) and `bias` (out,) float32; with `levels`, `levels.scale` and `levels.shift`. It has no gradient.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        planes: int = 1,
        levels: Levels | None = None,
        rounds: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        whole = rounds or levels is not None
        super().__init__(in_features, planes * out_features, bits=1, rounds=whole, bias=False, device=device)
        self.bias = torch.zeros(out_features, device=device) if bias else None
        self.planes = planes
        self.levels = None if levels is None else levels.to(device)

    @property
    def out_features(self) -> int:
        """Rows of the map."""
        return len(self.weight) // self.planes

    def dense(self) -> Tensor:
        """The weights: (out, in) float32, a new tensor."""
        return _summed(super().dense(), self.planes, 0)

    def _rounded(self, x: Tensor) -> Rounded:
        if self.levels is None:
            return super()._rounded(x)
        level, scale = self.levels.parts(x)
        low = self.levels.bounds[0]
        return (level - low).to(torch.uint8), scale, torch.full_like(scale, -low)

    def _compute(self, x: Tensor) -> Tensor:
        if not self.rounds:
            return super()._compute(x)
        flat = x.reshape(-1, self.in_features).float()
        if not flat.numel():
            return x.new_empty(*x.shape[:-1], self.out_features)
        kernel = _onednn if self._has_kernel() else exact
        y = _summed(kernel(self._rounded(flat), self._ready(), self.weight_scale, None), self.planes, 1)
        y = y if self.bias is None else y + self.bias
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def _traced(self, x: Tensor) -> Tensor:
        return self._compute(x)

    def unpacked(self) -> nn.Module:  # type: ignore[override]  # a sum is no layer of its own
        """What computes the same from int8 codes, or the float layer where inputs are not rounded."""
        return _Sum(self).train(self.training) if self.rounds else super().unpacked()

    def keep(self, out: Tensor | None = None, in_: Tensor | None = None) -> None:
        """Keep only these output rows and input columns, in this order, in place. out, in_: 1-D int64 index tensors."""
        if out is not None:
            out = out.to(self.weight.device)
            rows = torch.cat([out + plane * self.out_features for plane in range(self.planes)])
            self.weight, self.weight_scale = self.weight[rows], self.weight_scale[rows]
            self.bias = None if self.bias is None else self.bias[out]
        super().keep(in_=in_)

    def extra_repr(self) -> str:
        """Shape, planes and inputs."""
        return f"{super().extra_repr()}, planes={self.planes}"


class _Sum(nn.Module):
    """The planes as one int8 layer, whose rows are added up; before it what puts inputs on levels."""

    bias: Tensor | None

    def __init__(self, layer: BinaryLinear) -> None:
        super().__init__()
        self.levels, self.planes = layer.levels, layer.planes
        made = Int8Linear if layer.levels is None else StaticInt8Linear
        self.inner = made(layer.in_features, 0, bias=False)
        self.inner.weight, self.inner.weight_scale, self.inner.dtype = layer.codes(), layer.weight_scale, layer.dtype
        if isinstance(self.inner, StaticInt8Linear) and layer.levels is not None:
            low = layer.levels.bounds[0]
            self.inner.input_scale = layer.levels.parts(torch.zeros(()))[1].clone()
            self.inner.input_zero = torch.full((), -low, dtype=torch.uint8)
        self.register_buffer("bias", layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in). Returns (..., out)."""
        y = _summed(self.inner(x if self.levels is None else self.levels(x)), self.planes, x.dim() - 1)
        return y if self.bias is None else y + self.bias


def _summed(x: Tensor, planes: int, dim: int) -> Tensor:
    """Adds up the `planes` equal parts of `x` along `dim`."""
    return x if planes == 1 else torch.stack(x.chunk(planes, dim)).sum(0)
