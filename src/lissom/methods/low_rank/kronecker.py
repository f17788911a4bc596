"""Replace linear maps and the token table by Kronecker products, W ≈ A ⊗ B.

With the blocks of W, each of the shape of B, laid out as the rows of R (numbers of A, numbers of B), ‖W - A ⊗ B‖_F is
least where vec(A) vec(B)ᵀ is the nearest matrix of rank 1 to R. It knows nothing of the data and needs tuning.
Sources: Van Loan and Pitsianis 1993, section 2; Tahaei et al. 2022, "KroneckerBERT"; Edalati et al. 2022, "KnGPT2".
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lissom import edits
from lissom.anatomy import Anatomy, Slot
from lissom.anatomy.token_table import token_table
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Stage, check_floating
from lissom.methods.low_rank.owners import owners

Shape = tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kronecker(Method):
    """Write linear maps of the blocks as Kronecker products of at most the share `ratio` of their parameters."""

    name: ClassVar[str] = "kronecker"
    stage: ClassVar[Stage] = Stage.RANK
    speed: ClassVar[str] = "fewer products, in two steps with a transposition between: faster where the maps are large"
    source: ClassVar[str] = "Van Loan and Pitsianis 1993; Tahaei et al. 2022; Edalati et al. 2022"

    ratio: Annotated[float, Field(gt=0, lt=1, description="share of the parameters of a map that is kept at most")] = (
        0.25
    )
    every: Annotated[int, Field(ge=1, description="only the maps of every n-th layer")] = 1
    table: Annotated[
        int, Field(ge=1, description="by how much the token table gets narrower; 1 leaves it as it is")
    ] = 1

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-318 when the width of the token table is no multiple of `table`, LSM-713 for packed layers."""
        check_floating(anatomy)
        width = anatomy.model.get_input_embeddings().embedding_dim  # type: ignore[operator]
        if width % self.table:
            raise LissomError(318, f"table {self.table} does not divide the {width} columns of the token table")

    def apply(self, editor: Editor, given: Given) -> None:
        """Choose the shapes, and fill in the nearest factors."""
        lefts: dict[str, Shape] = {}
        tensors: dict[str, Tensor] = {}
        found: dict[str, tuple[Tensor, Tensor]] = {}
        places = self._places(editor.anatomy())
        for done, (path, owner) in enumerate(places.items()):
            slot = Slot(editor.model, path)
            left = shape(slot.out_features, slot.in_features, self.ratio)
            if left is not None:
                found[path] = found.get(owner) or nearest(slot.weight, left)
                lefts[path] = left
                tensors[f"{path}.left.weight"], tensors[f"{path}.right.weight"] = found[path]
            given.report("factorizing", (done + 1) / len(places))
        plain = type(editor.model.get_input_embeddings()) is nn.Embedding
        table = token_table(editor.model) if self.table > 1 and plain else None
        if table is not None:
            weight = editor.model.get_parameter(f"{table}.weight")
            narrow, part = nearest(weight, (len(weight), weight.shape[1] // self.table))
            tensors |= {f"{table}.table.weight": narrow, f"{table}.part": part.flatten()}
        if lefts or table is not None:
            editor.apply(edits.Kronecker(lefts=lefts, tables={} if table is None else {table: self.table}), tensors)

    def _places(self, anatomy: Anatomy) -> dict[str, str]:
        """Path -> owner of the maps of every n-th layer; one that shares a weight goes where its owner goes."""
        blocks = [block for stack in anatomy.stacks for block in stack.blocks if (block.index + 1) % self.every == 0]
        chosen = {slot.path for block in blocks for slot in block.slots()}
        return {path: owner for path, owner in owners(anatomy).items() if owner in chosen}


def shape(rows: int, columns: int, ratio: float) -> Shape | None:
    """(out, in) of A, such that A and B hold the most numbers within `ratio` of rows · columns; None where none do.

    Of those that hold as many, the one of the highest rank, min(p, q) · min(s, t), then with B nearest to a square.
    """
    best: tuple[tuple[int, int, int], Shape] = ((0, 0, 0), (0, 0))
    for p in _divisors(rows):
        for q in _divisors(columns):
            s, t = rows // p, columns // q
            held = p * q + s * t
            if held <= ratio * rows * columns:
                best = max(best, ((held, min(p, q) * min(s, t), -abs(s - t)), (p, q)))
    return best[1] if best[0][0] else None


def nearest(weight: Tensor, left: Shape) -> tuple[Tensor, Tensor]:
    """A of the shape `left` and B with the rest of that of `weight` (out, in), float32, of equal norm."""
    p, q = left
    s, t = weight.shape[0] // p, weight.shape[1] // q
    blocks = weight.detach().float().reshape(p, s, q, t).transpose(1, 2).reshape(p * q, s * t)
    u, sizes, vt = torch.linalg.svd(blocks, full_matrices=False)
    root = sizes[0].sqrt()
    return (root * u[:, 0]).reshape(p, q), (root * vt[0]).reshape(s, t)


def _divisors(number: int) -> list[int]:
    return [one for one in range(1, number + 1) if number % one == 0]
