"""Choose one of several widths for each thing, so that the summed damage is least within a common budget.

    min  Σ damage_i(k_i)    where    Σ cost_i(k_i) ≤ budget

It is a knapsack with one choice a thing, solved exactly by dynamic programming over the cost. Where that would take
more than `CELLS` steps of the largest common unit, costs are rounded up to coarser ones: the budget still holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

CELLS = 2**16


def choose_widths(costs: Sequence[Sequence[int]], damages: Sequence[Sequence[float]], budget: int) -> list[int]:
    """Which choice each thing takes, as numbers into its costs and damages.

    costs: not negative, for each thing those of its choices.  damages: the same shape, finite.
    Raises ValueError when even the cheapest choices exceed the budget.
    """
    least = [min(one) for one in costs]
    left = budget - sum(least)
    if left < 0:
        raise ValueError(f"the cheapest choices cost {sum(least)}, the budget is {budget}")
    extra = [[cost - low for cost in one] for one, low in zip(costs, least, strict=True)]
    unit = max(math.gcd(*(cost for one in extra for cost in one)), -(-left // CELLS), 1)
    cells = left // unit + 1
    best = torch.zeros(cells, dtype=torch.float64)  # least damage of the things so far within each cost
    taken = []
    for steps, damage in zip(extra, damages, strict=True):
        options = torch.full((len(steps), cells), torch.inf, dtype=torch.float64)
        for number, (cost, harm) in enumerate(zip(steps, damage, strict=True)):
            width = -(-cost // unit)
            if width < cells:
                options[number, width:] = best[: cells - width] + harm
        best, picked = options.min(dim=0)
        taken.append(picked)
    found, at = [], cells - 1
    for steps, picked in zip(reversed(extra), reversed(taken), strict=True):
        number = int(picked[at])
        found.append(number)
        at -= -(-steps[number] // unit)
    return found[::-1]
