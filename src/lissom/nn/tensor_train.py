"""A table of tokens as a chain of three small cores: row i is a product of one slice of each.

With i = (i1, i2, i3) in the mixed base of `rows` and a row of d1 · d2 · d3 numbers,
E[i, (j1, j2, j3)] = Σ over a, b of first[i1, j1, a] · middle[i2, a, j2, b] · last[i3, b, j3].
Sources: Oseledets 2011, "Tensor-train decomposition", section 2; Hrinchuk et al. 2020, "Tensorized embedding layers",
section 3.2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding


class TensorTrainEmbedding(nn.Module):
    """`first` (v1, d1 r1), `middle` (v2, r1 d2 r2), `last` (v3, r2 d3); only the slices of the ids given are read."""

    def __init__(
        self,
        num_embeddings: int,
        rows: tuple[int, int, int],
        columns: tuple[int, int, int],
        ranks: tuple[int, int],
        *,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """rows: v1, v2, v3, whose product is at least `num_embeddings`.  columns: d1, d2, d3.  ranks: r1, r2."""
        super().__init__()
        self.num_embeddings, self.rows, self.columns, self.ranks = num_embeddings, rows, columns, ranks
        self.embedding_dim = math.prod(columns)
        self.padding_idx = padding_idx
        before, behind = (1, *ranks), (*ranks, 1)
        self.first, self.middle, self.last = (
            nn.Parameter(torch.zeros(size, a * width * b, device=device, dtype=dtype))
            for size, a, width, b in zip(rows, before, columns, behind, strict=True)
        )

    @property
    def weight(self) -> Tensor:
        """The whole table (rows, width); computed at each call, not stored."""
        return self(torch.arange(self.num_embeddings, device=self.first.device))  # type: ignore[no-any-return]

    def forward(self, ids: Tensor) -> Tensor:
        """ids: (...) -> (..., width)."""
        (_, v2, v3), (d1, d2, d3), (r1, r2) = self.rows, self.columns, self.ranks
        number = ids.reshape(-1)
        rest = number // v3
        first = embedding(rest // v2, self.first).view(-1, d1, r1)
        middle = embedding(rest % v2, self.middle).view(-1, r1, d2 * r2)
        last = embedding(number % v3, self.last).view(-1, r2, d3)
        found = (first @ middle).view(-1, d1 * d2, r2) @ last
        return found.view(*ids.shape, self.embedding_dim)
