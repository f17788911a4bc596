"""Rows of token numbers to padded batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lissom.data.encode import IGNORED

if TYPE_CHECKING:
    from torch import Tensor

Row = Mapping[str, Any]


def pad(rows: Sequence[Row], pad_id: int) -> dict[str, Tensor]:
    """One batch of rows of ragged lists and numbers: each list as long as the longest, padded on the right.

    Padding is `pad_id` in `input_ids`, -100 in `labels`, 0 elsewhere.
    """
    import torch

    filler = {"input_ids": pad_id, "labels": IGNORED}
    batch = {}
    for name, first in rows[0].items():
        column = [row[name] for row in rows]
        if isinstance(first, Sequence):
            longest = max(map(len, column))
            column = [[*one, *[filler.get(name, 0)] * (longest - len(one))] for one in column]
        batch[name] = torch.tensor(column)
    return batch
