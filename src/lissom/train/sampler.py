"""The order in which training sees its rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class GroupedByLength(Sampler[int]):
    """Rows of about one length together, in an order that depends only on seed and epoch.

    Trainer's own grouping draws from the global random numbers, so that a run that is resumed within an epoch would see
    other batches than one that was never interrupted.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order: list[int] = get_length_grouped_indices(  # type: ignore[no-untyped-call]
            self.lengths, self.batch_size, generator=generator
        )
        return iter(order)
