"""Hidden width: the channels that matter least go, everywhere."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import transformers
from transformers import PreTrainedModel

import lissom
from lissom.anatomy import residual
from lissom.data import load_data
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods import Given
from lissom.methods.pruning.prune_hidden import PruneHidden
from lissom.recipe import Recipe
from lissom.stats.importance import channel_activation, channel_magnitude
from tests import tiny

HEAD = "AutoModelForSequenceClassification"


def texts() -> Given:
    return Given(data=load_data({"train": tiny.labelled_texts(12)}), tokenizer=tiny.tokenizer())


@pytest.mark.parametrize("by", ["magnitude", "activations"])
@pytest.mark.parametrize("variant", ["bert", "llama", "t5"])
def test_silent_channels_go_first(variant: str, by: str):
    editor = Editor(tiny.model(variant, HEAD))
    stream, silent = residual(editor.model), [1, 2, 5, 9, 30, 31, 17, 8]
    with torch.no_grad():
        for path in (*stream.tables, *stream.norms):
            module = editor.model.get_submodule(path)
            module.weight[..., silent] = 0
            if getattr(module, "bias", None) is not None:
                module.bias[silent] = 0
        for slot in stream.reads:
            slot.weight[:, silent] = 0
        for slot in stream.writes:
            slot.weight[silent] = 0
    said = PruneHidden(ratio=0.25, by=by).apply(editor, texts())
    assert said == {"channels_before": 32, "channels_after": 24}
    assert editor.record.edits[0].channels == tuple(at for at in range(32) if at not in silent)


def test_magnitude_by_hand():
    """Two channels. Table columns (3, 0), reads (0, 4), writes (4, 3): √(9+0+16) and √(0+16+9)."""
    model = tiny.model("bert", hidden_size=2, num_hidden_layers=1, num_attention_heads=1, intermediate_size=3)
    stream = residual(model)
    with torch.no_grad():
        for one in model.parameters():
            one.zero_()
        model.get_submodule(stream.tables[0]).weight[0, 0] = 3
        stream.reads[0].weight[0, 1] = 4
        stream.writes[0].weight[:, 0] = torch.tensor([4.0, 3.0])
    assert channel_magnitude(stream).tolist() == [5.0, 5.0]


def test_activations_by_hand():
    """What goes into the one layer is the norm's bias (3, 4), on real tokens as on padding."""
    model = tiny.model("bert", hidden_size=2, num_hidden_layers=1, num_attention_heads=1, intermediate_size=3)
    with torch.no_grad():
        model.embeddings.LayerNorm.weight.zero_()
        model.embeddings.LayerNorm.bias.copy_(torch.tensor([3.0, 4.0]))
    found = channel_activation(model, Editor(model).anatomy().stacks, [tiny.batch(model)])
    torch.testing.assert_close(found, torch.tensor([3.0, 4.0]))


def test_the_count_is_a_multiple_of_the_heads_and_ratio_0_changes_nothing():
    for ratio, left in ((0.0, 32), (0.05, 32), (0.3, 24), (0.99, 4)):
        editor = Editor(tiny.model("bert"))
        PruneHidden(ratio=ratio).apply(editor, Given())
        assert editor.model.config.hidden_size == left
        assert bool(editor.record.edits) == (left < 32)


def test_cut_trained_rounded_and_exported(tmp_path: Path):
    steps = "  - prune_hidden: {by: activations}\n  - prune_vocab\n  - int8: {mode: dynamic}\n"
    data = {"train": tiny.labelled_texts(16), "validation": tiny.labelled_texts(8, seed=1)}
    result = lissom.compress(
        tiny.model("bert", HEAD),
        Recipe.parse(f"lissom: 1\nsteps:\n{steps}", "x"),
        data=data,
        tokenizer=tiny.tokenizer(),
    )
    result.save(tmp_path / "out")
    inputs = {name: one.clamp(max=9) if name == "input_ids" else one for name, one in tiny.batch(result.model).items()}
    assert torch.equal(tiny.outputs(lissom.load(tmp_path / "out"), inputs), tiny.outputs(result.model, inputs))
    result.export("onnx", tmp_path / "exported")  # refuses to be written unless it answers as torch does


def test_activations_need_texts():
    with pytest.raises(LissomError, match="LSM-317"):
        PruneHidden(by="activations").check(Editor(tiny.model("bert")).anatomy(), Given())


CAUSAL = "AutoModelForCausalLM"


def tied(variant: str) -> PreTrainedModel:
    return tiny.model(variant, CAUSAL, tie_word_embeddings=True)


