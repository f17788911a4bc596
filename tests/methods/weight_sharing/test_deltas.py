"""Deltas of low rank beside shared maps: what they start from, whose they are, how they are saved and exported."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import lissom
from lissom.anatomy import Slot, dissect, stored_maps
from lissom.edits import AddLora, Editor, KeepHeads, KeepLayers, KeepNeurons
from lissom.errors import LissomError
from lissom.export import export
from lissom.measure.flops import model_flops
from lissom.measure.size import parameters
from lissom.methods import METHODS, Given
from lissom.methods.weight_sharing import deltas
from lissom.methods.weight_sharing.share_layers import ShareLayers
from lissom.nn import LoraLinear
from lissom.train.during.units import parts
from tests import tiny

FAMILIES = ("bert", "gpt2", "llama")


def shared(variant: str, rank: int = 4, start: str = "average", head: str = "AutoModel") -> torch.nn.Module:
    model = tiny.model(variant, head)
    ShareLayers(unique=1, start=start, lora=rank).apply(Editor(model), Given())
    return model


def test_the_start_by_hand():
    """Weights diag(1, 0, 0) and diag(0, 3, 0) of two layers that now share zeros: each delta is its layer's weight."""
    model = tiny.model("bert")
    slots = [Slot(model, f"encoder.layer.{i}.attention.output.dense") for i in range(2)]
    own = {}
    for i, slot in enumerate(slots):
        own[slot.path] = torch.zeros(32, 32)
        own[slot.path][i, i] = 1.0 + 2 * i
        slot.module.weight.data.zero_()
    deltas.add(Editor(model), own, 1)
    for slot in slots:
        assert torch.allclose(slot.weight, own[slot.path], atol=1e-6)
        assert float(slot.module.down.weight.detach().norm()) == pytest.approx(1)  # its size is in U


@pytest.mark.parametrize("start", ["first", "average"])
def test_the_delta_is_the_best_of_its_rank(start: str):
    """What is left of a layer's weight is as far from it as the singular values that the delta leaves out."""
    whole = tiny.model("bert")
    model = shared("bert", 4, start)
    for layer in range(3):
        path = f"encoder.layer.{layer}.output.dense"
        wanted, slot = Slot(whole, path).weight, Slot(model, path)
        left = torch.linalg.svdvals(wanted - slot.module.inner.weight)[4:].norm()
        assert float((wanted - slot.weight).detach().norm()) == pytest.approx(float(left.detach()), abs=1e-4)


@pytest.mark.parametrize("variant", FAMILIES)
def test_the_full_rank_gives_each_layer_its_weight_back(variant: str):
    model, whole = tiny.model(variant), tiny.model(variant)
    stack = dissect(model).stacks[0]
    edit = lissom.edits.ShareLayers(source=(0, 0, 2), parts="ffn")
    own = deltas.own_weights(model, stack, edit)
    editor = Editor(model)
    editor.apply(edit)
    deltas.add(editor, own, 32)
    for path in own:
        assert torch.allclose(Slot(model, path).weight, Slot(whole, path).weight, atol=1e-5)


@pytest.mark.parametrize("variant", FAMILIES)
def test_maps_are_shared_and_deltas_are_not(variant: str):
    model = shared(variant)
    blocks = dissect(model).stacks[0].blocks
    modules = [block.ffn.down.module for block in blocks]
    assert all(isinstance(one, LoraLinear) for one in modules)
    assert len({one.inner.weight.data_ptr() for one in modules}) == 1
    assert len({one.up.weight.data_ptr() for one in modules}) == 3
    plain = tiny.model(variant)
    ShareLayers(unique=1, start="average").apply(Editor(plain), Given())
    maps = {slot.path for block in blocks for slot in block.slots()}
    more = sum(4 * (Slot(model, path).in_features + Slot(model, path).out_features) for path in maps)
    assert parameters(model).value == parameters(plain).value + more
    assert model_flops(model, 9).value == model_flops(plain, 9).value + 2 * 9 * more
    assert "agrees" in model_flops(model, 9).how


@pytest.mark.parametrize("variant", FAMILIES)
def test_it_is_loaded_as_it_was_saved_after_a_step_of_training(variant: str, tmp_path: Path):
    model = shared(variant)
    inputs = tiny.batch(model)
    model(**inputs)[0].square().mean().backward()
    with torch.no_grad():
        for one in model.parameters():
            if one.grad is not None:
                one.sub_(0.1 * one.grad)
    modules = [block.ffn.down.module for block in dissect(model).stacks[0].blocks]
    assert all(one.up.weight.grad is not None and one.up.weight.grad.any() for one in modules)
    wanted = tiny.outputs(model, inputs)
    lissom.save(model, tmp_path / "out")
    again = lissom.load(tmp_path / "out")
    assert torch.equal(tiny.outputs(again, inputs), wanted)
    assert parameters(again).value == parameters(model).value


