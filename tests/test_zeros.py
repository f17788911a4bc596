"""Folders leave zeros out: fewer bytes, the same model, and nothing else of a model knows."""

import json
import math

import pytest
import safetensors.torch
import torch
import transformers

import lissom
from lissom.edits import Editor, Factorize, KeepNeurons, ScaleInputs, ShareLayers
from lissom.errors import LissomError
from lissom.measure.size import in_memory
from lissom.methods import Given
from lissom.methods.pruning.prune_weights import PruneWeights
from lissom.methods.quantization.half import Half
from lissom.methods.quantization.int8 import Int8
from lissom.store.zeros import sparse_maps
from tests import tiny


def pruned(kind, head="AutoModel", **options):
    editor = Editor(tiny.model(kind, head))
    PruneWeights(**options).apply(editor, Given())
    return editor


def weight_bytes(folder):
    return sum(
        one.numel() * one.element_size() for one in safetensors.torch.load_file(folder / "model.safetensors").values()
    )


@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_saved_loaded_equal_and_smaller(kind, tmp_path):
    model = pruned(kind, ratio=0.75).model
    dense = tiny.model(kind)
    lissom.save(model, tmp_path / "sparse")
    lissom.save(dense, tmp_path / "dense")
    loaded = lissom.load(tmp_path / "sparse")
    assert torch.equal(tiny.outputs(loaded, tiny.batch(model)), tiny.outputs(model, tiny.batch(model)))
    assert all(torch.equal(one, loaded.state_dict()[name]) for name, one in model.state_dict().items())
    assert [type(one) for one in loaded.modules()] == [type(one) for one in model.modules()]
    maps = {slot.path: slot.weight for slot in lissom.dissect(model).linears()}
    saved = sum(
        3 * one.numel() - math.ceil(one.numel() / 8) for one in {id(one): one for one in maps.values()}.values()
    )
    assert weight_bytes(tmp_path / "dense") - weight_bytes(tmp_path / "sparse") == pytest.approx(saved, rel=0.01)
    assert in_memory(model).value == weight_bytes(tmp_path / "sparse") / 1e6
    assert in_memory(dense).value == weight_bytes(tmp_path / "dense") / 1e6


def test_by_the_auto_class_and_with_another_head(tmp_path):
    model = pruned("bert", "AutoModelForSequenceClassification").model
    lissom.save(model, tmp_path)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(tiny.outputs(loaded, tiny.batch(model)), tiny.outputs(model, tiny.batch(model)))
    bare = transformers.AutoModel.from_pretrained(tmp_path)
    assert torch.equal(bare.encoder.layer[1].output.dense.weight, model.bert.encoder.layer[1].output.dense.weight)
    half = transformers.AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.encoder.layer[1].output.dense.weight.dtype == torch.bfloat16


def test_a_decoder_generates_and_trains_on(tmp_path):
    model = pruned("llama", "AutoModelForCausalLM", pattern="2:4").model
    lissom.save(model, tmp_path / "one")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    start = torch.tensor([[1, 5, 7]])
    assert torch.equal(loaded.generate(start, max_new_tokens=5), model.generate(start, max_new_tokens=5))
    assert all(one.requires_grad for one in loaded.parameters())
    with torch.no_grad():
        loaded.model.layers[0].mlp.up_proj.weight[0, 0] = 1.0
    lissom.save(loaded, tmp_path / "two")
    again = lissom.load(tmp_path / "two")
    assert again.model.layers[0].mlp.up_proj.weight[0, 0] == 1.0


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5", "bart", "albert", "deberta-v2"])
def test_tables_too_unless_they_are_shared(kind, tmp_path):
    head = {"gpt2": "AutoModelForCausalLM", "llama": "AutoModelForCausalLM", "t5": "AutoModelForSeq2SeqLM"}
    model = tiny.model(kind, head.get(kind, "AutoModelForSequenceClassification"))
    tables = [one for one in model.modules() if type(one) is torch.nn.Embedding]
    with torch.no_grad():
        for one in tables:
            one.weight[3:, ::2] = 0
    lissom.save(model, tmp_path)
    loaded = lissom.load(tmp_path)
    assert torch.equal(tiny.outputs(loaded, tiny.batch(model)), tiny.outputs(model, tiny.batch(model)))
    assert [type(one) for one in loaded.modules()] == [type(one) for one in model.modules()]
    assert in_memory(model).value == weight_bytes(tmp_path) / 1e6
    if kind in ("bert", "llama"):
        assert any("embed" in path for path in sparse_maps(model))
    if kind == "gpt2":
        assert loaded.lm_head.weight is loaded.transformer.wte.weight
        assert "transformer.wte" not in sparse_maps(model)


