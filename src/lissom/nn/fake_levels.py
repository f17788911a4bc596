"""Training of levels and binary weights: gradients for `lissom.nn.levels`, centred signs, the split of ternary weights.

Levels (LSQ, as BiT has it). With z = (x - shift) / scale and y = scale · level(z), where z is within the levels

    dy/dx = 1      dy/dshift = -1      dy/dscale = level(z) - z

and beyond them 0, 0 and the nearest level. The gradients of scale and shift are divided by sqrt(N · highest level), N
the values of x. At the first batch shift = 0 and scale = mean|x| for -1 and 1, else 2 · mean|x| / sqrt(highest level).
Bi-Attention: the gradient goes through score >= 0 where |score| <= 1.

Centred binary weights:  code = 1 where w >= mean(w), else -1;  scale = mean|w - mean(w)|, over a row or the matrix.

Splitting (TWS). A ternary weight (`lissom.nn.fake_quant`) is a sum of two binary ones when w is split into

    (a·w, (1 - a)·w)  where its code is not 0;   (b + w, -b)  where it is 0 and w > 0;   else (b, -b + w)
    a = (S_I + S_K - S_J) / (2 S_I)      b = (n / |I| · S_I - S) / (2 (|J| + |K|))

with I, J, K these three sets, n weights in all, S sums of |w|: the signs of both halves times their own mean sizes add
up to the ternary weight. Where the small weights of one sign outweigh all large ones, a would leave 0 to 1 and is kept
there: then the sum is near, not equal.
Sources: Esser et al. 2020 (LSQ), eq. 1 to 3; Liu et al. 2022 (BiT), section 3.1; Qin et al. 2022 (BiBERT), sections 3.1
and 3.2; Bai et al. 2021 (BinaryBERT), section 3.2, eq. 5 to 7.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lissom.nn.fake_quant import FakeWeight, _Slower, _straight, quantize
from lissom.nn.int8 import usable
from lissom.nn.levels import AttentionLevels, Levels, Rule


def _as_it_is(x: Tensor) -> Tensor:
    return x


class LearnedLevels(Levels):
    """`Levels` whose scale and shift are trained.

    agreed: makes of what one process found what all of them take.
    on: whether `before` does anything.
    State: parameters `scale` and `shift`, and the buffer `ready`: for how many bits they were begun, 0 for none.
    """

    ready: Tensor

    def __init__(
        self,
        bits: int,
        *,
        positive: bool = False,
        agreed: Callable[[Tensor], Tensor] = _as_it_is,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(bits, positive=positive, device=device)
        self.agreed = agreed
        for name in ("scale", "shift"):
            value = self._buffers.pop(name)
            self.register_parameter(name, nn.Parameter(value))  # type: ignore[arg-type]
        self.register_buffer("ready", torch.zeros((), dtype=torch.int32, device=device))
        self.on = True

    @torch.no_grad()
    def begin(self, size: Tensor) -> None:
        """Start with what suits inputs of the mean magnitude `size` ()."""
        plain = self.bits == 1 and not self.positive
        self.scale.copy_(usable(size if plain else 2 * size / math.sqrt(self.bounds[1])))
        self.shift.zero_()
        self.ready.fill_(self.bits)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `Levels.parts`, with gradients."""
        x = x.float()
        if self.training and int(self.ready) != self.bits:
            self.begin(self.agreed(x.detach().abs().mean()))
        factor = 1 / math.sqrt(max(x.numel(), 1) * self.bounds[1])
        scale: Tensor = _Slower.apply(usable(self.scale), factor)  # type: ignore[no-untyped-call]
        shift: Tensor = _Slower.apply(self.shift, factor)  # type: ignore[no-untyped-call]
        inside = ((x - shift) / scale).clamp(*self.bounds)
        return _straight(inside, self.whole(inside.detach())), scale

    def before(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """As a hook before a module: puts its input on the levels."""
        return (self(args[0]), *args[1:]) if self.on else None

    def stored(self) -> dict[str, Tensor]:
        """What `Levels` keeps of it."""
        return {"scale": usable(self.scale.detach()).clone(), "shift": self.shift.detach().clone()}


class LearnedAttentionLevels(AttentionLevels):
    """`AttentionLevels` that are trained."""

    def __init__(self, bits: int, rule: Rule, agreed: Callable[[Tensor], Tensor] = _as_it_is) -> None:
        super().__init__(bits, rule, functools.partial(LearnedLevels, agreed=agreed))

    def seen(self, score: Tensor) -> Tensor:
        """1 where the score is not negative, else 0; with a gradient near that border."""
        return _straight(score.clamp(-1, 1), super().seen(score.detach()))


class CentredFakeWeight(FakeWeight):
    """Binary weights whose border is the mean of the row or matrix."""

    def __init__(self, *, by_row: bool = True, transposed: bool = False) -> None:
        super().__init__("binary", by_row=by_row, transposed=transposed)

    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (rows, columns) and the scale of each row (rows,) of a stored weight."""
        return self._codes(self._rows(weight.detach()))

    def _codes(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        centred = rows - (rows.mean(1, keepdim=True) if self.by_row else rows.mean())
        return quantize(centred, "binary", by_row=self.by_row)

    def _fake(self, rows: Tensor) -> Tensor:
        with torch.no_grad():
            codes, scale = self._codes(rows)
            made = codes * scale[:, None]
        return _straight(rows, made)


class FakePlanes(FakeWeight):
    """The sum of two binary weights: of the stored one and of the parameter `second`, of the same shape."""

    def __init__(self, second: Tensor, *, by_row: bool = True, transposed: bool = False) -> None:
        super().__init__("binary", by_row=by_row, transposed=transposed)
        self.second = nn.Parameter(second)

    def forward(self, weight: Tensor) -> Tensor:
        """weight: as it is stored, the first plane. Returns the sum, in the same shape."""
        return super().forward(weight) + super().forward(self.second)

    def planes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (2 · rows, columns) and scales (2 · rows,), the first plane first."""
        both = [quantize(self._rows(one.detach()), "binary", by_row=self.by_row) for one in (weight, self.second)]
        return torch.cat([codes for codes, _ in both]), torch.cat([scale for _, scale in both])


@torch.no_grad()
def split_ternary(weight: Tensor, *, by_row: bool = True) -> tuple[Tensor, Tensor]:
    """Two matrices whose sum is `weight`, and whose binary forms add up to its ternary one. (rows, columns) float32."""
    codes, _ = quantize(weight, "ternary", by_row=by_row)
    size, large, plus = weight.abs(), codes != 0, (codes == 0) & (weight > 0)
    minus = ~(large | plus)

    def total(x: Tensor) -> Tensor:
        return x.float().sum(1, keepdim=True) if by_row else x.float().sum()

    big = total(size * large)
    a = ((big + total(size * minus) - total(size * plus)) / (2 * usable(big))).clamp(0, 1)
    count, small = total(torch.ones_like(size)), total(~large)
    b = (count / total(large).clamp_min(1) * big - total(size)) / (2 * small.clamp_min(1))
    b = b.expand_as(size) if by_row else b
    first = torch.where(large, a * weight, torch.where(plus, b + weight, b))
    return first, weight - first
