"""Batches of the rows that are kept back from training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lissom.errors import LissomError
from lissom.train import processes

if TYPE_CHECKING:
    from torch import Tensor

    from lissom.train.engine import Engine


def drawn(engine: Engine, name: str, what: str) -> dict[str, Tensor]:
    """A batch of the rows kept back, each at most once, in each process another.

    Raises LSM-317 without labels, in the words `what` of the one called `name`.
    """
    size = min(engine.args.train_batch_size, len(engine.held))
    order = torch.randperm(len(engine.held)).roll(-size * processes.number())  # all processes draw the same order
    rows = engine.held.select(order[:size].tolist()).to_list()
    if "labels" not in rows[0]:
        raise LissomError(317, f"{what} needs labels, and the rows have none", place=name, remedy="Give labels.")
    batch: dict[str, Tensor] = engine.data_collator(rows)
    return {name: one.to(engine.args.device) for name, one in batch.items()}
