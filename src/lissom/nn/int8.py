"""Linear and embedding layers that hold int8 weights and compute with them.

Weights are symmetric: `w ≈ weight · weight_scale`, one float32 scale an output channel (a row), codes in [-127, 127].
Activations of a linear layer are quantized while it runs, with one scale for the whole tensor, by the formula of
ONNX `DynamicQuantizeLinear`, so that torch and ONNX Runtime compute the same numbers:

    scale = (max(x, 0) - min(x, 0)) / 255        zero = round(-min(x, 0) / scale)
    code = clamp(round(x / scale) + zero, 0, 255)              (rounding is half to even)

One scale a tensor means that the answer of one text depends slightly on its batch, as in every runtime that uses this
operator. With one scale a token (Yao et al. 2022, "ZeroQuant", section 4.1) it does not:

    scale = max|x| / 127 of the token        code = round(x / scale) + 128, in 1 .. 255

Speed against float32 `linear` (2 cores with AVX-512 VNNI, torch 2.13, all quantization of activations included):
1 token 0.2 to 1 times, 64 tokens 1.7 to 5 times, 512 tokens 4 to 7 times, 4,096 tokens 4 to 7 times, at 384 → 384,
384 → 1536 and 1536 → 384, on one thread as on two. The kernel is oneDNN's; it was faster than `torch._int_mm` with its
corrections written out (2 to 9 ms against 1.4 to 4 ms for 4,096 tokens on two threads) and does not need the quantized
tensor types that torch is removing. It runs where it is exact: on processors with VNNI. Elsewhere, CUDA included, the
same integers are multiplied as float32: the same answers up to float32 rounding, without the gain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from lissom.nn.keeps_dtype import KeepsDtype

if TYPE_CHECKING:
    from collections.abc import Callable

_LARGEST = 127  # symmetric: -128 is not used

Rounded: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Codes of activations, uint8, with their scale float32, () or one a token (tokens, 1), and zero point ()."""


def row_scales(weight: Tensor, largest: int = _LARGEST) -> Tensor:
    """One scale a row, at which its largest magnitude gets the code `largest`. weight: (rows, columns) float32."""
    return usable(weight.abs().amax(dim=1) / largest)


def usable(scale: Tensor) -> Tensor:
    """`scale` (float32), but not zero: that of a row of zeros can be divided by."""
    return scale.clamp_min(torch.finfo(torch.float32).tiny)


def quantize_rows(weight: Tensor, largest: int = _LARGEST) -> tuple[Tensor, Tensor]:
    """`weight` as int8 codes and one float32 scale a row, by the largest magnitude of the row.

    weight: (rows, columns), floating point.  largest: the code of that magnitude, 127 for 8 bits and 63 for 7.
    Returns (rows, columns) int8 and (rows,) float32.
    Raises ValueError when `weight` holds NaN or infinity.
    """
    full = weight.detach().float()
    scale = row_scales(full, largest)
    if not bool(torch.isfinite(scale).all()):
        raise ValueError("the weight holds NaN or infinity and cannot be quantized")
    codes = (full / scale[:, None]).round_().clamp_(-largest, largest)
    return codes.to(torch.int8), scale


def quantize_activation(x: Tensor) -> Rounded:
    """ONNX DynamicQuantizeLinear. x: float32, not empty. Returns uint8 codes, scale () and zero point () as float32."""
    low, high = torch.aminmax(x)
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = (-low / scale).round_().clamp_(0, 255)
    return (x / scale).round_().add_(zero).clamp_(0, 255).to(torch.uint8), scale, zero


def quantize_tokens(x: Tensor) -> Rounded:
    """One scale a token, symmetric. x: (..., in) float32. Returns uint8 codes, scales (..., 1) and zero point 128."""
    scale = usable(x.abs().amax(-1, keepdim=True) / _LARGEST)
    zero = torch.full((), _LARGEST + 1.0, device=x.device)
    return (x / scale).round_().add_(zero).clamp_(0, 255).to(torch.uint8), scale, zero


