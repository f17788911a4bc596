"""Which units stay under a budget: by hand, and against every other choice."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissom.anatomy import dissect
from lissom.edits import Editor
from lissom.methods import METHODS, Given
from lissom.nn import LowRankLinear
from lissom.stats.unit_cost import unit_flops
from lissom.stats.unit_latency import Saved, UnitLatency, unit_latency
from lissom.stats.unit_search import fastest, rearrange, search
from tests import tiny

HEADS, NEURONS = ("encoder", "heads"), ("encoder", "neurons")
TABLE = UnitLatency(
    whole=10.0,
    saved={  # both layers save 2 s with half of their heads, 6 s or 4 s with a quarter or half of their neurons
        HEADS: Saved(shares=(0.5, 1.0), seconds=(2.0, 0.0)),
        NEURONS: Saved(shares=(0.25, 0.5, 1.0), seconds=(6.0, 4.0, 0.0)),
    },
    units={"o1": (HEADS, 2), "o2": (HEADS, 2), "down1": (NEURONS, 4), "down2": (NEURONS, 4)},
)
READERS = [["o1"], ["o2"], ["down1"], ["down2"]]
IMPORTANCE = [
    torch.tensor([5.0, 0.5]),
    torch.tensor([3.0, 4.0]),
    torch.tensor([1.0, 9.0, 1.0, 9.0]),
    torch.tensor([9.0, 9.0, 1.0, 0.1]),
]


@pytest.mark.parametrize(
    ("share", "kept"),
    [
        (1.0, ["11", "11", "1111", "1111"]),
        (0.9, ["10", "11", "1111", "1111"]),  # 1 s is asked for: a head saves it for 0.5, neurons 2 s for 1.1
        (0.8, ["11", "11", "1111", "1100"]),  # 2 s: 1.1 for half of the neurons of a layer; two heads lose 3.5
        (0.5, ["10", "11", "0101", "1100"]),  # 5 s: 0.5 + 2 + 1.1
        (0.2, ["10", "01", "0100", "1000"]),  # all of it
    ],
)
def test_widths_of_a_table_of_times_by_hand(share: float, kept: list[str]):
    found = fastest(TABLE, READERS, IMPORTANCE, share)
    assert ["".join(str(int(unit)) for unit in one) for one in found] == kept


def test_a_time_out_of_reach_is_named():
    with pytest.raises(ValueError, match=r"0\.2"):
        fastest(TABLE, READERS, IMPORTANCE, 0.1)


@pytest.mark.parametrize("variant", ["bert", "gpt2", "gpt_neox"])
def test_thin_maps_count_once_where_they_are_fused(variant: str):
    model = tiny.model(variant)
    weights = sum(slot.in_features * slot.out_features for slot in dissect(model).linears())
    squares = unit_flops(dissect(model), 8).total - 2 * 8 * weights  # the products of attention, which stay
    METHODS["svd"](ratio=0.5).apply(Editor(model), Given())
    thin = [module for module in model.modules() if isinstance(module, LowRankLinear)]
    held = sum(module.down.weight.numel() + module.up.weight.numel() for module in thin)
    assert held <= 0.5 * weights
    assert unit_flops(dissect(model), 8).total == squares + 2 * 8 * held


@pytest.mark.parametrize("variant", ["llama", "bart"])
def test_the_table_of_times_has_every_width(variant: str):
    model = tiny.model(variant)
    before = model.state_dict()
    table = unit_latency(model, 4, rounds=1)
    stacks = ("encoder", "decoder") if variant == "bart" else ("decoder",)
    assert {kind[0] for kind in table.saved} == set(stacks)
    assert (("decoder", "cross") in table.saved) == (variant == "bart")
    assert table.whole > 0
    for kind, saved in table.saved.items():
        widest = 48 if kind[1] == "neurons" else 2 if variant == "llama" else 4
        assert saved.shares == tuple((n + 1) / min(widest, 16) for n in range(min(widest, 16)))
        assert saved.seconds[-1] == 0
        assert list(saved.seconds) == sorted(saved.seconds, reverse=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_heads_and_neurons_share_a_budget_by_hand():
    # heads cost 4, neurons 1. Budget 11: with one head 7 for neurons, with two heads 3, with three none.
    importance = [torch.tensor([9.0, 1.0, 3.0]), torch.tensor([4.0, 2.0, 0.5, 0.1])]
    # two heads and three neurons lose 1 + 0.1; one head and all neurons lose 4; nothing fits beside three heads
    kept = search(importance, [4, 1], [True, False], 11)
    assert [one.tolist() for one in kept] == [[True, False, True], [True, True, True, False]]


def test_units_of_unlike_cost_are_ordered_by_importance_a_unit_of_cost():
    importance = [torch.tensor([9.0, 4.0]), torch.tensor([9.0, 3.0])]
    kept = search(importance, [4, 1], [False, False], 6)  # the best of both cost 5; 3 for 1 comes before 4 for 4
    assert [one.tolist() for one in kept] == [[True, False], [True, True]]


def test_one_unit_of_every_layer_stays():
    importance = [torch.zeros(2), torch.ones(3), torch.zeros(2)]
    kept = search(importance, [1, 1, 1], [True, False, False], 3)
    assert [int(one.sum()) for one in kept] == [1, 1, 1]
    with pytest.raises(ValueError, match="3"):
        search(importance, [1, 1, 1], [True, False, False], 2)


@given(
    st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=3), min_size=1, max_size=4),
    st.integers(1, 5),
    st.integers(1, 5),
    st.floats(0, 1),
)
@settings(max_examples=80, deadline=None)
def test_no_other_choice_is_better(values: list[list[int]], head: int, neuron: int, share: float):
    """Whatever the budget: with one cost a kind, the sweep is exact."""
    importance = [torch.tensor(one, dtype=torch.float32) for one in values]
    heads = [number % 2 == 0 for number in range(len(values))]
    costs = [head if one else neuron for one in heads]
    budget = sum(costs) + share * sum(cost * (len(one) - 1) for cost, one in zip(costs, values, strict=True))
    kept = search(importance, costs, heads, budget)

    def spent(masks: list[torch.Tensor]) -> float:
        return sum(cost * float(mask.sum()) for cost, mask in zip(costs, masks, strict=True))

    def left(masks: list[torch.Tensor]) -> float:
        return sum(float((one * mask).sum()) for one, mask in zip(importance, masks, strict=True))

    assert spent(kept) <= budget + 1e-6
    if share == 1:
        assert all(bool(one.all()) for one in kept)
    each = [[torch.tensor(bits) for bits in itertools.product([0, 1], repeat=len(one)) if any(bits)] for one in values]
    best = max(left(list(masks)) for masks in itertools.product(*each) if spent(list(masks)) <= budget + 1e-6)
    assert left([one.long() for one in kept]) == pytest.approx(best)


def test_units_that_undo_each_other_go_together():
    # the diagonal of F says 1, 1, 0.9, 1.21; but 0 and 1 always pull in opposite ways, so that both may go for nothing
    slopes = torch.tensor([[1.0, -1.0, 0.9, 0.0], [0.0, 0.0, 0.0, 1.1]])
    kept = torch.tensor([False, True, False, True])  # m̄ᵀ F m̄ = (1 + 0.9)² = 3.61
    assert rearrange(kept, slopes).tolist() == [False, False, True, True]


def test_rearranging_keeps_the_number_and_never_makes_it_worse():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        slopes = torch.randn(5, 8, generator=generator)
        kept = torch.rand(8, generator=generator) < 0.5
        again = rearrange(kept, slopes)
        assert int(again.sum()) == int(kept.sum())
        harm = [float((slopes @ (~one).float()).square().sum()) for one in (kept, again)]
        assert harm[1] <= harm[0] + 1e-4
