import pytest
import torch

from lissom.anatomy import dissect
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods import Given
from lissom.methods.weight_sharing.share_layers import ShareLayers, sets
from tests import tiny


@pytest.mark.parametrize(
    ("order", "used"),
    [
        ("sequence", (0, 0, 0, 1, 1, 1)),
        ("cycle", (0, 1, 0, 1, 0, 1)),
        ("cycle-reversed", (0, 1, 0, 1, 1, 0)),
    ],
)
def test_orders_by_hand(order: str, used: tuple[int, ...]):
    assert sets(6, 2, order) == used


def test_three_sets_for_nine_layers_reversed_at_the_end():
    assert sets(9, 3, "cycle-reversed") == (0, 1, 2, 0, 1, 2, 2, 1, 0)


@pytest.mark.parametrize("order", ["sequence", "cycle", "cycle-reversed"])
def test_as_many_sets_as_layers_changes_nothing(order: str):
    model = tiny.model("bert")
    ShareLayers(unique=3, order="sequence").apply(Editor(model), Given())
    assert not Editor(model).record.edits
    assert len(set(sets(4, 4, order))) == 4


def test_shared_layers_hold_the_same_tensors_and_are_counted_once():
    model = tiny.model("llama", "AutoModelForCausalLM")
    before = sum(p.numel() for p in model.model.layers.parameters())
    ShareLayers(unique=1).apply(Editor(model), Given())
    first, last = model.model.layers[0], model.model.layers[2]
    assert first.self_attn.q_proj.weight is last.self_attn.q_proj.weight
    assert sum(p.numel() for p in model.model.layers.parameters()) * 3 == before


def test_a_set_can_start_at_the_mean_of_its_layers():
    model = tiny.model("bert")
    weights = [block.ffn.up.weight.clone() for block in dissect(model).stacks[0].blocks]
    ShareLayers(unique=1, start="average").apply(Editor(model), Given())
    assert torch.allclose(dissect(model).stacks[0].blocks[2].ffn.up.weight, sum(weights) / 3, atol=1e-6)


def test_more_sets_than_layers_are_refused():
    model = tiny.model("bert")
    with pytest.raises(LissomError, match=r"LSM-318 4 sets of weights for 3 layers"):
        ShareLayers(unique=4).check(dissect(model), Given())