def exact(rounded: Rounded, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """The definition, in float32 arithmetic on whole numbers. rounded: of (tokens, in). Returns (tokens, out)."""
    codes, scale, zero = rounded
    product = F.linear(codes.float() - zero, weight.float()) * (weight_scale * scale)
    return product if bias is None else product + bias


def _onednn(rounded: Rounded, packed: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """The same by oneDNN's int8 kernel. packed: from `_pack`."""
    codes, scale, zero = rounded
    no_zero = torch.zeros_like(weight_scale, dtype=torch.int32)
    one, inside = (scale, bias) if scale.dim() == 0 else (torch.ones(()), None)
    y: Tensor = torch.ops.onednn.qlinear_pointwise.tensor(
        codes, one, zero.int(), packed, weight_scale, no_zero, inside, 1.0, 0, torch.float32, "none", [], ""
    )
    if scale.dim():
        y = y.mul_(scale) if bias is None else y.mul_(scale).add_(bias)
    return y


def _pack(weight: Tensor) -> Tensor:
    """`weight` (out, in) in oneDNN's own layout; an opaque tensor of the same size."""
    packed: Tensor = torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)
    return packed


def _has_kernel() -> bool:
    """Whether the int8 kernel exists and adds up in 32 bits (without VNNI it saturates at 16)."""
    vnni = getattr(torch.cpu, "_is_vnni_supported", None)
    return bool(torch._C._has_mkldnn and vnni is not None and vnni())


_KERNEL = _has_kernel()


@torch.library.custom_op(
    "lissom::int8_linear",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias) -> Tensor",
)
def int8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """A whole int8 linear layer as one node of a traced graph, for exporters. x: (..., in). Returns (..., out)."""
    flat = x.reshape(-1, weight.shape[1]).float()
    if not flat.numel():
        return x.new_empty(*x.shape[:-1], weight.shape[0])
    y = exact(quantize_activation(flat), weight, weight_scale, bias)
    return y.to(x.dtype).reshape(*x.shape[:-1], weight.shape[0])


@int8_linear.register_fake
def _(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op(
    "lissom::token_int8_linear",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias) -> Tensor",
)
def token_int8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """The same with one scale a token. x: (..., in). Returns (..., out)."""
    flat = x.reshape(-1, weight.shape[1]).float()
    y = exact(quantize_tokens(flat), weight, weight_scale, bias)
    return y.to(x.dtype).reshape(*x.shape[:-1], weight.shape[0])


@token_int8_linear.register_fake
def _(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


class _Untrained(torch.autograd.Function):
    """Passes `y` on and refuses to go backward through it."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError("int8 layers have no gradient: train first, and pack to int8 as the last step")


class _Int8(KeepsDtype):
    """What both layers share: state in buffers, and scales that stay float32 when the model changes its dtype.

    dtype: the floating dtype the model was last converted to.
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, rows: int, columns: int, device: torch.device | str | None) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(rows, columns, dtype=torch.int8, device=device))
        self.register_buffer("weight_scale", torch.ones(rows, dtype=torch.float32, device=device))
        self.dtype = torch.float32

    def codes(self) -> Tensor:
        """The weights in units of their row's scale: (rows, columns) int8."""
        return self.weight

    def dense(self) -> Tensor:
        """The weights that the codes stand for: (rows, columns) float32, a new tensor."""
        return self.codes().float() * self.weight_scale[:, None]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.weight.device)).dtype
        return super()._apply(fn, recurse)


