"""The layers of a post-LN encoder that compute with whole numbers alone, by `lissom.nn.integer`.

Between the layers of a block stand int8 codes times their scale, as float32: hidden states for transformers and for
hooks. The scale of each is known to both sides, and who reads them takes the very codes back: `codes_of`. Inside, sums
are of 32 bits, held in int64; nothing is computed with a float but scales.

    attention    q, k, v = rescaled sums, 8 bits; scores in units of 2^-10; softmax in 1/255; context, 8 bits
    output       sum of the map and of what went into the block, 17 bits; layer norm, 8 bits
    intermediate sum in units of 2^-10; GELU; 8 bits (or ReLU, from the sum to 8 bits)

Names of children are those of the layers they stand for. They have no gradient: packing is the last step.
Source: Kim et al. 2021, "I-BERT", section 3 and figure 1, and its code for the number of bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lissom.nn.int8 import Int8Embedding, Int8Linear
from lissom.nn.integer import (
    GELU_LARGEST,
    SCORE_LARGEST,
    UNIT,
    i_gelu,
    i_layer_norm,
    i_softmax,
    integer_product,
    rescale,
)
from lissom.nn.keeps_dtype import KeepsDtype

if TYPE_CHECKING:
    from collections.abc import Callable

CODE = 127  # the largest code of 8 bits
SUM = 2**16 - 1  # the largest part of a sum before a layer norm
Activation: TypeAlias = Literal["gelu", "relu"]


def codes_of(x: Tensor, scale: Tensor, largest: int = CODE) -> Tensor:
    """The whole numbers nearest to x / scale, clamped: int8 up to 127, else int64. x: floating point, any shape."""
    codes = (x.float() / scale).round().clamp(-largest, largest)
    return codes.to(torch.int8 if largest == CODE else torch.int64)


class _Layer(KeepsDtype):
    """Tensors that keep their dtype when the model changes its own. dtype: what the model was last converted to."""

    def __init__(self) -> None:
        super().__init__()
        self.dtype = torch.float32

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        device = next((one.device for one in self._buffers.values() if one is not None), None)
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=device)).dtype
        return super()._apply(fn, recurse)

    def values(self, codes: Tensor, scale: Tensor) -> Tensor:
        """codes · scale, as a hidden state."""
        return (codes.float() * scale).to(self.dtype)


def _one(device: torch.device | str | None) -> Tensor:
    return torch.ones((), dtype=torch.float32, device=device)


class Rescale(nn.Module):
    """q · multiplier / 2^shift, clamped. State: `multiplier` int32 () or (channels,), `shift` int32 ()."""

    multiplier: Tensor
    shift: Tensor

    def __init__(self, largest: int, channels: int | None = None, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.largest = largest
        shape = () if channels is None else (channels,)
        self.register_buffer("multiplier", torch.ones(shape, dtype=torch.int32, device=device))
        self.register_buffer("shift", torch.ones((), dtype=torch.int32, device=device))

    def forward(self, q: Tensor) -> Tensor:
        """q: int64 (..., channels). Returns int64 of the same shape."""
        return rescale(q, self.multiplier, self.shift, self.largest)


class IntegerLinear(Int8Linear):
    """A linear map from int8 codes to rescaled sums.

    State: as `Int8Linear`, but `bias` is int32, in units of input_scale · weight_scale; `input_scale` () float32, only
    to read hidden states with; and that of `rescale`.
    """

    input_scale: Tensor

    def __init__(
        self, in_features: int, out_features: int, largest: int, device: torch.device | str | None = None
    ) -> None:
        super().__init__(in_features, out_features, bias=True, device=device)
        self.register_buffer("bias", torch.zeros(out_features, dtype=torch.int32, device=device))
        self.register_buffer("input_scale", _one(device))
        self.rescale = Rescale(largest, out_features, device)

    def forward(self, x: Tensor) -> Tensor:
        """x: int8 (..., in). Returns int64 (..., out)."""
        rescaled: Tensor = self.rescale(integer_product(x, self.weight.t()) + self.bias)
        return rescaled

    def keep(self, out: Tensor | None = None, in_: Tensor | None = None) -> None:
        """As `Int8Linear.keep`."""
        super().keep(out, in_)
        if out is not None:
            self.rescale.multiplier = self.rescale.multiplier[out.to(self.weight.device)]


class IntegerEmbedding(Int8Embedding):
    """A table of int8 rows that answers in whole multiples of one power of two, which float32 adds up exactly.

    State: as `Int8Embedding`; `multiplier` (rows,) and `shift` () int32; `unit` () float32, the power of two. The
    codes that it answers in are at most `SUM`.
    """

    multiplier: Tensor
    shift: Tensor
    unit: Tensor

    def __init__(
        self, rows: int, dim: int, padding_idx: int | None = None, device: torch.device | str | None = None
    ) -> None:
        super().__init__(rows, dim, padding_idx, device)
        self.register_buffer("multiplier", torch.ones(rows, dtype=torch.int32, device=device))
        self.register_buffer("shift", torch.ones((), dtype=torch.int32, device=device))
        self.register_buffer("unit", _one(device))

    def forward(self, ids: Tensor) -> Tensor:
        """ids: integers of any shape. Returns float32 (*ids.shape, dim), whatever the dtype of the model."""
        codes = F.embedding(ids, self.weight).long()
        return rescale(codes, F.embedding(ids, self.multiplier[:, None]), self.shift, SUM).float() * self.unit


class IntegerLayerNorm(_Layer):
    """Layer norm from whole numbers to int8 codes.

    State: `multiplier` (n,) and `shift` () int32, `offset` (n,) int64, see `i_layer_norm`; `output_scale` () float32.
    The last is a frozen parameter: transformers looks for the dtype of a model among those.
    """

    multiplier: Tensor
    offset: Tensor
    shift: Tensor

    def __init__(self, n: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.register_buffer("multiplier", torch.ones(n, dtype=torch.int32, device=device))
        self.register_buffer("offset", torch.zeros(n, dtype=torch.int64, device=device))
        self.register_buffer("shift", torch.ones((), dtype=torch.int32, device=device))
        self.output_scale = nn.Parameter(_one(device), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: int64 (..., n). Returns int64 codes of `output_scale`."""
        return i_layer_norm(x, self.multiplier, self.offset, self.shift, CODE)


