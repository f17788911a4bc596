"""Replace linear maps by the best product of two thin ones: W ≈ U_r sqrt(S_r) · sqrt(S_r) V_r^T.

The truncated singular value decomposition is the nearest matrix of its rank (Eckart and Young 1936); it knows nothing
of the data, so it usually needs tuning afterwards.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lissom import edits
from lissom.edits import Editor
from lissom.methods.base import Given, Method, Stage


def rank_for(ratio: float, rows: int, columns: int) -> int:
    """The rank at which two factors hold the share `ratio` of rows * columns parameters; at least 1."""
    return max(1, int(ratio * rows * columns / (rows + columns)))


def factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """up (out, rank) and down (rank, in), so that up @ down is the nearest matrix of that rank to weight (out, in)."""
    u, s, vt = torch.linalg.svd(weight.detach().float(), full_matrices=False)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * vt[:rank]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Svd(Method):
    """Factorize every linear map in the blocks to the share `ratio` of its parameters."""

    name: ClassVar[str] = "svd"
    stage: ClassVar[Stage] = Stage.RANK
    speed: ClassVar[str] = "faster for long or batched texts; two small products can be slower than one for one text"
    source: ClassVar[str] = "Eckart and Young 1936; Noach and Goldberg 2020, section 3"

    ratio: Annotated[
        float, Field(gt=0, le=1, description="share of the parameters of the factorized slots that is kept")
    ] = 0.5

    def apply(self, editor: Editor, given: Given) -> None:
        """Factorize, and fill in the factors. A ratio of 1 changes nothing."""
        if self.ratio == 1:
            return
        ranks: dict[str, int] = {}
        tensors: dict[str, Tensor] = {}
        # Layers that share a weight share its factors. The weight is held too: that of a packed layer is made for this
        # loop, and once it is freed, the next one may stand at the same address.
        shared: dict[int, tuple[Tensor, tuple[Tensor, Tensor]]] = {}
        slots = list(editor.anatomy().linears())
        for done, slot in enumerate(slots):
            weight = slot.weight
            rank = rank_for(self.ratio, slot.out_features, slot.in_features)
            key = weight.data_ptr()
            if key not in shared:
                shared[key] = weight, factors(weight, rank)
            ranks[slot.path] = rank
            tensors[f"{slot.path}.up.weight"], tensors[f"{slot.path}.down.weight"] = shared[key][1]
            given.report("factorizing", (done + 1) / len(slots))
        editor.apply(edits.Factorize(ranks=ranks), tensors)
