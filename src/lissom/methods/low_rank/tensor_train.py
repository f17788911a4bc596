"""Replace the table of tokens by a chain of three small cores, a tensor train.

The table is laid out as a matrix of (i1 j1) rows and (i2 j2 i3 j3) columns, where i counts tokens and j columns in
mixed bases, and cut by a truncated SVD; the right side is cut again between (i2 j2) and (i3 j3).
Sources: Oseledets 2011, "Tensor-train decomposition", algorithm 1; Hrinchuk et al. 2020, "Tensorized embedding layers",
section 3. There the cores are trained from the start; a trained table is far from such a chain, so it needs `tune`.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lissom import edits
from lissom.anatomy.token_table import token_table
from lissom.edits import Editor
from lissom.methods.base import Given, Method, Stage

_log = logging.getLogger("lissom")

Three = tuple[int, int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorTrain(Method):
    """Write the table of tokens as three cores of at most the share `ratio` of its parameters."""

    name: ClassVar[str] = "tensor_train"
    stage: ClassVar[Stage] = Stage.RANK
    speed: ClassVar[str] = "no faster: it saves space, and a row is multiplied out where a table is only read"
    source: ClassVar[str] = "Oseledets 2011, algorithm 1; Hrinchuk et al. 2020, section 3"

    ratio: Annotated[float, Field(gt=0, lt=1, description="share of the parameters of the table that is kept")] = 0.1

    def apply(self, editor: Editor, given: Given) -> None:
        """Choose sizes and rank, and fill in the cores; what cannot be replaced alone, or saves nothing, is named."""
        path = token_table(editor.model)
        if path is None:
            return
        weight = editor.model.get_parameter(f"{path}.weight")
        rows, columns = row_sizes(weight.shape[0]), column_sizes(weight.shape[1])
        rank = rank_within(int(self.ratio * weight.numel()), rows, columns)
        if rank == 0:
            _log.warning("no tensor train of the token table is within %s of it, and it stays", self.ratio)
            return
        cores = decompose(weight, rows, columns, (rank, rank))
        tensors = dict(zip((f"{path}.first", f"{path}.middle", f"{path}.last"), cores, strict=True))
        editor.apply(edits.TensorTrain(path=path, rows=rows, columns=columns, ranks=(rank, rank)), tensors)


def row_sizes(count: int) -> Three:
    """Three sizes near the cube root whose product is `count` or little more."""
    first = math.ceil(round(count ** (1 / 3), 9))
    second = math.ceil(math.sqrt(count / first))
    return first, second, math.ceil(count / (first * second))


def column_sizes(width: int) -> Three:
    """Three divisors whose product is `width`, as near to each other as there are, the smallest in the middle."""
    divisors = [one for one in range(1, width + 1) if width % one == 0]
    found = [(a, b, width // (a * b)) for a in divisors for b in divisors if width % (a * b) == 0]
    return min(found, key=lambda one: (max(one), one[1], one))


def rank_within(numbers: int, rows: Three, columns: Three) -> int:
    """The largest rank, of both cuts, at which the cores hold at most `numbers`; 0 where none does."""
    ends, middle = rows[0] * columns[0] + rows[2] * columns[2], rows[1] * columns[1]
    rank = int((math.sqrt(ends**2 + 4 * middle * numbers) - ends) / (2 * middle))
    return min(rank, rows[0] * columns[0], rows[2] * columns[2])


def decompose(weight: Tensor, rows: Three, columns: Three, ranks: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """The cores, float32, of a table (tokens, width); exact at ranks v1 d1 and v3 d3. Rows beyond the tokens are 0."""
    (v1, v2, v3), (d1, d2, d3), (r1, r2) = rows, columns, ranks
    whole = torch.zeros(v1 * v2 * v3, weight.shape[1], dtype=torch.float32, device=weight.device)
    whole[: len(weight)] = weight.detach()
    chain = whole.view(v1, v2, v3, d1, d2, d3).permute(0, 3, 1, 4, 2, 5)
    first, rest = _split(chain.reshape(v1 * d1, -1), r1)
    middle, last = _split(rest.reshape(r1 * v2 * d2, v3 * d3), r2)
    middle = middle.view(r1, v2, d2, r2).transpose(0, 1)
    last = last.view(r2, v3, d3).transpose(0, 1)
    return first.reshape(v1, d1 * r1), middle.reshape(v2, r1 * d2 * r2), last.reshape(v3, r2 * d3)


def _split(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * vt[:rank]
