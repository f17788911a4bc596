"""Kronecker products in the place of linear maps and tables."""

from __future__ import annotations

import dataclasses

from torch import nn

from lissom.edits.edit import EDIT_MISFIT, Edit
from lissom.edits.linear import carry_bias, device_and_dtype, linear_at, table_at
from lissom.errors import LissomError
from lissom.nn import KroneckerEmbedding, KroneckerLinear


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kronecker(Edit):
    """Put Kronecker products A ⊗ B in the place of linear maps and embedding tables.

    lefts: path of a linear map -> shape (out, in) of A, which divides that of the map; B has what is left. The factors
        come as tensors `PATH.left.weight` and `PATH.right.weight`; the bias is carried over.
    tables: path of a table -> numbers of B, which has one row. The factors come as tensors `PATH.table.weight` (rows,
        width / numbers) and `PATH.part` (numbers,).
    """

    lefts: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    tables: dict[str, int] = dataclasses.field(default_factory=dict)

    def apply(self, model: nn.Module) -> None:
        """Replace the modules; the factors are not filled in yet."""
        for path, left in self.lefts.items():
            slot = linear_at(model, path)
            whole = (slot.out_features, slot.in_features)
            right = (_divided(whole[0], left[0], path), _divided(whole[1], left[1], path))
            device, dtype = device_and_dtype(slot)
            bias = slot.bias
            made = KroneckerLinear(left, right, bias=bias is not None, device=device, dtype=dtype)
            carry_bias(bias, made.bias)
            slot.swap(made.train(slot.module.training))
        for path, parts in self.tables.items():
            table = table_at(model, path)
            _divided(table.embedding_dim, parts, path)
            weight = table.weight
            thin = KroneckerEmbedding(
                table.num_embeddings,
                table.embedding_dim,
                parts,
                padding_idx=table.padding_idx,
                device=weight.device,
                dtype=weight.dtype,
            )
            model.set_submodule(path, thin.train(table.training))


def _divided(whole: int, part: int, path: str) -> int:
    if part < 1 or whole % part:
        raise LissomError(EDIT_MISFIT, f"a factor of size {part} does not divide {whole}", place=path)
    return whole // part