def test_few_zeros_leave_a_folder_plain(tmp_path):
    lissom.save(pruned("bert", ratio=0.1).model, tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())


def test_with_every_edit_before_and_after(tmp_path):
    """Cut, shared, factorized, scaled, pruned, saved; then cut, pruned and saved again."""
    editor = Editor(tiny.model("bert"))
    editor.apply(KeepNeurons(neurons=((0, 1, 2, 5, 9),) * 3))
    editor.apply(ShareLayers(source=(0, 0, 2)))
    paths = [slot.path for slot in editor.anatomy().linears() if "layer.2" in slot.path]
    editor.apply(Factorize(ranks={paths[0]: 8}))
    editor.apply(ScaleInputs(linears=(paths[1],)))
    for part in (f"{paths[0]}.down", f"{paths[0]}.up"):
        torch.nn.init.normal_(editor.model.get_submodule(part).weight)
    PruneWeights().apply(editor, Given())
    assert {f"{paths[0]}.down", f"{paths[0]}.up", f"{paths[1]}.inner"} <= sparse_maps(editor.model).keys()
    lissom.save(editor.model, tmp_path / "one")
    again = Editor(lissom.load(tmp_path / "one"))
    inputs = tiny.batch(editor.model)
    assert torch.equal(tiny.outputs(again.model, inputs), tiny.outputs(editor.model, inputs))
    first, second = (again.model.encoder.layer[i].attention.self.query.weight for i in (0, 1))
    assert first is second
    again.apply(KeepNeurons(neurons=((0, 3),) * 3))
    PruneWeights(ratio=0.75).apply(again, Given())
    lissom.save(again.model, tmp_path / "two")
    twice = lissom.load(tmp_path / "two")
    assert torch.equal(tiny.outputs(twice, inputs), tiny.outputs(again.model, inputs))


def test_packing_takes_the_place(tmp_path):
    for step in (Int8(), Half()):
        editor = pruned("llama")
        step.apply(editor, Given())
        assert bool(sparse_maps(editor.model)) == (step.name == "half")
        lissom.save(editor.model, tmp_path / step.name)
        loaded = lissom.load(tmp_path / step.name)
        inputs = tiny.batch(loaded)
        assert torch.equal(tiny.outputs(loaded, inputs), tiny.outputs(editor.model, inputs))


def test_a_graph_says_that_it_is_no_faster(tmp_path):
    made = lissom.export(pruned("bert").model, "onnx", tmp_path / "graph")
    assert made.notes == (
        "Zeros among the weights are stored and computed like other numbers here: no dense engine gets faster by them.",
    )
    assert not lissom.export(tiny.model("bert"), "onnx", tmp_path / "dense").notes


def damaged(folder, change):
    """The folder without the file that holds the digests, and with a change of its config or weights."""
    lissom.save(pruned("bert").model, folder)
    (folder / "lissom.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    change(config["quantization_config"]["zeros"], weights)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


PATH = "encoder.layer.0.output.dense"
DAMAGES = {
    "LSM-452 .*no linear map or table with zeros": lambda zeros, weights: zeros.update({"encoder.layer.0.output": 5}),
    "LSM-452 .*9999999 of 1536 weights": lambda zeros, weights: zeros.update({PATH: 9999999}),
    "LSM-452 .*zeros is not a map": lambda zeros, weights: zeros.update({PATH: -1}),
    "LSM-445 .*shape": lambda zeros, weights: zeros.update({PATH: 5}),
    "LSM-445 .*bits are set in the mask": lambda zeros, weights: weights[f"{PATH}.weight_mask"].fill_(255),
    "LSM-443 .*weight_mask": lambda zeros, weights: weights.pop(f"{PATH}.weight_mask"),
}


@pytest.mark.parametrize("cause", DAMAGES)
def test_damaged_folders_are_refused(cause, tmp_path):
    damaged(tmp_path / "one", DAMAGES[cause])
    with pytest.raises(LissomError, match=cause):
        lissom.load(tmp_path / "one")
