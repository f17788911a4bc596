"""Weights and inputs as they will be once they are stored in few bits, with a gradient to train them by.

A weight matrix (out, in) becomes codes times a scale, exactly what `lissom.nn.int8` and `lissom.nn.low_bit` store:

    int8, int4   scale = max|w| / 127 or 7              code = round(w / scale)
    ternary      D = 0.7 · mean|w|                      code = sign(w) where |w| > D, else 0;  scale = mean of those |w|
    binary       scale = mean|w|                        code = 1 where w >= 0, else -1

each over a row, or over the whole matrix. Rounding has no gradient of its own: the one of the rounded value is handed
on to the value as it is (straight through, Bengio et al. 2013). Everything is computed in float32, whatever autocast
does around it.
Sources: Jacob et al. 2018, section 3 (training with rounding); Li and Liu 2016 (TWN), section 2; Rastegari et al. 2016,
section 3.1 (binary); Esser et al. 2020 (LSQ), eq. 1 to 3, sections 2.1 and 2.2; Tao et al. 2022 (QuantGPT), dynamic
scaling; Fan et al. 2021 (Quant-Noise), section 4; Prato et al. 2020 (FullyQT), section 3.1 (running ranges). Differs:
codes are symmetric (LSQ: -128 to 127); QuantGPT's factor begins where LSQ's step does.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lissom.nn.int8 import quantize_activation, quantize_tokens, row_scales, usable
from lissom.nn.static import codes_of

Kind = Literal["int8", "int4", "ternary", "binary"]
LARGEST: dict[Kind, int] = {"int8": 127, "int4": 7, "ternary": 1, "binary": 1}
"""The largest code of each kind; the smallest is its negative."""


class _Straight(torch.autograd.Function):
    """`y` forward; backward as if it were `x`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0], None


