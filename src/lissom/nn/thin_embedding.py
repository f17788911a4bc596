"""Tables of narrow rows that one map widens, row_i = E_i W, after one has looked at the others or not.

Sources: Lan et al. 2020, "ALBERT", section 3.1; Reid et al. 2021, "Subformer", section 3.2 (SAFE).
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


class MixingEmbedding(ThinEmbedding):
    """(e + Attn(e)) W, e the narrow rows of a text: one head of attention, as wide as they are, over the whole text.

    query, key, value, output: (rank, rank) each; the output starts at zero, so that it starts as `ThinEmbedding`. What
    stands at `padding_idx` is not looked at. Differs from Reid et al.: no feed-forward layer, and no norm.
    """

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
        super().__init__(num_embeddings, embedding_dim, rank, padding_idx=padding_idx, device=device, dtype=dtype)
        eye = torch.eye(rank, device=device, dtype=dtype)
        self.query, self.key, self.value = (nn.Parameter(eye.clone()) for _ in range(3))
        self.output = nn.Parameter(torch.zeros_like(eye))

    @property
    def weight(self) -> Tensor:
        """E W, shape (rows, width), as if each token stood alone and looked at nothing."""
        return super().forward(torch.arange(self.num_embeddings, device=self.widen.device))

    def forward(self, ids: Tensor) -> Tensor:
        """ids: (rows, length) -> (rows, length, width)."""
        e: Tensor = self.table(ids)
        scores = (e @ self.query) @ (e @ self.key).transpose(-1, -2) / e.shape[-1] ** 0.5
        if self.table.padding_idx is not None:
            hidden = (ids == self.table.padding_idx)[..., None, :]
            scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
        mixed: Tensor = e + scores.softmax(dim=-1) @ (e @ self.value) @ self.output
        return mixed @ self.widen
