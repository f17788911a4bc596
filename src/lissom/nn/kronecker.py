"""Linear maps and tables whose matrix is a Kronecker product: (A ⊗ B) x = vec(A X Bᵀ), X = x as (columns of A, of B).

With A (p, q) and B (s, t), W = A ⊗ B is (p s, q t), and W[i s + k, j t + l] = A[i, j] B[k, l]; W is never made.
Source: Tahaei et al. 2022, "KroneckerBERT", section 3, which writes vec by columns, so that A and B change sides.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lissom.nn.computed import ComputedLinear, dense_of, dtype_of
from lissom.nn.int8 import Int8Embedding, Int8Linear

Shape = tuple[int, int]


class KroneckerLinear(ComputedLinear):
    """y = (A ⊗ B) x + b: `left` holds A and `right` holds B, maps without bias, which may be packed later.

    Whichever of the two takes fewer products is applied first.
    """

    def __init__(
        self,
        left: Shape,
        right: Shape,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """left, right: shapes of A and B, each (out, in)."""
        super().__init__()
        self.left: nn.Linear | Int8Linear = nn.Linear(left[1], left[0], bias=False, device=device, dtype=dtype)
        self.right: nn.Linear | Int8Linear = nn.Linear(right[1], right[0], bias=False, device=device, dtype=dtype)
        size = left[0] * right[0]
        self.bias = nn.Parameter(torch.zeros(size, device=device, dtype=dtype)) if bias else None

    @property
    def in_features(self) -> int:
        """Number of inputs."""
        return self.left.in_features * self.right.in_features

    @property
    def out_features(self) -> int:
        """Number of outputs."""
        return self.left.out_features * self.right.out_features

    def dense(self) -> Tensor:
        """A ⊗ B, shape (out, in)."""
        return torch.kron(dense_of(self.left).contiguous(), dense_of(self.right).contiguous())

    def dense_dtype(self) -> torch.dtype:
        """The dtype of `dense`."""
        return torch.promote_types(dtype_of(self.left), dtype_of(self.right))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) -> (..., out)."""
        y = x.reshape(*x.shape[:-1], self.left.in_features, self.right.in_features)
        if self._left_first():
            y = self.right(self.left(y.transpose(-1, -2)).transpose(-1, -2))
        else:
            y = self.left(self.right(y).transpose(-1, -2)).transpose(-1, -2)
        y = y.flatten(-2)
        z: Tensor = y if self.bias is None else y + self.bias
        return z

    def _left_first(self) -> bool:
        a, b = self.left, self.right
        first = a.out_features * b.in_features * (a.in_features + b.out_features)
        return first <= a.in_features * b.out_features * (b.in_features + a.out_features)

    def halves(self, kept: Tensor, *, outputs: bool) -> tuple[Tensor | None, Tensor | None]:
        """The rows (or columns) of A and of B that give just the rows (or columns) `kept` of A ⊗ B; None for all.

        Raises ValueError where those of no such product would be left.
        """
        a, b = (one.out_features if outputs else one.in_features for one in (self.left, self.right))
        number = kept.cpu()
        of_a, of_b = torch.unique(number // b), torch.unique(number % b)
        if torch.equal((of_a[:, None] * b + torch.arange(b)).flatten(), number):
            return of_a, None
        if torch.equal((torch.arange(a)[:, None] * b + of_b).flatten(), number):
            return None, of_b
        raise ValueError("of a Kronecker product whole blocks can go, or the same part of all blocks, and nothing else")


class KroneckerEmbedding(nn.Module):
    """A table whose rows are aᵢ ⊗ b: `table` holds the aᵢ (rows, width / parts), `part` is b (parts,).

    Source: Tahaei et al. 2022, section 3.1: B has one row, so that looking up a row stays cheap.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        parts: int,
        *,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        narrow = embedding_dim // parts
        self.table: nn.Embedding | Int8Embedding = nn.Embedding(
            num_embeddings, narrow, padding_idx=padding_idx, device=device, dtype=dtype
        )
        self.part = nn.Parameter(torch.ones(parts, device=device, dtype=dtype))

    @property
    def num_embeddings(self) -> int:
        """Number of rows."""
        return self.table.num_embeddings

    @property
    def embedding_dim(self) -> int:
        """Width of a row."""
        return self.table.embedding_dim * len(self.part)

    @property
    def weight(self) -> Tensor:
        """The whole table, shape (rows, width); computed at each call, not stored."""
        return self(torch.arange(self.num_embeddings, device=self.part.device))  # type: ignore[no-any-return]

    def forward(self, ids: Tensor) -> Tensor:
        """ids: (...) -> (..., width)."""
        rows: Tensor = self.table(ids)
        return (rows[..., None] * self.part).flatten(-2)