class Int8Linear(_Int8):
    """A linear layer whose weight is int8: (out, in) codes, (out,) scales, an optional (out,) float32 bias.

    State: buffers `weight` (int8), `weight_scale`, `bias`. Answers in the dtype of its input. It has no gradient:
    packing is the last step, after training; going backward through it raises RuntimeError.
    A layer that has run on a processor with the int8 kernel also keeps a packed copy of the codes (so 2 bytes a weight
    while it runs, 1 on disk).
    rounds: whether inputs are rounded to 8 bits; always so, but for layers of fewer bits (`lissom.nn.low_bit`).
    per_token: whether each token has a scale of its own, else one serves the whole tensor.
    """

    bias: Tensor | None
    rounds: bool = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        *,
        per_token: bool = False,
    ) -> None:
        super().__init__(out_features, in_features, device)
        self.per_token = per_token
        self.register_buffer("bias", torch.zeros(out_features, device=device) if bias else None)
        self._packed: tuple[Tensor, int, Tensor] | None = None

    @classmethod
    def from_weight(cls, weight: Tensor, bias: Tensor | None = None) -> Int8Linear:
        """The layer nearest to `weight` (out, in) and `bias` (out,), on their device.

        Raises ValueError when `weight` holds NaN or infinity.
        """
        made = cls(weight.shape[1], weight.shape[0], bias=bias is not None, device=weight.device)
        made.weight, made.weight_scale = quantize_rows(weight)
        made.bias = None if bias is None else bias.detach().float().clone()
        made.dtype = weight.dtype
        return made

    @property
    def in_features(self) -> int:
        """Columns of the weight."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """Rows of the weight."""
        return self.weight.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in). Returns (..., out), in the dtype of `x`."""
        if torch.compiler.is_compiling():
            return self._traced(x)
        with torch.no_grad():
            y = self._compute(x)
        if x.requires_grad and torch.is_grad_enabled():
            refusing: Tensor = _Untrained.apply(y, x)  # type: ignore[no-untyped-call]
            return refusing
        return y

    def _traced(self, x: Tensor) -> Tensor:
        """The whole layer as one node of a graph."""
        linear = torch.ops.lissom.token_int8_linear if self.per_token else torch.ops.lissom.int8_linear
        y: Tensor = linear(x, self.codes(), self.weight_scale, self.bias)
        return y

    def _compute(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, self.in_features).float()
        if not flat.numel():
            return x.new_empty(*x.shape[:-1], self.out_features)
        kernel = _onednn if self._has_kernel() else exact
        y = kernel(self._rounded(flat), self._ready(), self.weight_scale, self.bias)
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def _rounded(self, x: Tensor) -> Rounded:
        """What the inputs are rounded to. x: (tokens, in) float32, not empty."""
        return quantize_tokens(x) if self.per_token else quantize_activation(x)

    def _has_kernel(self) -> bool:
        return _KERNEL and self.weight.device.type == "cpu"

    def _prepare(self) -> Tensor:
        """The weight in the form that it is computed with on its device."""
        return _pack(self.codes()) if self._has_kernel() else self.codes()

    def _ready(self) -> Tensor:
        """What `_prepare` gives, made once for each weight."""
        version = -1 if self.weight.is_inference() else self.weight._version
        if self._packed is None or self._packed[0] is not self.weight or self._packed[1] != version:
            self._packed = (self.weight, version, self._prepare())
        return self._packed[2]

    def keep(self, out: Tensor | None = None, in_: Tensor | None = None) -> None:
        """Keep only these output rows and input columns, in this order, in place. out, in_: 1-D int64 index tensors."""
        if out is not None:
            out = out.to(self.weight.device)
            self.weight, self.weight_scale = self.weight[out], self.weight_scale[out]
            self.bias = None if self.bias is None else self.bias[out]
        if in_ is not None:
            self.weight = self.weight[:, in_.to(self.weight.device)].contiguous()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}  # the packed copy is opaque to copying, and cheap to make again

    def extra_repr(self) -> str:
        """Shape, as nn.Linear prints it."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Int8Embedding(_Int8):
    """A table of int8 rows, each with its own scale, where an nn.Embedding stood: gathers, then multiplies.

    State: buffers `weight` (rows, dim) int8 and `weight_scale` (rows,). It answers in `dtype`, the floating dtype the
    model was last converted to (float32 at first). The table is frozen: it has no gradient.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, device)
        self.padding_idx = padding_idx

    @classmethod
    def from_weight(cls, weight: Tensor, padding_idx: int | None = None) -> Int8Embedding:
        """The table nearest to `weight` (rows, dim), on its device.

        Raises ValueError when `weight` holds NaN or infinity.
        """
        made = cls(weight.shape[0], weight.shape[1], padding_idx, device=weight.device)
        made.weight, made.weight_scale = quantize_rows(weight)
        made.dtype = weight.dtype
        return made

    @property
    def num_embeddings(self) -> int:
        """Rows of the table."""
        return self.weight.shape[0]

    @property
    def embedding_dim(self) -> int:
        """Columns of the table."""
        return self.weight.shape[1]

    def forward(self, ids: Tensor) -> Tensor:
        """ids: integers of any shape. Returns (*ids.shape, dim)."""
        rows = F.embedding(ids, self.weight).float()
        return (rows * F.embedding(ids, self.weight_scale[:, None])).to(self.dtype)

    def linear(self, bias: Tensor | None = None) -> Int8Linear:
        """The output projection that is tied to this table: both hold the same two tensors."""
        made = Int8Linear(self.embedding_dim, self.num_embeddings, bias=bias is not None, device="meta")
        made.weight, made.weight_scale, made.dtype = self.weight, self.weight_scale, self.dtype
        made.bias = None if bias is None else bias.detach().float().clone()
        return made

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows, in this order, in place. rows: 1-D int64 indices. `padding_idx` moves with its row."""
        if self.padding_idx is not None:  # looked for before the rows go where the weight is, which may be meta
            at = (rows == self.padding_idx).nonzero()
            self.padding_idx = int(at[0]) if len(at) else None
        rows = rows.to(self.weight.device)
        self.weight, self.weight_scale = self.weight[rows], self.weight_scale[rows]

    def extra_repr(self) -> str:
        """Shape, as nn.Embedding prints it."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"
