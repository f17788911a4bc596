"""A table of narrow rows in the place of the table of tokens, and of the head that multiplies by it."""

from __future__ import annotations

import dataclasses

from torch import nn

from lissom.edits.edit import EDIT_MISFIT, Edit
from lissom.edits.linear import Factorize, table_at
from lissom.edits.untie import untie
from lissom.errors import LissomError
from lissom.nn import LowRankLinear, MixingEmbedding, ThinEmbedding


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactorizeTable(Edit):
    """Put a table of narrow rows and one map in the place of an embedding table; heads that share it share both.

    path: the table.  rank: the width of the rows, at most that of the table.  The factors come as tensors
        `PATH.table.weight` (rows, rank) and `PATH.widen` (rank, width).
    heads: paths of linear maps that multiply by the table; a head's bias is carried over. Where there are any, the
        config no longer says that words and head are tied: the edit ties them.
    mixes: whether the narrow rows of a text look at each other before they are widened. That comes as tensors
        `PATH.query`, `PATH.key`, `PATH.value` and `PATH.output` (rank, rank), and starts as doing nothing.
    """

    path: str
    rank: int
    heads: tuple[str, ...] = ()
    mixes: bool = False

    def apply(self, model: nn.Module) -> None:
        """Replace the table and the heads; the factors are not filled in yet."""
        table = table_at(model, self.path)
        if not 1 <= self.rank <= table.embedding_dim:
            cause = f"rank {self.rank} is outside 1 to {table.embedding_dim}"
            raise LissomError(EDIT_MISFIT, cause, place=self.path)
        weight = table.weight
        kind = MixingEmbedding if self.mixes else ThinEmbedding
        thin = kind(
            table.num_embeddings,
            table.embedding_dim,
            self.rank,
            padding_idx=table.padding_idx,
            device=weight.device,
            dtype=weight.dtype,
        )
        Factorize(ranks=dict.fromkeys(self.heads, self.rank)).apply(model)
        model.set_submodule(self.path, thin.train(table.training))
        if self.heads:
            untie(model, (f"{name}.weight" for name in (self.path, *self.heads)))
        self.settle(model)

    def settle(self, model: nn.Module, later: tuple[Edit, ...] = ()) -> None:
        """Point the two thin maps of each head at the table's factors."""
        thin = model.get_submodule(self.path)
        for path in self.heads:
            head = model.get_submodule(path)
            if not isinstance(thin, ThinEmbedding) or not isinstance(head, LowRankLinear):
                continue  # a later edit put something else there
            if (head.in_features, head.out_features) != (thin.embedding_dim, thin.num_embeddings):
                cause = f"a head of {head.out_features} x {head.in_features} for a table of {thin.num_embeddings} rows"
                raise LissomError(EDIT_MISFIT, f"{cause} of {thin.embedding_dim}", place=path)
            if isinstance(head.up, nn.Linear) and isinstance(thin.table, nn.Embedding):
                head.up.weight, head.down.weight = thin.table.weight, thin.widen
