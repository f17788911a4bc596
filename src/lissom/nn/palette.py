"""Linear and embedding layers that store for each weight a number into a short table of values, a few weights whole.

    w = table[index], or its own float32 value where it is an outlier

Indices take `bits` bits (2, 3, 4 or 8): the eight numbers of eight weights side by side, the first in the lowest bits,
are `bits` bytes, the lowest first; zeros fill the last byte of a row:

    [1, 2, 3, 4] in three bits: 1 + 2·8 + 3·64 + 4·512 = 2257  ->  209, 8

One number may also stand for a vector of several weights side by side in a row, and the table then holds vectors
(product quantization): eight weights to a number of eight bits are one bit a weight.

An outlier has a position, row · columns + column; -1 says that it was cut away. It costs 8 bytes.

Nothing computes with such indices: a linear layer decodes its weight once, to float32, and keeps that beside them. So
it saves space on disk, and neither time nor memory while it runs. A table decodes the rows that it is asked for.
Sources: Zadeh et al. 2020, "GOBO", section 4; vectors: Stock et al. 2020, section 3.1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lissom.nn.low_bit import LowBitEmbedding, LowBitLinear

BITS = (2, 3, 4, 8)
UNUSED = -1  # the position of an outlier that was cut away


def pack_indices(indices: Tensor, bits: int) -> Tensor:
    """Numbers from 0 to 2^bits - 1, (rows, columns), in `bits` bits each: int8, (rows, ceil(columns · bits / 8))."""
    eights = F.pad(indices.to(torch.int64), (0, -indices.shape[1] % 8)).reshape(len(indices), -1, 8)
    words = torch.bitwise_left_shift(eights, bits * torch.arange(8, device=indices.device)).sum(-1)
    parts = torch.bitwise_right_shift(words[..., None], 8 * torch.arange(bits, device=indices.device))
    whole = parts.bitwise_and(255).to(torch.uint8).view(torch.int8).flatten(1)
    return whole[:, : -(-indices.shape[1] * bits // 8)].contiguous()


def unpack_indices(packed: Tensor, columns: int, bits: int) -> Tensor:
    """What `pack_indices` was given, as int64. packed: (rows, bytes). Returns (rows, columns)."""
    numbers = F.pad(packed.view(torch.uint8).to(torch.int64), (0, -packed.shape[1] % bits))
    words = numbers.reshape(len(packed), numbers.shape[1] // bits, bits)
    words = torch.bitwise_left_shift(words, 8 * torch.arange(bits, device=packed.device)).sum(-1)
    eights = torch.bitwise_right_shift(words[..., None], bits * torch.arange(8, device=packed.device))
    return eights.bitwise_and(2**bits - 1).flatten(1)[:, :columns]


class _Palette(nn.Module):
    """What both layers share: the table, and the outliers with their positions."""

    weight: Tensor
    weight_table: Tensor
    weight_outliers: Tensor
    weight_positions: Tensor
    columns: int
    bits: int
    vector: int

    def _hold(self, rows: int, bits: int, vector: int, outliers: int) -> None:
        device = self.weight.device
        self.bits, self.vector = bits, vector
        self.weight = _bytes(rows, self.columns // vector, bits, device)
        self.register_buffer("weight_scale", None)
        shape = (2**bits,) if vector == 1 else (2**bits, vector)
        self.register_buffer("weight_table", torch.zeros(shape, device=device))
        self.register_buffer("weight_outliers", torch.zeros(outliers, device=device))
        self.register_buffer("weight_positions", torch.full((outliers,), UNUSED, dtype=torch.int32, device=device))

    def codes(self) -> Tensor:
        """Which entry of the table each weight has: (rows, columns / vector) int64, unpacked at each call."""
        return self._unpacked(self.weight)

    def _unpacked(self, packed: Tensor) -> Tensor:
        return unpack_indices(packed, self.columns // self.vector, self.bits)

    def dense(self) -> Tensor:
        """The weights: (rows, columns) float32, a new tensor. Raises ValueError for a position outside of them."""
        self.check()
        flat = self.weight_table[self.codes()].flatten()
        if not flat.is_meta:
            used = self.weight_positions != UNUSED
            flat[self.weight_positions[used].long()] = self.weight_outliers[used]
        return flat.reshape(-1, self.columns)

    def check(self) -> None:
        """Raise ValueError when the position of an outlier is not in the matrix. An empty (meta) layer passes."""
        positions, size = self.weight_positions, len(self.weight) * self.columns
        if positions.is_meta or not len(positions):
            return
        low, high = int(positions.min()), int(positions.max())
        if low < UNUSED or high >= size:
            wrong = low if low < UNUSED else high
            raise ValueError(f"an outlier stands at position {wrong} of a matrix of {size} weights")

    def _cut(self, out: Tensor | None, in_: Tensor | None) -> None:
        """Keep these rows and columns. Outliers elsewhere become unused, so that shapes never depend on numbers.

        Raises ValueError for columns that are not whole vectors.
        """
        device, before = self.weight.device, self.columns
        rows = torch.arange(len(self.weight), device=device) if out is None else out.to(device)
        columns = torch.arange(before, device=device) if in_ is None else in_.to(device)
        at = self.weight_positions.long()
        row = _places(rows, len(self.weight))[at.clamp(min=0) // before]
        column = _places(columns, before)[at.clamp(min=0) % before]
        kept = (at >= 0) & (row >= 0) & (column >= 0)
        moved = torch.where(kept, row * len(columns) + column, torch.full_like(at, UNUSED))
        self.weight_positions = moved.to(torch.int32)
        if in_ is None:
            self.weight = self.weight[rows]
        else:
            self.weight = pack_indices(self.codes()[rows][:, _whole(in_, self.vector).to(device)], self.bits)
            self.columns = len(columns)


def _places(kept: Tensor, size: int) -> Tensor:
    """For each old number its new one, or -1."""
    found = torch.full((size,), -1, dtype=torch.int64, device=kept.device)
    found[kept] = torch.arange(len(kept), device=kept.device)
    return found


def _whole(columns: Tensor, vector: int) -> Tensor:
    """The numbers of the vectors that are made of `columns`."""
    first = columns[::vector]
    steps = torch.arange(vector, device=columns.device)
    if len(columns) % vector or not torch.equal((first[:, None] + steps).flatten(), columns) or (first % vector).any():
        raise ValueError(f"columns that are stored as vectors of {vector} cannot be cut apart")
    return first // vector


class PaletteLinear(_Palette, LowBitLinear):
    """A linear layer of `bits` bits an index and `outliers` whole weights, computed in float.

    vector: weights that one index stands for; it divides the columns.
    State: buffers `weight` (int8, the bytes of `pack_indices`), `weight_table` (2^bits,) or (2^bits, vector),
    `weight_outliers` (outliers,) and `bias` (out,), all float32, and `weight_positions` (outliers,) int32. It has no
    gradient.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bits: int,
        vector: int = 1,
        outliers: int = 0,
        bias: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        LowBitLinear.__init__(self, in_features, out_features, bits=2, rounds=False, bias=bias, device=device)
        self._hold(out_features, bits, vector, outliers)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in). Returns (..., out), in the dtype of `x`."""
        return self._compute(x) if torch.compiler.is_compiling() else super().forward(x)

    def keep(self, out: Tensor | None = None, in_: Tensor | None = None) -> None:
        """Keep only these output rows and input columns, in this order, in place. out, in_: 1-D int64 index tensors."""
        self._cut(out, in_)
        if out is not None and self.bias is not None:
            self.bias = self.bias[out.to(self.bias.device)]


class PaletteEmbedding(_Palette, LowBitEmbedding):
    """A table of `bits` bits an index and `outliers` whole numbers, where an nn.Embedding stood.

    State: as of `PaletteLinear`, without a bias. It answers in `dtype`, the dtype the model was last converted to.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        bits: int,
        vector: int = 1,
        outliers: int = 0,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        LowBitEmbedding.__init__(self, num_embeddings, embedding_dim, bits=2, padding_idx=padding_idx, device=device)
        self._hold(num_embeddings, bits, vector, outliers)

    def forward(self, ids: Tensor) -> Tensor:
        """ids: integers of any shape. Returns (*ids.shape, dim). Raises ValueError as `dense`."""
        self.check()
        wanted, back = torch.unique(ids, return_inverse=True)
        rows = self.weight_table[self._unpacked(self.weight[wanted])].flatten(1)
        if len(wanted) and len(self.weight_positions):
            at = self.weight_positions.long()
            row = torch.searchsorted(wanted.long(), at // self.columns).clamp(max=len(wanted) - 1)
            here = (wanted[row] == at // self.columns) & (at >= 0)
            rows[row[here], at[here] % self.columns] = self.weight_outliers[here]
        return rows[back].to(self.dtype)

    def unpacked(self) -> nn.Embedding:  # type: ignore[override]  # no int8 table holds these numbers
        """The frozen float table that gives the same rows."""
        made = nn.Embedding(self.num_embeddings, self.columns, self.padding_idx, device="meta")
        made.weight = nn.Parameter(self.dense(), requires_grad=False)
        return made.to(self.dtype).train(self.training)

    def linear(self, bias: Tensor | None = None) -> PaletteLinear:
        """The output projection that is tied to this table: both hold the same tensors."""
        sizes = {"bits": self.bits, "vector": self.vector}
        made = PaletteLinear(self.columns, self.num_embeddings, **sizes, bias=False, device="meta")
        for name in ("weight", "weight_table", "weight_outliers", "weight_positions"):
            setattr(made, name, getattr(self, name))
        made.dtype, made.bias = self.dtype, None if bias is None else bias.detach().float().clone()
        return made

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows, in this order, in place. rows: 1-D int64 indices. `padding_idx` moves with its row."""
        self._cut(rows, None)
        if self.padding_idx is not None:
            at = (rows == self.padding_idx).nonzero()
            self.padding_idx = int(at[0]) if len(at) else None


def _bytes(rows: int, columns: int, bits: int, device: torch.device | str | None) -> Tensor:
    return torch.zeros(rows, -(-columns * bits // 8), dtype=torch.int8, device=device)
