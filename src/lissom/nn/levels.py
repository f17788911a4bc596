"""Activations on 2^bits levels with one scale and shift, and attention that computes with such.

    x -> scale · level,   z = (x - shift) / scale
    positive:  level = clip(round(z), 0, 2^bits - 1)
    else:      level = clip(round(z), -2^(bits - 1), 2^(bits - 1) - 1);  of one bit: 1 where z >= 0, else -1

Attention multiplies levels, which are whole numbers, and then their scales, so that a score which is zero is zero in
every engine:

    score   = (level(q) · level(k)^T) · scale_q · scale_k / sqrt(d)
    softmax:  weight = level of softmax(score) · its scale
    bool:     weight = 1 where score >= 0, else 0              (no softmax: nothing is divided by the length)
    context = (weight · level(v)) · scale_v

and a hidden position has the weight 0. No engine has kernels for so few bits: this runs in float.
Sources: Liu et al. 2022 (BiT), sections 3.1 and 3.2: elastic binarization and the two sets. Qin et al. 2022 (BiBERT),
section 3.2: Bi-Attention. Differs: no dropout of attention weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lissom.nn.int8 import usable
from lissom.nn.keeps_dtype import KeepsDtype

Rule = Literal["softmax", "bool"]
ATTENTION = "lissom_levels"
"""The name of `level_attention` among the kinds of attention of transformers."""


def bounds(bits: int, *, positive: bool) -> tuple[int, int]:
    """The lowest and the highest level; all between are levels too, but for -1 and 1."""
    if positive:
        return 0, 2**bits - 1
    return (-1, 1) if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


class Levels(KeepsDtype):
    """Puts a tensor on its levels.

    State: buffers `scale` and `shift`, () float32 whatever dtype the model is converted to, 1 and 0 at first.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, bits: int, *, positive: bool = False, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.bits, self.positive = bits, positive
        self.register_buffer("scale", torch.ones((), dtype=torch.float32, device=device))
        self.register_buffer("shift", torch.zeros((), dtype=torch.float32, device=device))

    @property
    def bounds(self) -> tuple[int, int]:
        """The lowest and the highest level."""
        return bounds(self.bits, positive=self.positive)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The levels of `x`, whole numbers in float32, and the scale ()."""
        scale = usable(self.scale)
        return self.whole((x.float() - self.shift) / scale), scale

    def whole(self, z: Tensor) -> Tensor:
        """The level nearest to `z`, by the formulas on top."""
        if self.bits == 1 and not self.positive:
            return torch.where(z >= 0, 1.0, -1.0)
        return z.round().clamp(*self.bounds)

    def forward(self, x: Tensor) -> Tensor:
        """x: any shape. Returns scale · level, in the dtype of `x`."""
        level, scale = self.parts(x)
        return (level * scale).to(x.dtype)

    def extra_repr(self) -> str:
        """Bits and set."""
        return f"bits={self.bits}, positive={self.positive}"


class AttentionLevels(nn.Module):
    """The levels of one attention layer: of queries, keys, values and, with a softmax, of its weights (positive).

    make: what makes each of the four, as `Levels`.
    """

    def __init__(self, bits: int, rule: Rule, make: Callable[..., Levels] = Levels) -> None:
        super().__init__()
        self.rule = rule
        self.q, self.k, self.v = (make(bits) for _ in range(3))
        self.weights = make(bits, positive=True) if rule == "softmax" else None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, scaling: float) -> tuple[Tensor, Tensor]:
        """q: (batch, heads, queries, d).  k, v: (batch, heads, keys, d).  hidden: True where a query may not look.

        Returns the contexts (batch, heads, queries, d) and weights (batch, heads, queries, keys), float32.
        """
        (q, q_scale), (k, k_scale), (v, v_scale) = self.q.parts(q), self.k.parts(k), self.v.parts(v)
        score = (q @ k.transpose(-1, -2)).float() * (q_scale * k_scale * scaling)
        if self.weights is not None:
            shown = score if hidden is None else score.masked_fill(hidden, torch.finfo(torch.float32).min)
            level, scale = self.weights.parts(shown.softmax(-1))
        else:
            level, scale = self.seen(score), torch.ones_like(v_scale)
        if hidden is not None:
            level = level.masked_fill(hidden, 0.0)
        return (level @ v).float() * (scale * v_scale), level * scale

    def seen(self, score: Tensor) -> Tensor:
        """1 where the score is not negative, else 0."""
        return torch.where(score >= 0, 1.0, 0.0)


def level_attention(  # noqa: PLR0917 - transformers gives them by position
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attention by `module.levels`, as transformers calls it.

    query: (batch, heads, queries, d).  key, value: (batch, kv_heads, keys, d).  attention_mask: what is added to the
    scores, or True where a query looks.  Returns contexts (batch, queries, heads, d), and weights.
    """
    levels: AttentionLevels = module.levels  # type: ignore[assignment]
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    hidden = None
    if attention_mask is not None:
        mask = attention_mask[..., : key.shape[-2]]
        hidden = ~mask if mask.dtype == torch.bool else mask < 0
    context, weights = levels(query, key, value, hidden, scaling or 1 / math.sqrt(query.shape[-1]))
    return context.to(query.dtype).transpose(1, 2).contiguous(), weights.to(query.dtype)
