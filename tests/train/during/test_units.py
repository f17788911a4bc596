"""Heads and neurons as units: what they cost, and that empty ones go without a trace in the answers."""

import pytest
import torch

from lissom.anatomy import dissect
from lissom.edits import Editor, KeepHeads, KeepNeurons, ShareLayers
from lissom.methods import METHODS, Given
from lissom.train.during.units import attentions, parts, remove_empty
from lissom.train.during.weights import trained
from tests import tiny
from tests.train.during.running import reloaded, widths

VARIANTS = sorted(tiny.CONFIGS)
CLASSIFIER = "AutoModelForSequenceClassification"


def size(model):
    """Parameters of the linear maps in the blocks, each tensor once."""
    return sum({id(one): one.numel() for slot in trained(dissect(model)) for one in slot.module.parameters()}.values())


def last_unit_gone(editor, heads):
    for stack in editor.anatomy().stacks:
        for cross in (False, True):
            kept = tuple(tuple(range(one.kv_heads - 1)) for one in attentions(stack, cross))
            if heads and kept:
                editor.apply(KeepHeads(stack=stack.name, heads=kept, cross=cross))
        if not heads:
            neurons = tuple(tuple(range(block.ffn.width - 1)) for block in stack.blocks)
            editor.apply(KeepNeurons(stack=stack.name, neurons=neurons))


@pytest.mark.parametrize("heads", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_unit_costs_what_its_removal_saves(variant, heads):
    editor = Editor(tiny.model(variant))
    before = size(editor.model)
    cost = sum(one.cost for one in parts(editor.anatomy()) if one.heads == heads)
    last_unit_gone(editor, heads)
    assert before - size(editor.model) == cost


@pytest.mark.parametrize("heads", [True, False])
def test_also_of_layers_that_share_or_are_of_low_rank(heads):
    shared = Editor(tiny.model("bert"))
    shared.apply(ShareLayers(stack="encoder", source=(0, 0, 2)))
    low = Editor(tiny.model("bert"))
    METHODS["svd"](ratio=0.5).apply(low, Given())
    for editor, count in ((shared, 2), (low, 3)):
        before, found = size(editor.model), [one for one in parts(editor.anatomy()) if one.heads == heads]
        last_unit_gone(editor, heads)
        assert before - size(editor.model) == sum(one.cost for one in found)
        assert len(found) == count


def empty(model):
    """No values for the first head of every layer, nothing reads the last one and the second and third neuron."""
    with torch.no_grad():
        for stack in dissect(model).stacks:
            for block in stack.blocks:
                for one in (block.attention, block.cross):
                    if one is not None:
                        group = one.heads // one.kv_heads * one.head_dim
                        rows = torch.arange(one.head_dim) if one.v.rows is None else one.v.rows[: one.head_dim]
                        v, o = one.v.module.weight, one.o.module.weight
                        (v.T if hasattr(one.v.module, "nf") else v)[rows] = 0
                        (o.T if hasattr(one.o.module, "nf") else o)[:, -group:] = 0
                down = block.ffn.down.module.weight
                (down.T if hasattr(block.ffn.down.module, "nf") else down)[:, 1:3] = 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_empty_heads_and_neurons_go_and_the_answers_stay(tmp_path, variant):
    model = tiny.model(variant, CLASSIFIER)
    heads, neurons = widths(model)
    empty(model)
    before = tiny.outputs(model, tiny.batch(model))
    remove_empty(Editor(model))
    torch.testing.assert_close(tiny.outputs(model, tiny.batch(model)), before, rtol=1e-4, atol=1e-4)
    stuck = [block.attention for stack in dissect(model).stacks for block in stack.blocks]
    movable = [one.v.bias is None or one.o.bias is not None for one in stuck]
    assert widths(model)[0] == [max(1, n - 1 - free) for n, free in zip(heads, movable, strict=True)]
    assert widths(model)[1] == [n - 2 for n in neurons]
    reloaded(model, tmp_path / "saved")


def test_a_bias_that_has_no_place_to_go_keeps_its_head():
    model = tiny.model("qwen2")  # values have a bias, outputs have none
    empty(model)
    with torch.no_grad():
        for block in dissect(model).stacks[0].blocks:
            block.attention.o.module.weight.fill_(1.0)
    remove_empty(Editor(model))
    assert widths(model)[0] == [2, 2, 2]


def test_a_shared_position_bias_keeps_a_head_that_one_layer_needs():
    model = tiny.model("t5", CLASSIFIER)
    empty(model)
    with torch.no_grad():
        dissect(model).stack("encoder").blocks[1].attention.o.module.weight.fill_(1.0)
    before = tiny.outputs(model, tiny.batch(model))
    remove_empty(Editor(model))
    torch.testing.assert_close(tiny.outputs(model, tiny.batch(model)), before, rtol=1e-4, atol=1e-4)
    assert widths(model)[0] == [3, 3, 3, 2, 2]


def test_one_head_and_one_neuron_stay_in_a_layer_that_adds_nothing(tmp_path):
    model = tiny.model("bert", CLASSIFIER)
    block = dissect(model).stacks[0].blocks[1]
    with torch.no_grad():
        block.attention.o.module.weight.zero_()
        block.ffn.down.module.weight.zero_()
    before = tiny.outputs(model, tiny.batch(model))
    remove_empty(Editor(model))
    torch.testing.assert_close(tiny.outputs(model, tiny.batch(model)), before, rtol=1e-5, atol=1e-5)
    assert widths(model) == ([4, 1, 4], [48, 1, 48])
    reloaded(model, tmp_path / "saved")
