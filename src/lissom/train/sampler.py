"""The order in which training sees its rows. It depends on seed and epoch only.

Trainer's own samplers draw from the global random numbers, so that a run that is resumed within an epoch would see
other batches than one that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


class GroupedByLength(Sampler[int]):
    """Rows of about one length together, for batches of a fixed number of rows."""

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.rows = float(batch_size)  # in a batch
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        order: list[int] = get_length_grouped_indices(  # type: ignore[no-untyped-call]
            self.lengths, self.batch_size, generator=_generator(self.seed, self.epoch)
        )
        return iter(order)


class TokenBudget(Sampler[list[int]]):
    """Batches of rows of about one length, each of at most `budget` tokens with its padding (rows · longest row).

    A row that is longer than the budget is a batch of its own. All rows are sorted by length, in a new random order of
    those of one length in each epoch, and cut from the shortest to the longest; the batches then come in random order.
    How many there are, a multiple of `processes`, is the same in each epoch, for the schedule is made before the first.
    """

    def __init__(self, lengths: Sequence[int], budget: int, seed: int, processes: int = 1) -> None:
        self.lengths, self.seed = torch.tensor(lengths), seed
        self.sizes = _even(_cut(sorted(lengths), budget), processes)
        self.rows = len(lengths) / len(self.sizes)  # in a batch, on average
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[list[int]]:
        generator = _generator(self.seed, self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator)
        order = order[torch.argsort(self.lengths[order], stable=True)]
        batches = torch.split_with_sizes(order, self.sizes)
        for at in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[at].tolist()


def _cut(lengths: Sequence[int], budget: int) -> list[int]:
    """How many of the rising `lengths` go into each batch."""
    sizes, size = [], 0
    for length in lengths:
        if size and (size + 1) * length > budget:
            sizes.append(size)
            size = 0
        size += 1
    return [*sizes, size]


def _even(sizes: list[int], processes: int) -> list[int]:
    """`sizes` with the largest ones halved until they can be dealt out evenly; as they are where rows are too few."""
    while len(sizes) % processes and max(sizes) > 1:
        at = sizes.index(max(sizes))
        half = sizes[at] // 2
        sizes[at : at + 1] = [half, sizes[at] - half]
    return sizes