@pytest.mark.parametrize("variant", FAMILIES)
def test_a_model_with_deltas_is_cut_and_packed(variant: str, tmp_path: Path):
    model = shared(variant)
    editor = Editor(model)
    blocks = dissect(model).stacks[0].blocks
    heads = tuple(tuple(range(block.attention.kv_heads - 1)) for block in blocks)
    editor.apply(KeepHeads(stack=dissect(model).stacks[0].name, heads=heads))
    editor.apply(KeepNeurons(stack=dissect(model).stacks[0].name, neurons=(tuple(range(5, 40)),) * 3))
    editor.apply(KeepLayers(keep=(1, 2)))
    inputs = tiny.batch(model)
    cut = tiny.outputs(model, inputs)
    METHODS["int8"]().apply(editor, Given())
    for block in dissect(model).stacks[0].blocks:
        assert all(type(one.module).__name__ == "Int8Linear" for slot in block.slots() for one in stored_maps(slot))
    packed = tiny.outputs(model, inputs)
    assert torch.nn.functional.cosine_similarity(packed, cut, dim=0) > 0.99
    lissom.save(model, tmp_path / "out")
    assert torch.equal(tiny.outputs(lissom.load(tmp_path / "out"), inputs), packed)


@pytest.mark.parametrize("packed", [False, True])
def test_it_is_exported_with_parity(packed: bool, tmp_path: Path):
    model = shared("bert", head="AutoModelForSequenceClassification")
    if packed:
        METHODS["int8"]().apply(Editor(model), Given())
    export(model, "onnx", tmp_path / "onnx", tokenizer=tiny.tokenizer())


@pytest.mark.parametrize("parts_", ["all", "ffn"])
def test_layers_that_are_shared_again_keep_their_deltas(parts_: str):
    model = tiny.model("bert", num_hidden_layers=4)
    ShareLayers(unique=2, order="sequence", start="average", lora=4).apply(Editor(model), Given())
    modules = [layer.output.dense for layer in model.encoder.layer]
    before = [one.up.weight.clone() for one in modules]
    mean = (modules[0].inner.weight + modules[2].inner.weight) / 2
    ShareLayers(unique=1, start="average", parts=parts_).apply(Editor(model), Given())
    assert all(torch.equal(one.up.weight, old) for one, old in zip(modules, before, strict=True))
    assert all(torch.allclose(one.inner.weight, mean, atol=1e-6) for one in modules)


def test_layers_that_own_their_weights_get_no_delta():
    model = tiny.model("bert", num_hidden_layers=4)
    ShareLayers(unique=3, order="sandwich", lora=2).apply(Editor(model), Given())
    modules = [block.ffn.down.module for block in dissect(model).stacks[0].blocks]
    assert [isinstance(one, LoraLinear) for one in modules] == [False, True, True, False]


@pytest.mark.parametrize("parts", ["attention", "ffn"])
def test_only_what_is_shared_gets_a_delta(parts: str):
    model = tiny.model("gpt2")
    ShareLayers(unique=1, parts=parts, lora=2).apply(Editor(model), Given())
    for block in dissect(model).stacks[0].blocks:
        assert isinstance(block.ffn.up.module, LoraLinear) == (parts == "ffn")
        assert isinstance(block.attention.q.module, LoraLinear) == (parts == "attention")


def test_deltas_that_save_nothing_or_stand_there_already_are_refused():
    model = tiny.model("bert")
    with pytest.raises(LissomError, match=r"LSM-318 .* a delta of rank 16 takes as much .* Write lora: 15 or less\."):
        ShareLayers(lora=16).check(dissect(model), Given())
    model = shared("bert")
    with pytest.raises(LissomError, match=r"LSM-318 .* this map has a delta already"):
        ShareLayers(lora=2).check(dissect(model), Given())
    path = "encoder.layer.0.output.dense"
    with pytest.raises(LissomError, match=r"LSM-451 .* this map has a delta already"):
        Editor(copy.deepcopy(model)).apply(AddLora(ranks={path: 2}))
    with pytest.raises(LissomError, match=r"LSM-451 .* rank 33 is outside 1 to 32"):
        Editor(tiny.model("bert")).apply(AddLora(ranks={path: 33}))


def test_units_of_maps_with_deltas_are_not_gated():
    with pytest.raises(LissomError, match=r"LSM-715 .* Remove units first"):
        parts(dissect(shared("bert")))


def test_plan_says_that_deltas_cost():
    assert ShareLayers(lora=2).words().startswith("slower by the work of the deltas; not faster")