class IntegerEmbeddingNorm(IntegerLayerNorm):
    """The same for a sum of `IntegerEmbedding`. State: also `unit` () float32, theirs."""

    unit: Tensor

    def __init__(self, n: int, device: torch.device | str | None = None) -> None:
        super().__init__(n, device)
        self.register_buffer("unit", _one(device))

    def forward(self, x: Tensor) -> Tensor:
        """x: float32 (..., n), whole multiples of `unit`. Returns hidden states."""
        return self.values(super().forward(codes_of(x, self.unit, 2 * SUM)), self.output_scale)


class IntegerAttention(_Layer):
    """Attention up to its output map. State: that of its maps and of two `Rescale`, `output_scale` () float32.

    heads: how many, of head_dim columns each.
    """

    output_scale: Tensor

    def __init__(self, hidden: int, heads: int, head_dim: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size = heads, head_dim
        self.all_head_size = heads * head_dim
        self.query = IntegerLinear(hidden, self.all_head_size, CODE, device)
        self.key = IntegerLinear(hidden, self.all_head_size, CODE, device)
        self.value = IntegerLinear(hidden, self.all_head_size, CODE, device)
        self.scores = Rescale(SCORE_LARGEST, device=device)
        self.context = Rescale(CODE, device=device)
        self.register_buffer("output_scale", _one(device))

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any) -> tuple[Tensor, None]:
        """hidden_states: (batch, sequence, hidden).  attention_mask: (batch, 1, 1 or sequence, sequence), bool and True
        where attended to, or float and 0 there. Returns (batch, sequence, heads · head_dim), and no probabilities."""
        codes = codes_of(hidden_states, self.query.input_scale)
        q, k, v = (self._by_head(one(codes)) for one in (self.query, self.key, self.value))
        real = attention_mask
        if real is not None and real.dtype != torch.bool:
            real = real >= 0
        shares = i_softmax(self.scores(integer_product(q, k.transpose(-1, -2))), real).to(torch.uint8)
        context = self.context(integer_product(shares, v)).transpose(1, 2)
        return self.values(context.reshape(*hidden_states.shape[:-1], self.all_head_size), self.output_scale), None

    def _by_head(self, codes: Tensor) -> Tensor:
        """(batch, sequence, heads · head_dim) to int8 (batch, heads, sequence, head_dim)."""
        return codes.to(torch.int8).view(*codes.shape[:2], -1, self.attention_head_size).transpose(1, 2)


class IntegerOutput(_Layer):
    """A map back to the width of the block, the sum with what went in, and the layer norm.

    State: that of `dense`, `residual` and `LayerNorm`; `residual_scale` () float32, of what went in.
    """

    residual_scale: Tensor

    def __init__(self, width: int, hidden: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.dense = IntegerLinear(width, hidden, SUM, device)
        self.residual = Rescale(SUM, device=device)
        self.LayerNorm = IntegerLayerNorm(hidden, device)
        self.register_buffer("residual_scale", _one(device))

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """hidden_states: (..., width).  input_tensor: (..., hidden). Returns (..., hidden)."""
        before = self.residual(codes_of(input_tensor, self.residual_scale).long())
        codes = self.LayerNorm(self.dense(codes_of(hidden_states, self.dense.input_scale)) + before)
        return self.values(codes, self.LayerNorm.output_scale)


class IntegerIntermediate(_Layer):
    """The map to the neurons of a feed-forward layer, and GELU or ReLU.

    State: that of `dense` and, with GELU, of `rescale`; `output_scale` () float32. With ReLU `dense` gives the codes.
    """

    output_scale: Tensor

    def __init__(
        self, hidden: int, width: int, activation: Activation, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.activation = activation
        self.dense = IntegerLinear(hidden, width, GELU_LARGEST if activation == "gelu" else CODE, device)
        self.rescale = Rescale(CODE, device=device) if activation == "gelu" else None
        self.register_buffer("output_scale", _one(device))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """hidden_states: (..., hidden). Returns (..., width)."""
        x = self.dense(codes_of(hidden_states, self.dense.input_scale))
        codes = x.clamp(min=0) if self.rescale is None else self.rescale(i_gelu(x, UNIT)[0])
        return self.values(codes, self.output_scale)


GELU_SCALE = i_gelu(torch.zeros((), dtype=torch.int64), UNIT)[1]
"""The scale of what `IntegerIntermediate` rescales after GELU."""
