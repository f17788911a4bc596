"""Which units stay under a budget, by how much the loss would rise without them: heads and neurons.

With g_i (texts,) the slope of each text's loss by a gate m_i = 1 before unit i, the rise when units go is, to second
order, ½ m̄ᵀ F m̄ with m̄ = 1 - m and F = Σ g gᵀ, the empirical Fisher information of the gates.
    search      F's diagonal I_i alone. The units of each kind in the order of I_i a unit of cost; for every number of
                heads that stay, as many neurons as the budget then holds; the split with the least ΣI of what goes
    fastest     with measured time for cost: the width of each layer from a table, by dynamic programming
    rearrange   F of one layer at a time. Each unit that goes comes back for the one whose going instead lowers
                m̄ᵀ F m̄ most, if any does; again and again, until nothing moves
Source: Kwon et al. 2022, "A fast post-training pruning framework for Transformers", equations 5 to 11, algorithm 1.
Differs: units of different cost (layers cut before, encoder and decoder) are ordered by importance a unit of cost; one
unit stays in every layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lissom.stats.unit_latency import Kind, UnitLatency, count
from lissom.stats.widths import choose_widths

_PASSES = 10
_NANO = 1e9


def search(importance: Sequence[Tensor], costs: Sequence[float], heads: Sequence[bool], budget: float) -> list[Tensor]:
    """The units that stay in each layer: (units,) bool each, one at least.

    importance: (units,) a layer, not negative.  costs: of one unit, a layer.  heads: whether a layer's units are heads
    (or, more generally, of the first of two kinds).  budget: what all units that stay may cost.
    Raises ValueError when one unit a layer costs more than the budget, with what they cost.
    """
    least = float(sum(costs))
    if least > budget * (1 + 1e-9):
        raise ValueError(f"{least:.0f}")
    kinds = [
        _ordered(importance, costs, [number for number, one in enumerate(heads) if one is kind])
        for kind in (True, False)
    ]
    (first, first_cost, first_harm), (second, second_cost, second_harm) = kinds
    left = budget * (1 + 1e-9) - first_cost
    fits = torch.searchsorted(second_cost, left, right=True) - 1  # how many units of the second kind then stay
    harm = torch.where(fits >= 0, first_harm + second_harm[fits.clamp_min(0)], torch.inf)
    best = int(harm.argmin())
    kept = [torch.zeros(len(one), dtype=torch.bool) for one in importance]
    for layer, unit in first[:best] + second[: int(fits[best])]:
        kept[layer][unit] = True
    return kept


def _ordered(
    importance: Sequence[Tensor], costs: Sequence[float], layers: Sequence[int]
) -> tuple[list[tuple[int, int]], Tensor, Tensor]:
    """Units (layer, number) the best first; cost of the first n and importance of the others, for each n from 0.

    The best unit of each layer comes before all others, and no smaller n is open.
    """
    if not layers:
        return [], torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    places = [(layer, unit) for layer in layers for unit in range(len(importance[layer]))]
    value = torch.cat([importance[layer].double() for layer in layers])
    cost = torch.cat(
        [torch.full((len(importance[layer]),), float(costs[layer]), dtype=torch.float64) for layer in layers]
    )
    rank = value / cost
    start = 0
    for layer in layers:
        rank[start + int(importance[layer].argmax())] = torch.inf
        start += len(importance[layer])
    order = rank.argsort(descending=True, stable=True)
    spent = torch.cat([torch.zeros(1, dtype=torch.float64), cost[order].cumsum(0)])
    gone = value.sum() - torch.cat([torch.zeros(1, dtype=torch.float64), value[order].cumsum(0)])
    gone[: len(layers)] = torch.inf
    return [places[number] for number in order.tolist()], spent, gone


def fastest(
    table: UnitLatency, readers: Sequence[Sequence[str]], importance: Sequence[Tensor], share: float
) -> list[Tensor]:
    """The units that stay so that the model takes `share` of its time, as `table` has it: (units,) bool for each part.

    readers: the paths of each part, as in `table`.  importance: (units,) a part. Widths are those of the table; the
    least summed importance of what goes is found exactly, to the rounding of `lissom.stats.widths`.
    Raises ValueError with the smallest share that one unit a layer reaches.
    """
    totals: dict[Kind, int] = {}
    for kind, units in table.units.values():
        totals[kind] = totals.get(kind, 0) + units
    costs, damages, counts, most = [], [], [], 0.0
    for paths, one in zip(readers, importance, strict=True):
        kind = table.units[paths[0]][0]
        saved = table.saved[kind]
        part = sum(table.units[path][1] for path in paths) / totals[kind]
        order = one.double().sort().values
        gone = torch.cat([order.new_zeros(1), order.cumsum(0)])
        counts.append([count(len(one), each) for each in saved.shares])
        damages.append([float(gone[len(one) - stay]) for stay in counts[-1]])
        costs.append([round(_NANO * part * (saved.seconds[0] - seconds)) for seconds in saved.seconds])
        most += part * saved.seconds[0]
    budget = math.floor(_NANO * (most - (1 - share) * table.whole))
    if budget < 0:
        raise ValueError(f"{1 - most / table.whole:.3g}")
    kept = []
    for one, stay, chosen in zip(importance, counts, choose_widths(costs, damages, budget), strict=True):
        mask = torch.zeros(len(one), dtype=torch.bool)
        mask[one.argsort(descending=True, stable=True)[: stay[chosen]]] = True
        kept.append(mask)
    return kept


def rearrange(kept: Tensor, slopes: Tensor) -> Tensor:
    """The same number of units, chosen so that m̄ᵀ F m̄ is low: (units,) bool.

    kept: (units,) bool.  slopes: (texts, units).
    """
    kept = kept.clone()
    fisher = slopes.double().t() @ slopes.double()
    own = fisher.diagonal()
    total = fisher @ (~kept).double()  # F m̄
    least = 1e-9 * float(own.sum())
    for _ in range(_PASSES):
        swapped = False
        for back in (~kept).nonzero().flatten().tolist():  # it comes back, and another goes: m̄ changes by e - e_back
            change = own + 2 * total - 2 * fisher[back]
            change[~kept] = torch.inf
            gone = int(change.argmin())
            if float(change[gone]) + float(own[back]) - 2 * float(total[back]) < -least:
                kept[back], kept[gone], swapped = True, False, True
                total += fisher[gone] - fisher[back]
        if not swapped:
            break
    return kept
