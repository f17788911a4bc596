"""Rows of token numbers to padded batches, and their order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from lissom.train.objectives.base import IGNORED

Row = Mapping[str, Any]


def pad(rows: Sequence[Row], pad_id: int) -> dict[str, Tensor]:
    """One batch of rows of ragged lists and numbers: each list as long as the longest, padded on the right.

    Padding is `pad_id` in `input_ids`, -100 in `labels`, 0 elsewhere.
    """
    filler = {"input_ids": pad_id, "labels": IGNORED}
    batch = {}
    for name, first in rows[0].items():
        column = [row[name] for row in rows]
        if isinstance(first, Sequence):
            longest = max(map(len, column))
            column = [[*one, *[filler.get(name, 0)] * (longest - len(one))] for one in column]
        batch[name] = torch.tensor(column)
    return batch


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
