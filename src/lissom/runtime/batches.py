"""Batches by token budget: texts of like length go together, so that little of the work is padding."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def token_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Row numbers in batches whose padded size, rows x longest row, is at most `budget` tokens.

    Longest rows come first, so that a batch that does not fit into memory fails at once and not at the end. Rows of
    equal length keep their order. A row that is longer than the budget stands alone: nothing is dropped.
    lengths: tokens of each row; 0 counts as 1.  budget: tokens, at least 1.
    """
    if budget < 1:
        raise ValueError(f"a budget of {budget} tokens holds no row")
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    batches: list[list[int]] = []
    start = 0
    while start < len(order):
        longest = max(1, lengths[order[start]])
        rows = max(1, budget // longest)
        batches.append(order[start : start + rows])
        start += rows
    return batches