class _Slower(torch.autograd.Function):
    """`x` forward; backward its gradient times `factor`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * ctx.factor, None


def _straight(x: Tensor, y: Tensor) -> Tensor:
    made: Tensor = _Straight.apply(x, y)  # type: ignore[no-untyped-call]
    return made


def rounded_input(x: Tensor, *, per_token: bool = False) -> Tensor:
    """`x` as an int8 layer sees it: by `quantize_activation` with one range for the whole tensor, or by
    `quantize_tokens`. In the dtype of `x`."""
    with torch.no_grad():
        codes, scale, zero = (quantize_tokens if per_token else quantize_activation)(x.float())
        y = ((codes.float() - zero) * scale).to(x.dtype)
    return _straight(x, y)


def round_input(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """As a hook before a linear module: rounds what goes in, by the range that it has."""
    return (rounded_input(args[0]), *args[1:])


class RunningRange(nn.Module):
    """Rounds inputs by a range that follows those of the batches: r <- 0.9 · r + 0.1 · that of the batch.

    It begins with the range of the first batch and always holds zero. What lies outside is clipped, and gets no
    gradient. The grid is that of `lissom.nn.static`.
    State: buffers `low` and `high` () float32, `seen` () bool.
    """

    low: Tensor
    high: Tensor
    seen: Tensor
    _KEPT = 0.9

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def grid(self) -> tuple[Tensor, Tensor]:
        """The scale, () float32, and the zero point, () uint8."""
        scale = usable((self.high - self.low) / 255)
        return scale, (-self.low / scale).round().clamp(0, 255).to(torch.uint8)

    @torch.no_grad()
    def follow(self, x: Tensor) -> None:
        """Move towards the range of `x`."""
        if x.numel():
            low, high = torch.aminmax(x.float())
            kept = self._KEPT * self.seen.float()
            self.low.mul_(kept).add_((1 - kept) * low.clamp(max=0.0))
            self.high.mul_(kept).add_((1 - kept) * high.clamp(min=0.0))
            self.seen.fill_(True)

    def forward(self, x: Tensor) -> Tensor:
        """x: any shape. Returns it rounded, in its dtype; by its own range when none has been seen yet."""
        if not bool(self.seen):
            return rounded_input(x)
        scale, zero = self.grid()
        with torch.no_grad():
            y = (codes_of(x.float(), scale, zero).float() - zero.float()) * scale
        return _straight(x.clamp(self.low.to(x.dtype), self.high.to(x.dtype)), y.to(x.dtype))


@torch.no_grad()
def quantize(weight: Tensor, kind: Kind, *, by_row: bool = True) -> tuple[Tensor, Tensor]:
    """Codes and scales of a matrix, by the formulas on top. weight: (rows, columns) float32.

    Returns whole numbers (rows, columns) as float32, and the scale of each row (rows,), equal ones if not `by_row`.
    """
    sizes = weight.abs()
    if kind in ("int8", "int4"):
        scale = row_scales(weight, LARGEST[kind])
        scale = scale if by_row else scale.amax().expand_as(scale)
        return (weight / scale[:, None]).round_().clamp_(-LARGEST[kind], LARGEST[kind]), scale
    if kind == "binary":
        scale = usable(_mean(sizes, by_row)).expand(len(weight))
        return torch.where(weight >= 0, 1.0, -1.0), scale
    kept = sizes > 0.7 * _mean(sizes, by_row)[:, None]
    dims = (1,) if by_row else (0, 1)
    scale = (sizes * kept).sum(dims, keepdim=True) / kept.sum(dims, keepdim=True).clamp_min(1)
    return weight.sign() * kept, usable(scale[:, 0]).expand(len(weight))


def _mean(sizes: Tensor, by_row: bool) -> Tensor:
    """(rows,) or (1,)."""
    return sizes.mean(1) if by_row else sizes.mean().reshape(1)


def on_grid(weight: Tensor, scale: Tensor, kind: Kind) -> Tensor | None:
    """The codes that `weight` (rows, columns) is made of at these scales (rows,) or (1,); None if it is not."""
    exact = weight / scale[:, None]
    codes = exact.round()
    fits = ((exact - codes).abs().amax() < 1e-3) & (codes.abs().amax() <= LARGEST[kind])
    return codes if bool(fits) else None


class FakeWeight(nn.Module):
    """Lets a weight be used as its nearest quantized one.

    transposed: the weight is stored as (in, out).
    on: whether it does anything.  noise: share of the weights, drawn at each use, that is quantized in training; the
    others stay as they are and get their exact gradient (Quant-Noise). In eval mode all are quantized.
    """

    def __init__(self, kind: Kind, *, by_row: bool = True, transposed: bool = False) -> None:
        super().__init__()
        self.kind, self.by_row, self.transposed = kind, by_row, transposed
        self.on, self.noise = True, 1.0

    def scales(self, weight: Tensor) -> Tensor:
        """The scale of each row of the dense (out, in) matrix, or the one of all: (out,) or (1,)."""
        found = quantize(self._rows(weight), self.kind, by_row=self.by_row)[1]
        return found if self.by_row else found[:1]

    def forward(self, weight: Tensor) -> Tensor:
        """weight: as it is stored. Returns the same shape, float32."""
        if not self.on:
            return weight
        rows = self._rows(weight)
        fake = self._fake(rows)
        if self.training and self.noise < 1:
            fake = torch.where(torch.rand_like(rows) < self.noise, fake, rows)
        return fake.t() if self.transposed else fake

    def _rows(self, weight: Tensor) -> Tensor:
        return (weight.t() if self.transposed else weight).float()

    def _fake(self, rows: Tensor) -> Tensor:
        with torch.no_grad():
            codes, scale = quantize(rows, self.kind, by_row=self.by_row)
            made = codes * scale[:, None]
        return _straight(rows, made)


class LearnedFakeWeight(FakeWeight):
    """The same with one trained step s for the matrix (LSQ): w' = s · round(clamp(w / s, -Q, Q)), Q the largest code.

        dw'/dw = 1 where |w / s| <= Q, else 0
        dw'/ds = round(w / s) - w / s there, else Q · sign(w)

    step: () the parameter. It begins as s = 2 · mean|w| / sqrt(Q), and its gradient is divided by sqrt(N · Q), with N
    weights in the matrix.
    relative: s = step · mean|w|, so that the range follows the weights (QuantGPT's γ = step · Q); its gradient is not
    divided.
    """

    def __init__(self, kind: Kind, weight: Tensor, *, relative: bool = False, transposed: bool = False) -> None:
        super().__init__(kind, by_row=False, transposed=transposed)
        self.relative, self.largest = relative, LARGEST[kind]
        self.step = nn.Parameter(torch.empty((), dtype=torch.float32, device=weight.device))
        self.reset(weight)

    @torch.no_grad()
    def reset(self, weight: Tensor) -> None:
        """Begin anew with the step that suits `weight`."""
        size = torch.ones(()) if self.relative else weight.float().abs().mean()
        self.step.copy_(2 * size / math.sqrt(self.largest))

    @torch.no_grad()
    def scales(self, weight: Tensor) -> Tensor:
        """The one scale of all rows: (1,)."""
        return self._scale(self._rows(weight)).reshape(1)

    def _scale(self, rows: Tensor) -> Tensor:
        return usable(self.step.abs() * (rows.detach().abs().mean() if self.relative else 1.0))

    def _fake(self, rows: Tensor) -> Tensor:
        factor = 1.0 if self.relative else 1 / math.sqrt(rows.numel() * self.largest)
        scale: Tensor = _Slower.apply(self._scale(rows), factor)  # type: ignore[no-untyped-call]
        inside = (rows / scale).clamp(-self.largest, self.largest)
        return _straight(inside, inside.detach().round()) * scale
