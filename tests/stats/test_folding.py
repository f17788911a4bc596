"""Factors moved from what feeds a map into the map: by hand, and without a change of any answer."""

from __future__ import annotations

import pytest
import torch

from lissom.anatomy import Slot, dissect
from lissom.stats.folding import feeders, fold
from tests import tiny
from tests.contracts.cases import BARE, Case


@pytest.mark.parametrize("case", BARE, ids=str)
def test_every_fold_leaves_the_answers(case: Case):
    model = case.model().double()
    inputs = case.inputs(model)
    inputs = {name: one.double() if one.is_floating_point() else one for name, one in inputs.items()}
    before = tiny.outputs(model, inputs)
    generator = torch.Generator().manual_seed(0)
    for feed in feeders(dissect(model)):
        fold(feed, torch.rand(feed.size, generator=generator, dtype=torch.float64) * 3 + 0.5)
    torch.testing.assert_close(tiny.outputs(model, inputs), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("variant", "norms"), [("llama", 6), ("gpt2", 6), ("opt", 6), ("gpt_neox", 6), ("t5", 12), ("bert", 0), ("bart", 0)]
)
def test_norms_count_only_where_blocks_normalise_first(variant: str, norms: int):
    found = feeders(dissect(tiny.model(variant)))
    assert sum(isinstance(feed.feeder, str) for feed in found) == norms
    assert any(isinstance(feed.feeder, Slot) for feed in found)


def test_one_fold_by_hand():
    model = tiny.model("llama")
    feed = next(one for one in feeders(dissect(model)) if one.feeder == "layers.0.input_layernorm")
    assert [slot.path.rpartition(".")[2] for slot in feed.slots] == ["q_proj", "k_proj", "v_proj"]
    norm, query = model.layers[0].input_layernorm.weight.clone(), model.layers[0].self_attn.q_proj.weight.clone()
    scale = torch.ones(32)
    scale[3] = 4.0
    fold(feed, scale)
    assert model.layers[0].input_layernorm.weight[3] == norm[3] / 4
    assert torch.equal(model.layers[0].self_attn.q_proj.weight[:, 3], query[:, 3] * 4)
    assert torch.equal(model.layers[0].self_attn.q_proj.weight[:, 4], query[:, 4])


def test_query_heads_that_share_values_share_their_factors():
    feed = next(one for one in feeders(dissect(tiny.model("llama"))) if isinstance(one.feeder, Slot))
    assert feed.size == 16  # two heads of 8 values, each read by two query heads
    assert feed.columns.tolist() == [*range(8), *range(8), *range(8, 16), *range(8, 16)]
