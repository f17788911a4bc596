"""Tables of vectors that stand for the sub-vectors of a matrix (product quantization), and training towards them.

A row of a weight (rows, columns) is cut into vectors of `size` columns; each becomes the number of the nearest one of
`count` vectors in a table, found by k-means: turns of nearest vector and mean, at most 15, until the squared error no
longer falls by a thousandth. A vector of the table that nothing is near to takes the place of the worst served one.
The search looks at no more than 256 sub-vectors for each vector of the table, drawn at random; all are assigned then.

Training with it has two parts. Before the table is there, a share p of the sub-vectors, drawn at each use, is zero, and
the others are divided by 1 - p: the noise that stands for the error of a table (Fan et al. 2021, section 4.2). Once it
is there, it stays which vector each sub-vector has, and the vectors are trained: their gradient is the mean of those of
the sub-vectors that they stand for (Stock et al. 2020, section 3.3; Fan et al. 2021, section 3.2).
Differs: the division, which is that of the published code; k-means is that of the weights, not of the layer's outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_ROUNDS = 15
_EACH = 256  # sub-vectors for each vector of the table that k-means looks at
_AT_ONCE = 2048  # sub-vectors whose distances to the table are in memory at a time: they stay in the cache


def nearest(vectors: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Which vector of `table` (count, size) is nearest to each of `vectors` (n, size), and its squared distance.

    Of equally near ones it is the first. Returns (n,) int64 and (n,) float32.
    """
    lengths = table.square().sum(1)
    found, gaps = [], []
    for some in torch.split(vectors, _AT_ONCE):
        gap, index = (lengths - 2 * some @ table.t()).min(1)
        found.append(index)
        gaps.append((gap + some.square().sum(1)).clamp_min(0))
    return torch.cat(found), torch.cat(gaps)


def fitted(vectors: Tensor, count: int) -> Tensor:
    """A table of `count` vectors for `vectors` (n, size) float32 by k-means; the same at each call.

    Where there are fewer than `count` different ones, some of the table are never the nearest.
    """
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(vectors), generator=generator)[: _EACH * count].to(vectors.device)
    some = vectors[order]
    table = some[:count].clone()
    table = torch.cat([table, table[:1].expand(count - len(table), -1)])
    before = float("inf")
    for _ in range(_ROUNDS):
        index, gaps = nearest(some, table)
        error = float(gaps.sum())
        if not error < before * (1 - 1e-3):
            break
        before = error
        many = torch.bincount(index, minlength=count)
        sums = torch.zeros_like(table).index_add_(0, index, some)
        table = torch.where(many[:, None] > 0, sums / many[:, None].clamp_min(1), table)
        empty = (many == 0).nonzero().flatten()
        worst = gaps.topk(min(len(empty), len(gaps))).indices
        table[empty[: len(worst)]] = some[worst]
    return table


def indexed(weight: Tensor, size: int, count: int) -> tuple[Tensor, Tensor]:
    """`weight` (rows, columns) float32 as numbers (rows, columns / size) int64 into a table (count, size)."""
    vectors = weight.reshape(-1, size)
    table = fitted(vectors, count)
    return nearest(vectors, table)[0].reshape(len(weight), -1), table


class _Looked(torch.autograd.Function):
    """table[index]; backward the mean of the gradients of what each vector of the table stands for."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.count = len(table)
        return table[index]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (index,) = ctx.saved_tensors
        given = grads[0].reshape(-1, grads[0].shape[-1])
        sums = given.new_zeros(ctx.count, given.shape[1]).index_add_(0, index.flatten(), given)
        many = torch.bincount(index.flatten(), minlength=ctx.count).clamp_min(1)
        return sums / many[:, None], None


class FakeVectors(nn.Module):
    """Lets a weight be used with sub-vectors left out, and from `fix` on as what its table gives.

    size: columns of a sub-vector.  count: vectors in the table.  transposed: the weight is stored as (in, out).
    noise: share of the sub-vectors that is zero in training, before `fix`.
    State: the parameter `table` (count, size); buffers `index` (rows, columns / size) int32 and `fixed` () bool.
    """

    index: Tensor
    fixed: Tensor

    def __init__(self, weight: Tensor, size: int, *, count: int = 256, transposed: bool = False) -> None:
        super().__init__()
        self.size, self.transposed, self.noise = size, transposed, 0.0
        rows, columns = (weight.t() if transposed else weight).shape
        self.table = nn.Parameter(torch.zeros(count, size))
        self.register_buffer("index", torch.zeros(rows, columns // size, dtype=torch.int32))
        self.register_buffer("fixed", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def fix(self, weight: Tensor) -> None:
        """Find the table for `weight`, as it is stored; from here on it is used instead. Nothing is done twice."""
        if not bool(self.fixed):
            rows = (weight.t() if self.transposed else weight).float()
            index, table = indexed(rows, self.size, len(self.table))
            self.index.copy_(index)
            self.table.copy_(table)
            self.fixed.fill_(True)

    def forward(self, weight: Tensor) -> Tensor:
        """weight: as it is stored. Returns the same shape, float32."""
        if not bool(self.fixed) and not (self.training and self.noise):
            return weight
        if bool(self.fixed):
            looked: Tensor = _Looked.apply(self.table, self.index.long())  # type: ignore[no-untyped-call]
            made = looked.flatten(1)
        else:
            rows = (weight.t() if self.transposed else weight).float()
            kept = torch.rand(self.index.shape, device=rows.device) >= self.noise
            made = rows * kept.repeat_interleave(self.size, dim=1) / (1 - self.noise)
        return made.t() if self.transposed else made
