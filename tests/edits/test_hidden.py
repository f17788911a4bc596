"""The hidden width: the whole model is cut alike, and nothing but the norms' statistics changes."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import transformers

import lissom
from lissom.anatomy import residual
from lissom.edits import Editor, Factorize, KeepHeads, KeepHidden, KeepVocab, Pack, Record
from lissom.errors import LissomError
from lissom.nn.int8 import quantize_rows
from tests import tiny
from tests.contracts.cases import CASES, Case

KEPT = tuple(range(4, 28))


def in_blocks(model: transformers.PreTrainedModel) -> list[str]:
    return [block.path for stack in Editor(model).anatomy().stacks for block in stack.blocks]


@pytest.mark.parametrize("case", [one for one in CASES if not one.head.endswith("MultipleChoice")], ids=str)
def test_every_family_and_head_is_cut_and_cut_again(case: Case):
    model = case.model()
    inputs = case.inputs(model)
    tied = model.get_output_embeddings() is not None and (
        model.get_output_embeddings().weight is model.get_input_embeddings().weight
    )
    editor = Editor(model)
    editor.apply(KeepHidden(channels=KEPT))
    editor.apply(KeepHidden(channels=tuple(range(0, 16))))
    assert model.config.hidden_size == residual(model).width == 16
    assert torch.isfinite(tiny.outputs(model, inputs)).all()
    outside = [name for name, _ in model.named_parameters() if not name.startswith(tuple(in_blocks(model)))]
    assert not [name for name in outside if 24 in model.get_parameter(name).shape], "something has the width in between"
    assert tied == (
        model.get_output_embeddings() is not None
        and model.get_output_embeddings().weight is model.get_input_embeddings().weight
    )


def test_channels_that_are_zero_everywhere_change_the_norms_alone():
    """A root mean square over 24 of 32 channels is larger by √(32/24) where the other 8 are zero."""
    model = tiny.model("llama", "AutoModelForCausalLM", rms_norm_eps=1e-12)
    gone = [at for at in range(32) if at not in KEPT]
    stream = residual(model)
    with torch.no_grad():
        for path in stream.tables:
            model.get_submodule(path).weight[:, gone] = 0
        for slot in stream.writes:
            slot.weight[gone] = 0
    same = copy.deepcopy(model)
    with torch.no_grad():
        for path in stream.norms:
            same.get_submodule(path).weight *= (24 / 32) ** 0.5
    inputs = tiny.batch(model)
    Editor(model).apply(KeepHidden(channels=KEPT))
    torch.testing.assert_close(tiny.outputs(model, inputs), tiny.outputs(same, inputs), atol=1e-4, rtol=1e-4)


def test_by_hand():
    """One layer, two of four channels: what reads loses columns, what writes loses rows."""
    model = tiny.model(
        "bert", "AutoModelForSequenceClassification", hidden_size=4, num_hidden_layers=1, num_attention_heads=2
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Editor(model).apply(KeepHidden(channels=(0, 3)))
    after, at = model.state_dict(), [0, 3]
    layer = "bert.encoder.layer.0"
    columns = ["attention.self.query", "attention.self.key", "attention.self.value", "intermediate.dense"]
    for name in [f"{layer}.{one}" for one in columns] + ["classifier"]:
        assert torch.equal(after[f"{name}.weight"], before[f"{name}.weight"][:, at])
        assert torch.equal(after[f"{name}.bias"], before[f"{name}.bias"])
    for name in (f"{layer}.attention.output.dense", f"{layer}.output.dense"):
        assert torch.equal(after[f"{name}.weight"], before[f"{name}.weight"][at])
        assert torch.equal(after[f"{name}.bias"], before[f"{name}.bias"][at])
    assert torch.equal(after["bert.pooler.dense.weight"], before["bert.pooler.dense.weight"][at][:, at])
    for name in ("word", "position", "token_type"):
        table = f"bert.embeddings.{name}_embeddings.weight"
        assert torch.equal(after[table], before[table][:, at])
    assert torch.equal(after["bert.embeddings.LayerNorm.weight"], before["bert.embeddings.LayerNorm.weight"][at])
    assert Record.of(model).restore == {"hidden_size": 4}


@pytest.mark.parametrize(
    "variant", ["bert", "gpt2", "llama", "t5", "bart", "opt", "deberta-v2", "albert", "qwen2", "modernbert", "gpt_neox"]
)
def test_saved_and_loaded_with_other_cuts(variant: str, tmp_path: Path):
    head = next(
        one
        for one in ("AutoModelForSeq2SeqLM", "AutoModelForCausalLM", "AutoModelForMaskedLM")
        if one in tiny.heads(variant)
    )
    model = tiny.model(variant, head)
    editor = Editor(model)
    editor.apply(KeepHidden(channels=KEPT))
    for stack in editor.anatomy().stacks:
        editor.apply(KeepHeads(stack=stack.name, heads=tuple((0,) for _ in stack.blocks)))
    editor.apply(KeepVocab.of(model, range(90)))
    maps = tuple(slot.path for slot in editor.anatomy().linears())
    editor.apply(Factorize(ranks=dict.fromkeys(maps, 3)))
    inputs = {name: one.clamp(max=89) if name.endswith("ids") else one for name, one in tiny.batch(model).items()}
    lissom.save(model, tmp_path / "out")
    assert torch.equal(tiny.outputs(lissom.load(tmp_path / "out"), inputs), tiny.outputs(model, inputs))
    start = torch.tensor([[1, 5, 7]])
    if model.can_generate():
        said = model.generate(start, max_new_tokens=4, do_sample=False)
        assert torch.equal(said, model.generate(start, max_new_tokens=4, do_sample=False, use_cache=False))


def test_a_decoder_that_says_its_head_size_is_loaded_by_plain_transformers(tmp_path: Path):
    model = tiny.model("llama", "AutoModelForCausalLM")
    Editor(model).apply(KeepHidden(channels=KEPT))
    lissom.save(model, tmp_path / "out")
    config = (tmp_path / "out" / "config.json").read_text()
    assert "quantization_config" not in config
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (loaded.config.hidden_size, loaded.config.head_dim) == (24, 8)
    assert torch.equal(tiny.outputs(loaded, tiny.batch(model)), tiny.outputs(model, tiny.batch(model)))


def test_keeping_all_changes_nothing():
    model = tiny.model("bert")
    inputs = tiny.batch(model)
    before = tiny.outputs(model, inputs)
    Editor(model).apply(KeepHidden(channels=tuple(range(32))))
    assert torch.equal(tiny.outputs(model, inputs), before)


def test_what_does_not_fit_is_refused():
    model = tiny.model("bert")
    with pytest.raises(LissomError, match=r"LSM-451.*30 channels are no multiple of the 4 attention heads"):
        Editor(model).apply(KeepHidden(channels=tuple(range(30))))
    with pytest.raises(LissomError, match=r"LSM-451.*not an ascending choice"):
        Editor(model).apply(KeepHidden(channels=(3, 1, 2, 4)))
    with pytest.raises(LissomError, match=r"LSM-715.*labels cannot be told from channels"):
        Editor(tiny.model("bert", "AutoModelForSequenceClassification", num_labels=32)).apply(KeepHidden(channels=KEPT))
    path = residual(model).tables[0]
    codes, scale = quantize_rows(model.get_submodule(path).weight)
    editor = Editor(model)
    editor.apply(Pack(linears=(), embeddings=(path,)), {f"{path}.weight": codes, f"{path}.weight_scale": scale})
    with pytest.raises(LissomError, match=r"LSM-451.*Cut the hidden width first"):
        editor.apply(KeepHidden(channels=KEPT))
