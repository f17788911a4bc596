"""A table of narrow rows that one map widens: row_i = E_i W.

Source: Lan et al. 2020, "ALBERT", section 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lissom.nn.int8 import Int8Embedding


class ThinEmbedding(nn.Module):
    """`table` holds E (rows, rank), which may be packed later; `widen` is W (rank, width)."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        rank: int,
        *,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.table: nn.Embedding | Int8Embedding = nn.Embedding(
            num_embeddings, rank, padding_idx=padding_idx, device=device, dtype=dtype
        )
        self.widen = nn.Parameter(torch.zeros(rank, embedding_dim, device=device, dtype=dtype))

    @property
    def num_embeddings(self) -> int:
        """Number of rows."""
        return self.table.num_embeddings

    @property
    def embedding_dim(self) -> int:
        """Width of a row."""
        return self.widen.shape[1]

    @property
    def weight(self) -> Tensor:
        """E W, shape (rows, width); computed at each call, not stored."""
        return self(torch.arange(self.num_embeddings, device=self.widen.device))  # type: ignore[no-any-return]

    def forward(self, ids: Tensor) -> Tensor:
        """ids: (...) -> (..., width)."""
        rows: Tensor = self.table(ids) @ self.widen
        return rows
