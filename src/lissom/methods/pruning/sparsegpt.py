"""Set weights to zero column by column, and let the columns after make up for them.

    score_ij = (w_ij / U_jj)²        UᵀU = (H + damp)⁻¹        H = 2 Σ xᵀx

Of every 128 columns side by side the lowest scores of the matrix go, or of every M in a row those that the pattern N:M
lets go, chosen when the sweep reaches them (`lissom.stats.sweep`). Each block sees what the pruned ones before it give.
Source: Frantar and Alistarh 2023, "SparseGPT", algorithm 1. Differs: columns that are always zero on the texts are
ranked like others, not set to zero.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lissom.edits import Editor
from lissom.methods.base import Given, Need
from lissom.methods.pruning.prune_weights import PruneWeights
from lissom.methods.pruning.zeros import Zeros, block_by_block, remove
from lissom.stats.hessian import hessians_of
from lissom.stats.sweep import inverse_factor, sweep

_SPAN = 128  # columns whose weights are ranked together, as published


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sparsegpt(Zeros):
    """Removal that makes up for its errors."""

    name: ClassVar[str] = "sparsegpt"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    source: ClassVar[str] = "Frantar and Alistarh 2023, algorithm 1"

    damp: Annotated[float, Field(ge=0, le=1, description="share of the mean of H's diagonal added to it")] = 0.01

    def apply(self, editor: Editor, given: Given) -> None:
        """Remove block by block. Maps that no text reaches lose their smallest weights."""
        for step, slots in block_by_block(editor, given, self.samples):
            hessians, factors = hessians_of(step, slots), dict[int, Tensor]()
            for slot in slots:
                hessian = hessians.get(slot.path)
                if hessian is None:
                    remove(slot, self.lowest(slot.weight.detach().abs()))
                    continue
                if id(hessian) not in factors:  # maps that read one tensor share it
                    factors[id(hessian)] = inverse_factor(hessian.clone(), damp=self.damp, path=slot.path)
                with torch.no_grad():
                    slot.weight.copy_(self.solve(slot.weight.detach().float(), factors[id(hessian)]))

    def preview(self, editor: Editor, given: Given) -> None:
        """As many zeros, by magnitude."""
        PruneWeights(ratio=self.ratio, pattern=self.pattern).preview(editor, given)

    def solve(self, weight: Tensor, upper: Tensor) -> Tensor:
        """The weight (out, in) float32 with zeros, a new tensor. upper: (in, in), from `inverse_factor`."""
        span = _SPAN if self.kept_of is None else self.kept_of[1]
        rest = weight.t().contiguous().clone()  # a column of weights is a row here: side by side
        made, gone, zero = torch.empty_like(rest), torch.empty_like(rest, dtype=torch.bool), rest == 0
        c = upper.diagonal()[:, None]

        def change(j: int) -> Tensor:
            if j % span == 0:
                group = slice(j, j + span)
                scores = (rest[group] / c[group]).square().masked_fill(zero[group], 0)
                gone[group] = self.lowest(scores.t()).t() | zero[group]  # zeros that are there stay
            made[j] = rest[j].masked_fill(gone[j], 0)
            return made[j]

        sweep(rest, upper, change, lazy=span * max(1, _SPAN // span))
        return made.t().contiguous()
