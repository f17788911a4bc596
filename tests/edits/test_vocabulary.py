"""The vocabulary: rows, logits and biases go together, and the tokens that a config names are found again."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import lissom
from lissom.anatomy import vocabulary
from lissom.edits import Editor, KeepHeads, KeepVocab, Pack, Record
from lissom.errors import LissomError
from lissom.nn.int8 import quantize_rows
from tests import tiny
from tests.contracts.cases import CASES, Case

GONE = (7, 8, 20, 98)


def kept(size: int) -> list[int]:
    return [one for one in range(size) if one not in GONE]


@pytest.mark.parametrize("case", [one for one in CASES if one.head.endswith(("Model", "LM"))], ids=str)
def test_answers_on_kept_tokens_are_the_same(case: Case):
    model = case.model()
    size, inputs = vocabulary(model).size, case.inputs(model)
    for name in ("input_ids", "decoder_input_ids"):
        if name in inputs:
            for gone in GONE:
                inputs[name][inputs[name] == gone] = 5
    before = tiny.outputs(model, inputs)
    edited = copy.deepcopy(model)
    Editor(edited).apply(KeepVocab.of(edited, kept(size)))
    new = {old: place for place, old in enumerate(kept(size))}
    renamed = {
        name: torch.tensor([new[int(one)] for one in value.flatten()]).view_as(value) if name.endswith("ids") else value
        for name, value in inputs.items()
    }
    answers_tokens = bool(vocabulary(model).outputs)
    if answers_tokens:
        before = before.view(-1, size)[:, kept(size)].flatten()
    torch.testing.assert_close(tiny.outputs(edited, renamed), before, atol=1e-6, rtol=0)
    assert edited.config.vocab_size == size - len(GONE)
    rows = [name for name, one in edited.named_parameters() if one.ndim and one.shape[0] == size]
    assert not rows, "something still counts the old tokens"


def test_by_hand():
    """Of six tokens 1, 2, 4 and 5 stay and are 0, 1, 2 and 3; the padding token 4 is 2 now, the ends 1 and 3."""
    model = tiny.model("llama", "AutoModelForCausalLM", vocab_size=6, pad_token_id=4, eos_token_id=[2, 5])
    model.generation_config.suppress_tokens, model.generation_config.bad_words_ids = [3, 5], [[0], [2, 4]]
    table, output = model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()
    edit = KeepVocab.of(model, [5, 4, 2, 1])
    assert edit == KeepVocab(runs=((1, 3), (4, 6)), named=(1, 2, 4, 5))
    Editor(model).apply(edit)
    assert torch.equal(model.get_input_embeddings().weight, table[[1, 2, 4, 5]])
    assert torch.equal(model.get_output_embeddings().weight, output[[1, 2, 4, 5]])
    for config in (model.config, model.generation_config):
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, [1, 3], 2)
    assert model.get_input_embeddings().padding_idx == 2
    assert model.generation_config.suppress_tokens == [3]
    assert model.generation_config.bad_words_ids == [[1, 2]]
    assert Record.of(model).restore == {"vocab_size": 6, "pad_token_id": 4, "bos_token_id": 1, "eos_token_id": [2, 5]}


def test_its_shape_has_a_run_for_each_token_that_a_config_names():
    """Kept are 2, 5, 6, 9 and 12; 6 and 9 are named, in the places 2 and 3."""
    edit = KeepVocab(runs=((2, 3), (5, 7), (9, 10), (12, 13)), named=(6, 9))
    assert edit.shape() == KeepVocab(runs=((4, 7), (9, 10), (10, 11)), named=(6, 9))
    tokens = edit.shape().tokens()
    assert (len(tokens), tokens.index(6), tokens.index(9)) == (5, 2, 3)


@pytest.mark.parametrize("variant", ["bert", "gpt2", "t5", "bart", "roberta"])
def test_saved_with_a_cut_that_its_config_does_not_tell(variant: str, tmp_path):
    """The config then carries the record, in its short form."""
    head = "AutoModelForSeq2SeqLM" if variant in ("t5", "bart") else "AutoModelForSequenceClassification"
    model = tiny.model(variant, head, pad_token_id=0 if variant == "roberta" else 30)
    editor = Editor(model)
    editor.apply(KeepVocab.of(model, kept(99)))
    for stack in editor.anatomy().stacks:
        heads = [(0,) if variant == "t5" or i % 2 else (0, 2) for i in range(len(stack.blocks))]
        editor.apply(KeepHeads(stack=stack.name, heads=tuple(heads)))
    inputs = tiny.batch(model)
    inputs["input_ids"].clamp_(max=94)
    lissom.save(model, tmp_path / "out")
    loaded = lissom.load(tmp_path / "out")
    assert torch.equal(tiny.outputs(loaded, inputs), tiny.outputs(model, inputs))
    assert loaded.config.pad_token_id == model.config.pad_token_id == (0 if variant == "roberta" else 27)
    assert loaded.get_input_embeddings().padding_idx == model.get_input_embeddings().padding_idx
    if model.can_generate():
        assert loaded.generation_config.to_dict() == model.generation_config.to_dict()
    assert Record.of(loaded) == Record.of(model)


@pytest.mark.parametrize("variant", ["bert", "roberta"])
def test_a_table_in_int8_is_cut_too(variant: str, tmp_path: Path):
    model = tiny.model(variant, "AutoModelForSequenceClassification")
    path = vocabulary(model).tables[0]
    codes, scale = quantize_rows(model.get_submodule(path).weight)
    editor = Editor(model)
    editor.apply(Pack(linears=(), embeddings=(path,)), {f"{path}.weight": codes, f"{path}.weight_scale": scale})
    editor.apply(KeepVocab.of(model, kept(99)))
    assert torch.equal(model.get_submodule(path).weight, codes[kept(99)])
    lissom.save(model, tmp_path / "out")
    loaded = lissom.load(tmp_path / "out")
    assert loaded.get_submodule(path).padding_idx == model.get_submodule(path).padding_idx is not None
    inputs = tiny.batch(model)
    inputs["input_ids"].clamp_(max=94)
    assert torch.equal(tiny.outputs(loaded, inputs), tiny.outputs(model, inputs))


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (KeepVocab(runs=()), "not ascending ranges of at least one of 99"),
        (KeepVocab(runs=((3, 3),)), "not ascending"),
        (KeepVocab(runs=((5, 9), (0, 3))), "not ascending"),
        (KeepVocab(runs=((0, 10**12),)), "not ascending"),
        (KeepVocab(runs=((0, 2),), named=(0, 1)), "token 2 is one that the model names"),
        (KeepVocab(runs=((0, 9),)), "the model names token 0, and the edit does not"),
    ],
)
def test_what_does_not_fit_is_refused(edit: KeepVocab, says: str):
    with pytest.raises(LissomError, match=f"LSM-451.*{says}"):
        Editor(tiny.model("bert")).apply(edit)


def test_tokens_before_the_padding_stay_where_positions_are_counted_from_it():
    model = tiny.model("roberta", pad_token_id=4)
    assert vocabulary(model).first == 5
    with pytest.raises(LissomError, match=r"LSM-451.*token 3 before it must stay"):
        Editor(model).apply(KeepVocab.of(model, set(range(99)) - {3}))
