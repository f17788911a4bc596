"""Sharing layers: which sets, which values they start from, what is tied, and that it is stored once."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import lissom
from lissom.anatomy import dissect
from lissom.data import load_data
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.export import export
from lissom.measure.flops import model_flops
from lissom.measure.size import parameters
from lissom.methods import METHODS, Given
from lissom.methods.weight_sharing import start
from lissom.methods.weight_sharing.share_layers import ShareLayers, sets
from tests import tiny


def given(tmp_path: Path) -> Given:
    data = load_data({"train": tiny.labelled_texts(48), "validation": tiny.labelled_texts(4, seed=1)})
    return Given(data=data, tokenizer=tiny.tokenizer(), max_length=32, work=tmp_path)


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


def test_a_sandwich_has_ends_of_its_own():
    assert sets(6, 3, "sandwich") == (0, 1, 1, 1, 1, 2)
    assert sets(6, 4, "sandwich") == (0, 1, 1, 2, 2, 3)


@pytest.mark.parametrize(("layers", "unique"), [(12, 1), (12, 2), (12, 3), (12, 4), (10, 4), (7, 3)])
def test_sequence_is_how_albert_groups_its_layers(layers: int, unique: int):
    albert = tiny.model("albert", num_hidden_layers=layers, num_hidden_groups=unique)
    assert dissect(albert).stacks[0].order == sets(layers, unique, "sequence")


@pytest.mark.parametrize("start", ["first", "average", "best", "fit"])
@pytest.mark.parametrize("order", ["sequence", "cycle", "cycle-reversed", "sandwich"])
def test_as_many_sets_as_layers_changes_nothing(order: str, start: str):
    model = tiny.model("bert")
    before = {name: one.clone() for name, one in model.state_dict().items()}
    ShareLayers(unique=3, order=order, start=start).apply(Editor(model), Given())
    assert not Editor(model).record.edits
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert len(set(sets(4, 4, order))) == 4


def test_shared_layers_hold_the_same_tensors_and_are_counted_once_but_computed_each_time():
    model = tiny.model("llama", "AutoModelForCausalLM")
    before = sum(p.numel() for p in model.model.layers.parameters())
    counted, work = parameters(model).value, model_flops(model, 9).value
    ShareLayers(unique=1).apply(Editor(model), Given())
    first, last = model.model.layers[0], model.model.layers[2]
    assert first.self_attn.q_proj.weight is last.self_attn.q_proj.weight
    assert sum(p.numel() for p in model.model.layers.parameters()) * 3 == before
    assert parameters(model).value == counted - before * 2 / 3
    assert model_flops(model, 9).value == work


@pytest.mark.parametrize(("parts", "other"), [("attention", "ffn"), ("ffn", "attention")])
def test_one_part_of_the_layers_alone(parts: str, other: str):
    model = tiny.model("bert")
    before = sum(p.numel() for p in model.parameters())
    ShareLayers(unique=1, parts=parts, start="average").apply(Editor(model), Given())
    blocks = dissect(model).stacks[0].blocks
    shared = [[slot.module.weight for slot in getattr(block, parts).slots()] for block in blocks]
    own = [[slot.module.weight for slot in getattr(block, other).slots()] for block in blocks]
    assert all(a is b for a, b in zip(shared[0], shared[2], strict=True))
    assert not any(a is b for a, b in zip(own[0], own[2], strict=True))
    assert blocks[0].norms
    assert not any(
        model.get_submodule(a).weight is model.get_submodule(b).weight
        for a, b in zip(blocks[0].norms, blocks[1].norms, strict=True)
    )
    once = sum(p.numel() for slot in getattr(blocks[0], parts).slots() for p in slot.module.parameters())
    assert sum(p.numel() for p in model.parameters()) == before - 2 * once


@pytest.mark.parametrize("variant", ["bert", "gpt2", "llama", "modernbert"])
@pytest.mark.parametrize("parts", ["all", "attention", "ffn"])
def test_parts_are_loaded_as_they_were_saved(variant: str, parts: str, tmp_path: Path):
    model = tiny.model(variant)
    inputs = tiny.batch(model)
    ShareLayers(unique=2, order="sequence", parts=parts, start="average").apply(Editor(model), Given())
    wanted = tiny.outputs(model, inputs)
    lissom.save(model, tmp_path / "out")
    again = lissom.load(tmp_path / "out")
    assert torch.equal(tiny.outputs(again, inputs), wanted)
    assert parameters(again).value == parameters(model).value


def test_shared_weights_are_once_on_disk_in_memory_and_in_a_graph(tmp_path: Path):
    whole = tiny.model("bert", "AutoModelForSequenceClassification", intermediate_size=4096)
    model = copy.deepcopy(whole)
    ShareLayers(unique=1).apply(Editor(model), Given())
    layer = 4 * sum(p.numel() for p in whole.bert.encoder.layer[1].parameters())
    saved = {}
    for name, one in (("whole", whole), ("shared", model)):
        lissom.save(one, tmp_path / name)
        export(one, "onnx", tmp_path / f"{name}-onnx", tokenizer=tiny.tokenizer())
        files = (tmp_path / name / "model.safetensors", tmp_path / f"{name}-onnx" / "onnx" / "model.onnx")
        saved[name] = [file.stat().st_size for file in files]
    for before, after in zip(saved["whole"], saved["shared"], strict=True):
        assert 0.99 < (before - after) / (2 * layer) < 1.05
    again = lissom.load(tmp_path / "shared")
    first, *others = (layer.output.dense.weight.data_ptr() for layer in again.bert.encoder.layer)
    assert others == [first, first]


def test_a_set_can_start_at_the_mean_of_its_layers():
    model = tiny.model("bert")
    weights = [block.ffn.up.weight.clone() for block in dissect(model).stacks[0].blocks]
    ShareLayers(unique=1, start="average").apply(Editor(model), Given())
    assert torch.allclose(dissect(model).stacks[0].blocks[2].ffn.up.weight, sum(weights) / 3, atol=1e-6)


@pytest.mark.parametrize("variant", ["bert", "llama", "t5"])
def test_the_best_layer_is_the_one_that_harms_the_answers_least(variant: str, tmp_path: Path):
    """Layers 0 and 2 are alike, so that either hurts in one place and layer 1 in two."""
    head = {"llama": "AutoModelForCausalLM", "t5": "AutoModelForSeq2SeqLM"}.get(variant, "AutoModelForMaskedLM")
    model = tiny.model(variant, head)
    stack = dissect(model).stacks[0]
    blocks = [model.get_submodule(block.path) for block in stack.blocks]
    blocks[2].load_state_dict(blocks[0].state_dict(), strict=False)
    twin = {name: one.clone() for name, one in blocks[2].named_parameters()}
    before = {name: one.clone() for name, one in model.state_dict().items()}
    step = ShareLayers(unique=1, start="best", samples=16, stack=stack.name)
    step.check(dissect(model), given(tmp_path))
    did = step.apply(Editor(model), given(tmp_path))
    assert did == {"best": [0]}
    assert all(torch.equal(one, twin[name]) for name, one in blocks[1].named_parameters() if name in twin)
    changed = {name for name, one in model.state_dict().items() if not torch.equal(one, before[name])}
    assert changed
    assert all(name.startswith(stack.blocks[1].path) for name in changed)


@pytest.mark.parametrize(
    ("variant", "parts"), [("bert", "all"), ("bert", "ffn"), ("llama", "all"), ("gpt2", "attention")]
)
def test_a_fit_imitates_the_layers_better_than_their_mean(variant: str, parts: str, tmp_path: Path):
    model = tiny.model(variant, num_hidden_layers=4) if variant != "gpt2" else tiny.model(variant, n_layer=4)
    mean = copy.deepcopy(model)
    options = {"unique": 2, "order": "sequence", "parts": parts}
    ShareLayers(**options, start="average").apply(Editor(mean), Given())
    step = ShareLayers(**options, start="fit", steps=30, samples=48, learning_rate=3e-3)
    did = step.apply(Editor(model), given(tmp_path))
    assert len(did["errors"]) == 2
    assert all(one["after"] < one["before"] for one in did["errors"])
    assert not model.training
    assert {name: one.shape for name, one in model.state_dict().items()} == {
        name: one.shape for name, one in mean.state_dict().items()
    }
    assert parameters(model).value == parameters(mean).value
    other = tiny.model(variant, **({"n_layer": 4} if variant == "gpt2" else {"num_hidden_layers": 4}))
    step.apply(Editor(other), given(tmp_path))
    assert all(torch.equal(one, other.state_dict()[name]) for name, one in model.state_dict().items())


def test_the_error_of_a_fit_by_hand():
    """A layer that gives what it was given is wrong by all that the original added: a share of 1."""
    model = tiny.model("bert")
    batch = tiny.batch(model)
    edit = lissom.edits.ShareLayers(source=(0, 0, 2))
    fit = start.Fit(first=model, model=model, edit=edit, batches=[batch])
    use = start._Use.of(fit, 0)
    call = use.calls[0]
    assert float(call.error(call.hidden, call.out) / use.added) == pytest.approx(1)
    assert float(use.error(model, 0)) == pytest.approx(0, abs=1e-10)
    real = batch["attention_mask"].bool()
    assert float(use.added) == pytest.approx(float((call.out - call.hidden)[real].square().mean()), rel=1e-5)


@pytest.mark.parametrize("by", ["answers", "hessian"])
def test_shared_maps_get_the_same_bits(by: str, tmp_path: Path):
    model = tiny.model("bert", "AutoModelForSequenceClassification")
    editor = Editor(model)
    ShareLayers(unique=1, parts="ffn" if by == "hessian" else "all").apply(editor, Given())
    did = METHODS["mixed"](bits=3.5, group=8, by=by).apply(editor, given(tmp_path))
    widths = {path: bits for path, bits in did["bits"].items() if by == "answers" or path.endswith("output.dense")}
    of_layers = [
        [bits for path, bits in widths.items() if f"layer.{i}." in path and "attention" not in path] for i in (0, 2)
    ]
    assert of_layers[0] == of_layers[1] != []
    inputs = tiny.batch(model)
    lissom.save(model, tmp_path / "out")
    assert torch.equal(tiny.outputs(lissom.load(tmp_path / "out"), inputs), tiny.outputs(model, inputs))


@pytest.mark.parametrize("variant", ["bert", "llama"])
def test_columns_of_shared_maps_are_those_that_are_large_in_any_layer(variant: str, tmp_path: Path):
    model = tiny.model(variant)
    ShareLayers(unique=1, lora=2).apply(Editor(model), Given())
    METHODS["split_int8"](threshold=2.0).apply(Editor(model), given(tmp_path))
    inputs = tiny.batch(model)
    lissom.save(model, tmp_path / "out")
    assert torch.equal(tiny.outputs(lissom.load(tmp_path / "out"), inputs), tiny.outputs(model, inputs))


@pytest.mark.parametrize("name", ["codebook", "prune_weights", "int8"])
def test_shared_layers_of_a_family_that_fills_maps_in_anew_are_loaded(name: str, tmp_path: Path):
    """GPT-2 draws the weights of c_proj where a file lacks them, and here another layer's name has them."""
    model = tiny.model("gpt2", "AutoModelForCausalLM")
    ShareLayers(unique=1, lora=2).apply(Editor(model), Given())
    METHODS[name]().apply(Editor(model), given(tmp_path))
    inputs = tiny.batch(model)
    lissom.save(model, tmp_path / "out")
    assert torch.equal(tiny.outputs(lissom.load(tmp_path / "out"), inputs), tiny.outputs(model, inputs))


