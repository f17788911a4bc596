"""A chain of three cores in the place of the table of tokens."""

from __future__ import annotations

import dataclasses
import math

from torch import nn

from lissom.edits.edit import EDIT_MISFIT, Edit
from lissom.edits.linear import table_at
from lissom.errors import LissomError
from lissom.nn import TensorTrainEmbedding


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorTrain(Edit):
    """Put a `TensorTrainEmbedding` in the place of an embedding table that nothing shares.

    path: the table.  rows, columns: sizes of the three cores; rows multiply to at least those of the table, columns to
        its width.  ranks: what the cores sum over. The cores hold at most as many numbers as the table.
    They come as tensors `PATH.first`, `PATH.middle` and `PATH.last`.
    """

    path: str
    rows: tuple[int, int, int]
    columns: tuple[int, int, int]
    ranks: tuple[int, int]

    def apply(self, model: nn.Module) -> None:
        """Replace the table; the cores are not filled in yet."""
        table = table_at(model, self.path)
        fits = math.prod(self.columns) == table.embedding_dim and math.prod(self.rows) >= table.num_embeddings
        numbers = sum(map(math.prod, zip(self.rows, self.columns, (1, *self.ranks), (*self.ranks, 1), strict=True)))
        if not fits or min(*self.rows, *self.columns, *self.ranks) < 1 or numbers > table.weight.numel():
            sizes = f"{self.rows} rows, {self.columns} columns and ranks {self.ranks}"
            cause = f"cores of {sizes} for a table of {table.num_embeddings} x "
            raise LissomError(EDIT_MISFIT, f"{cause}{table.embedding_dim}", place=self.path)
        weight = table.weight
        made = TensorTrainEmbedding(
            table.num_embeddings,
            self.rows,
            self.columns,
            self.ranks,
            padding_idx=table.padding_idx,
            device=weight.device,
            dtype=weight.dtype,
        )
        model.set_submodule(self.path, made.train(table.training))