@pytest.mark.parametrize("variant", ["llama", "gpt2", "opt", "gpt_neox", "qwen3"])
def test_components_are_saved_loaded_generating_exported_and_cut_again(variant: str, tmp_path: Path):
    editor = Editor(tied(variant))
    step = PruneHidden(ratio=0.25, by="components", samples=8)
    said = step.apply(editor, texts())
    assert said["channels_after"] == editor.model.config.hidden_size == 24
    assert 0.75 < said["kept"] < 1
    model, inputs = editor.model, tiny.batch(editor.model)
    shares = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert shares == (variant in {"llama", "qwen3"})
    again = copy.deepcopy(model)
    assert step.apply(Editor(again), texts())["channels_after"] == 16
    for number, made in enumerate((model, again)):
        folder = tmp_path / str(number)
        lissom.save(made, folder, tokenizer=tiny.tokenizer())
        loaded = lissom.load(folder)
        assert torch.equal(tiny.outputs(loaded, inputs), tiny.outputs(made, inputs))
        written = [
            one.generate(inputs["input_ids"][:1], max_new_tokens=4, do_sample=False, use_cache=cache).tolist()
            for one, cache in ((loaded, True), (made, False))
        ]
        assert written[0] == written[1]
    if variant in {"llama", "gpt2"}:
        lissom.export(tmp_path / "1", "onnx", tmp_path / "onnx")  # refuses unless it answers as torch does


def test_a_turned_llama_is_loaded_by_plain_transformers(tmp_path: Path):
    editor = Editor(tiny.model("llama", CAUSAL))
    PruneHidden(by="components", samples=8).apply(editor, texts())
    lissom.save(editor.model, tmp_path / "out")
    assert "quantization_config" not in (tmp_path / "out" / "config.json").read_text()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    inputs = tiny.batch(loaded)
    assert torch.equal(tiny.outputs(loaded, inputs), tiny.outputs(editor.model, inputs))


@pytest.mark.parametrize(("variant", "ties"), [("llama", False), ("llama", True), ("gpt2", False), ("gpt2", True)])
def test_states_of_few_dimensions_are_cut_without_loss(variant: str, ties: bool):
    """All that writes lies in 20 of 32 directions, none of them a channel: 24 components hold them all."""
    model = tiny.model(variant, CAUSAL, tie_word_embeddings=ties, **NO_EPS[variant])
    stream = residual(model)
    basis = torch.linalg.qr(torch.randn(32, 20, generator=torch.Generator().manual_seed(1)))[0]
    onto = basis @ basis.t()
    with torch.no_grad():
        for path in stream.tables:
            model.get_submodule(path).weight.copy_(model.get_submodule(path).weight @ onto)
        for slot in stream.writes:
            weight = slot.module.weight
            weight.copy_(weight @ onto if hasattr(slot.module, "nf") else onto @ weight)
            if slot.module.bias is not None:
                slot.module.bias.copy_(slot.module.bias @ onto)
    before = tiny.outputs(model, tiny.batch(model))
    given = Given(data=load_data({"train": {"text": tiny.texts(64)}}), tokenizer=tiny.tokenizer())
    said = PruneHidden(ratio=0.25, by="components").apply(Editor(model), given)
    assert said["kept"] == 1
    torch.testing.assert_close(tiny.outputs(model, tiny.batch(model)), before, atol=1e-3, rtol=1e-3)


NO_EPS = {"llama": {"rms_norm_eps": 1e-12}, "gpt2": {"layer_norm_epsilon": 1e-12}}


def test_components_and_the_rest():
    """Ratio 0 changes nothing; a plan has the same shapes; encoders with norms last are refused before any work."""
    step = PruneHidden(ratio=0.25, by="components", samples=8)
    for variant in ("llama", "gpt2"):
        planned, done, whole = (Editor(tied(variant)) for _ in range(3))
        step.preview(planned, texts())
        step.apply(done, texts())
        assert [one.shape for one in planned.model.parameters()] == [one.shape for one in done.model.parameters()]
        assert planned.record == done.record
        PruneHidden(ratio=0, by="components").apply(whole, texts())
        assert not whole.record.edits
    with pytest.raises(LissomError, match=r"LSM-715.*cannot be turned"):
        step.check(Editor(tiny.model("bert", HEAD)).anatomy(), texts())
    with pytest.raises(LissomError, match=r"LSM-317.*by: components looks at texts"):
        step.check(Editor(tied("llama")).anatomy(), Given())
