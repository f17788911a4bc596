"""Linear and embedding layers that store 1, 2, 4 or 8 bits a weight, with one float32 scale a row.

Codes are whole numbers: -1 and 1 in one bit, -1 to 1 in two, -7 to 7 in four, -127 to 127 in eight. `code + 1` halved
(one bit) or `code + 2^(bits - 1)` is a number without sign; the numbers of a row stand one after the other in its
bytes, the first in the lowest bits, and zeros fill the last byte:

    [-1, 0, 1, 1, 0] in two bits: 1, 2, 3, 3 | 2  ->  1 + 2·4 + 3·16 + 3·64, 2  =  249, 2

The bytes are kept as int8 tensors, because transformers converts the input of some layers to the dtype of their weight
unless that is int8.

No processor multiplies so few bits: a linear layer unpacks its codes once, to int8 ones, and computes with those as
`lissom.nn.int8` says, or, where its inputs were not rounded while it was trained, with float weights. It is as fast as
an int8 or a float layer, and small on disk; in memory it has both forms. A table unpacks the rows that it is asked for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lissom.nn.int8 import Int8Embedding, Int8Linear

BITS = (1, 2, 4, 8)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Whole numbers (rows, columns) in `bits` bits each: int8 bytes, (rows, ceil(columns · bits / 8))."""
    numbers = (codes.to(torch.int16) + 1) // 2 if bits == 1 else codes.to(torch.int16) + 2 ** (bits - 1)
    each = 8 // bits
    filled = F.pad(numbers, (0, -numbers.shape[1] % each)).reshape(len(codes), -1, each)
    shifted = torch.bitwise_left_shift(filled, _shifts(bits, codes.device))
    return shifted.sum(-1).to(torch.uint8).view(torch.int8)


def unpack_codes(packed: Tensor, columns: int, bits: int) -> Tensor:
    """What `pack_codes` was given, as int8. packed: (..., bytes). Returns (..., columns)."""
    wide = packed.view(torch.uint8)[..., None].to(torch.int16)
    numbers = torch.bitwise_right_shift(wide, _shifts(bits, packed.device)).bitwise_and(2**bits - 1)
    numbers = numbers.flatten(-2)[..., :columns]
    return (2 * numbers - 1 if bits == 1 else numbers - 2 ** (bits - 1)).to(torch.int8)


def _shifts(bits: int, device: torch.device) -> Tensor:
    return torch.arange(0, 8, bits, dtype=torch.int16, device=device)


