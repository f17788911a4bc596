"""The knapsack, against trying everything."""

from __future__ import annotations

import itertools
import random

import pytest

from lissom.stats import widths
from lissom.stats.widths import choose_widths


def test_by_hand():
    costs, damages = [[2, 4], [2, 4], [4, 8]], [[9.0, 1.0], [5.0, 4.0], [6.0, 0.5]]
    assert choose_widths(costs, damages, 8) == [0, 0, 0]
    assert choose_widths(costs, damages, 10) == [1, 0, 0]  # 8 less damage for 2
    assert choose_widths(costs, damages, 12) == [1, 1, 0]  # 5.5 less would cost 4
    assert choose_widths(costs, damages, 14) == [1, 0, 1]
    assert choose_widths(costs, damages, 99) == [1, 1, 1]


@pytest.mark.parametrize("cells", [2**16, 40])
def test_it_is_never_over_the_budget_and_the_best_where_it_counts_exactly(cells: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(widths, "CELLS", cells)
    draw = random.Random(0)
    for _ in range(60):
        sizes = [draw.randint(1, 9) for _ in range(5)]
        costs = [[size * bits for bits in (2, 3, 4, 8)] for size in sizes]
        damages = [[draw.random() * 2.0**-bits for bits in (2, 3, 4, 8)] for _ in sizes]
        budget = draw.randint(2 * sum(sizes), 8 * sum(sizes))
        chosen = choose_widths(costs, damages, budget)
        assert _sum(costs, chosen) <= budget
        if cells > budget:
            fits = [one for one in itertools.product(range(4), repeat=5) if _sum(costs, one) <= budget]
            assert _sum(damages, chosen) == pytest.approx(min(_sum(damages, one) for one in fits))


def _sum(table, chosen):
    return sum(row[number] for row, number in zip(table, chosen, strict=True))


def test_more_budget_is_never_worse():
    costs, damages = [[2, 3, 4]] * 4, [[0.4 / (i + 1), 0.1, 0.05 * i] for i in range(4)]
    every = [_sum(damages, choose_widths(costs, damages, budget)) for budget in range(8, 17)]
    assert every == sorted(every, reverse=True)


def test_a_budget_that_nothing_meets_is_refused():
    with pytest.raises(ValueError, match="the cheapest choices cost 4, the budget is 3"):
        choose_widths([[2, 3], [2, 3]], [[1.0, 0.0]] * 2, 3)
    assert choose_widths([[2, 3], [2, 3]], [[1.0, 0.0]] * 2, 4) == [0, 0]