def test_layers_are_shared_again():
    model = tiny.model("bert", num_hidden_layers=4)
    editor = Editor(model)
    ShareLayers(unique=2, order="sequence").apply(editor, Given())
    ShareLayers(unique=1, start="average").apply(editor, Given())
    assert len({layer.output.dense.weight.data_ptr() for layer in model.encoder.layer}) == 1


def test_sets_as_a_share_of_the_layers():
    model = tiny.model("bert", num_hidden_layers=6)
    ShareLayers(unique=0.5).apply(Editor(model), Given())
    assert Editor(model).record.edits[0].source == (0, 1, 2, 0, 1, 2)


def test_more_sets_than_layers_are_refused():
    model = tiny.model("bert")
    with pytest.raises(LissomError, match=r"LSM-318 4 sets of weights for 3 layers"):
        ShareLayers(unique=4).check(dissect(model), Given())


def test_a_sandwich_of_two_sets_is_refused():
    model = tiny.model("bert")
    with pytest.raises(LissomError, match=r"LSM-318 2 sets of weights, and a sandwich has one .* Write unique: 3\."):
        ShareLayers(order="sandwich").check(dissect(model), Given())


@pytest.mark.parametrize("start", ["best", "fit"])
def test_starts_that_look_at_texts_want_some(start: str):
    with pytest.raises(LissomError, match=rf"LSM-317 start: {start} looks at texts\. Give --data"):
        ShareLayers(start=start).check(dissect(tiny.model("bert")), Given())


def test_a_preview_needs_no_texts():
    model = tiny.model("bert")
    ShareLayers(start="fit", unique=1).preview(Editor(model), Given())
    assert model.encoder.layer[0].output.dense.weight is model.encoder.layer[1].output.dense.weight