def _bytes(columns: int, bits: int) -> int:
    return -(-columns * bits // 8)


class LowBitLinear(Int8Linear):
    """A linear layer whose codes take `bits` bits each: (out, bytes of a row), (out,) scales, an optional (out,) bias.

    rounds: whether inputs are rounded to 8 bits while it runs, as by `Int8Linear`; else it computes in float.
    per_token: whether each token has a scale of its own then.
    State: buffers `weight` (int8, the packed bytes), `weight_scale` and `bias` (float32). It has no gradient.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bits: int,
        rounds: bool = True,
        per_token: bool = False,
        bias: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(_bytes(in_features, bits), out_features, bias, device, per_token=per_token)
        self.columns, self.bits, self.rounds = in_features, bits, rounds

    @property
    def in_features(self) -> int:
        """Columns of the weight."""
        return self.columns

    def codes(self) -> Tensor:
        """The weights in units of their row's scale: (out, in) int8, unpacked at each call."""
        return unpack_codes(self.weight, self.columns, self.bits)

    def unpacked(self) -> Int8Linear | nn.Linear:
        """The layer that computes the same from what this one unpacks: int8, or float where inputs are not rounded."""
        if self.rounds:
            shape = (self.in_features, self.out_features)
            made = Int8Linear(*shape, bias=False, device="meta", per_token=self.per_token)
            made.weight, made.weight_scale, made.bias, made.dtype = (
                self.codes(),
                self.weight_scale,
                self.bias,
                self.dtype,
            )
            return made.train(self.training)
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        plain.weight = nn.Parameter(self.dense(), requires_grad=False)
        if self.bias is not None:
            plain.bias = nn.Parameter(self.bias, requires_grad=False)
        return plain.to(self.dtype).train(self.training)

    def _prepare(self) -> Tensor:
        return super()._prepare() if self.rounds else self.dense()

    def _compute(self, x: Tensor) -> Tensor:
        if self.rounds:
            return super()._compute(x)
        return F.linear(x, self._ready().to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    def keep(self, out: Tensor | None = None, in_: Tensor | None = None) -> None:
        """Keep only these output rows and input columns, in this order, in place. out, in_: 1-D int64 index tensors."""
        super().keep(out=out)
        if in_ is not None:
            codes = self.codes()[:, in_.to(self.weight.device)]
            self.weight, self.columns = pack_codes(codes, self.bits), codes.shape[1]

    def extra_repr(self) -> str:
        """Shape and bits."""
        return f"{super().extra_repr()}, bits={self.bits}, rounds={self.rounds}"


class LowBitEmbedding(Int8Embedding):
    """A table whose codes take `bits` bits each, where an nn.Embedding stood: gathers bytes, unpacks, multiplies.

    State: buffers `weight` (rows, bytes of a row) int8 and `weight_scale` (rows,). Otherwise as `Int8Embedding`.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        bits: int,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(num_embeddings, _bytes(embedding_dim, bits), padding_idx, device)
        self.columns, self.bits = embedding_dim, bits

    @property
    def embedding_dim(self) -> int:
        """Columns of the table."""
        return self.columns

    def codes(self) -> Tensor:
        """The table in units of each row's scale: (rows, dim) int8, unpacked at each call."""
        return unpack_codes(self.weight, self.columns, self.bits)

    def unpacked(self) -> Int8Embedding:
        """The int8 table that gives the same rows."""
        made = Int8Embedding(self.num_embeddings, self.embedding_dim, self.padding_idx, device="meta")
        made.weight, made.weight_scale, made.dtype = self.codes(), self.weight_scale, self.dtype
        return made.train(self.training)

    def forward(self, ids: Tensor) -> Tensor:
        """ids: integers of any shape. Returns (*ids.shape, dim)."""
        rows = unpack_codes(F.embedding(ids, self.weight), self.columns, self.bits).float()
        return (rows * F.embedding(ids, self.weight_scale[:, None])).to(self.dtype)

    def linear(self, bias: Tensor | None = None) -> LowBitLinear:
        """The output projection that is tied to this table: both hold the same two tensors."""
        made = LowBitLinear(self.columns, self.num_embeddings, bits=self.bits, bias=False, device="meta")
        made.weight, made.weight_scale, made.dtype = self.weight, self.weight_scale, self.dtype
        made.bias = None if bias is None else bias.detach().float().clone()
        return made

    def extra_repr(self) -> str:
        """Shape and bits."""
        return f"{super().extra_repr()}, bits={self.bits}"


def weights_held(model: nn.Module) -> dict[int, int]:
    """Id of each packed tensor in `model` -> how many weights it holds, which is more than its bytes."""
    low = [one for one in model.modules() if isinstance(one, LowBitLinear | LowBitEmbedding)]
    places = {id(one.weight_positions): 0 for one in low if hasattr(one, "weight_positions")}  # say where, not how much
    rows = [one.out_features if isinstance(one, LowBitLinear) else one.num_embeddings for one in low]
    return places | {id(one.weight): count * one.columns for one, count in zip(low, rows, strict=True)}


def unpack(model: nn.Module) -> None:
    """Put in the place of every low-bit layer of `model` what it unpacks to, in place: see `unpacked`."""
    made: dict[int, nn.Module] = {}
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, LowBitLinear | LowBitEmbedding):
            if id(module) not in made:
                made[id(module)] = module.unpacked()
            model.set_submodule(path, made[id(module)])
