"""Ranks that a loss bears: map by map from the bottom up, each gets the smallest rank within its part of a budget.

Source: Chen et al. 2021, "DRONE", section 3.4 and algorithm 2. Differs: the loss is how far the answers move from those
of the original model, which needs no labels; a map's part of the budget is its share of the numbers, and what it does
not use is left to those after it; a map has eight ranks to choose from, by bisection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lissom.anatomy import Slot
from lissom.edits import Editor
from lissom.methods.low_rank.metrics import Metric
from lissom.methods.low_rank.ranks import Size, put
from lissom.stats.sensitivity import answers_of, moved

TRIES = 8  # ranks of a map


class LossBudget:
    """Chooses the ranks of maps one after the other, while the model holds what was chosen before.

    batches: the texts whose answers are watched.  ratio: the least share of its numbers that a map keeps.
    budget: how far the mean answer may move in the end, in the measure of `lissom.stats.sensitivity.MEASURES`.
    """

    def __init__(
        self,
        editor: Editor,
        batches: Sequence[dict[str, Tensor]],
        sizes: Mapping[str, Size],
        *,
        ratio: float,
        budget: float,
    ) -> None:
        self.model, self.batches, self.ratio, self.budget = editor.model, batches, ratio, budget
        self.model.train(False)
        self._whole, self._done = sum(one.held for one in sizes.values()), 0
        self._before = [self._answers(batch) for batch in batches]

    def rank(self, slot: Slot, metric: Metric, size: Size) -> int:
        """The smallest rank that keeps the answers near enough, or 0: leave the map. It is left as it was."""
        self._done += size.held
        allowed = self.budget * self._done / self._whole
        shares = (self.ratio + (1 - self.ratio) * one / TRIES for one in range(TRIES))
        ranks = sorted({max(1, int(share * size.held / size.part())) for share in shares})
        up, down = metric.factors(slot.weight, ranks[-1])
        module = slot.module

        def fits(rank: int) -> bool:
            put(self.model, slot.path, up[:, :rank], down[:rank])
            return self._moved() <= allowed

        found = smallest(ranks, fits)
        self.model.set_submodule(slot.path, module)
        return size.saving(found)

    def _answers(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            return answers_of(self.model, batch)

    def _moved(self) -> float:
        each = [
            moved(before, self._answers(batch), batch["attention_mask"])[1]
            for before, batch in zip(self._before, self.batches, strict=True)
        ]
        return float(torch.cat([one.double() for one in each]).mean())


def smallest(ranks: Sequence[int], fits: Callable[[int], bool]) -> int:
    """The first of ascending `ranks` that fits, if those after it do as well; 0 where the last does not."""
    low, high = 0, len(ranks)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(ranks[middle]) else (middle + 1, high)
    return ranks[low] if low < len(ranks) else 0
