"""Vocabulary pruning: the model and its tokenizer are cut together, and the step says what other texts lose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import lissom
from lissom.data import load_data
from lissom.edits import Editor, Record
from lissom.errors import LissomError
from lissom.methods import Given
from lissom.methods.pruning.prune_vocab import PruneVocab
from lissom.recipe import Recipe
from lissom.runtime import TorchRunner
from tests import tiny

HEAD = "AutoModelForSequenceClassification"
TRAIN = {"text": ["w4 w5 w4", "w6 w5 w4", "w7", "w5"] * 2, "label": [0, 1, 2, 0] * 2}
TEST = {"text": ["w4 w6 w5", "w90 w4", "w5 w80 w81 w4", "w6"], "label": [0, 1, 2, 0]}
DATA = {"train": TRAIN, "validation": TEST, "test": TEST}


def recipe(text: str) -> Recipe:
    return Recipe.parse(f"lissom: 1\nsteps:\n{text}", "recipe.yaml")


def pruned(model: transformers.PreTrainedModel, text: str = "  - prune_vocab\n") -> lissom.compress.Result:
    return lissom.compress(model, recipe(text), data=DATA, tokenizer=tiny.tokenizer(), max_length=32)


def test_by_hand():
    """Kept: w4 to w7, the unknown word w3 and three special tokens. Of 10 other tokens w90, w80 and w81 are lost."""
    result = pruned(tiny.model("bert", HEAD))
    assert result.tokenizer.get_vocab() == {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2} | {f"w{at}": at for at in range(3, 8)}
    assert result.model.get_input_embeddings().weight.shape == (8, 32)
    assert result.steps[0]["did"] == {
        "tokens_before": 99,
        "tokens_after": 8,
        "texts_read": 8,
        "other_texts": 8,
        "unchanged_texts": 0.5,
        "changed_tokens": 6 / 20,
        "longer_by": 0.0,
        "new_unknown": 6 / 20,
    }


@pytest.mark.parametrize(
    ("options", "words"), [({"at_least": 4}, {"w4", "w5"}), ({"keep": 0.01}, {"w4"}), ({"at_least": 9}, set())]
)
def test_rare_tokens_go(options: dict[str, float], words: set[str]):
    editor = Editor(tiny.model("bert", HEAD), tiny.tokenizer())
    PruneVocab(**options).apply(editor, Given(data=load_data(DATA), tokenizer=tiny.tokenizer()))
    assert set(editor.tokenizer.get_vocab()) == {"[PAD]", "[CLS]", "[SEP]", "w3", *words}


@pytest.mark.parametrize("variant", ["bert", "gpt2", "llama", "t5", "bart"])
def test_saved_exported_and_answering_as_before(variant: str, tmp_path: Path):
    model = tiny.model(variant, HEAD)
    result = pruned(model, "  - prune_neurons: {ratio: 0.5}\n  - prune_vocab\n")
    whole = lissom.compress(model, recipe("  - prune_neurons: {ratio: 0.5}\n")).model
    inside = ["w4 w6", "w5", "w7 w7 w4 w5"]
    expected = TorchRunner(whole, tiny.tokenizer(), max_length=32).predict(inside)
    result.save(tmp_path / "out")
    assert len(transformers.AutoTokenizer.from_pretrained(tmp_path / "out")) == 8
    for runner in (
        TorchRunner(result.model, result.tokenizer, max_length=32),
        lissom.open_runner(tmp_path / "out", max_length=32),
    ):
        np.testing.assert_allclose(runner.predict(inside), expected, atol=1e-6)
        assert np.isfinite(runner.predict(["w50 w4", "something else"])).all()
    if variant in ("bert", "gpt2"):
        result.export("onnx", tmp_path / "exported")
        there = lissom.open_runner(tmp_path / "exported", max_length=32)
        np.testing.assert_allclose(there.predict(inside), expected, atol=1e-4)


@pytest.mark.parametrize(("variant", "head"), [("llama", "AutoModelForCausalLM"), ("bart", "AutoModelForSeq2SeqLM")])
def test_a_model_that_writes_goes_on_writing(variant: str, head: str, tmp_path: Path):
    model = tiny.model(variant, head, tie_word_embeddings=True)
    editor = Editor(model, tiny.tokenizer())
    PruneVocab().apply(editor, Given(data=load_data(DATA), tokenizer=tiny.tokenizer()))
    lissom.save(model, tmp_path / "out", tokenizer=editor.tokenizer)
    loaded = getattr(transformers, head).from_pretrained(tmp_path / "out")
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    prompt = torch.tensor([[1, 5, 7, 4]])
    said = loaded.generate(prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert torch.equal(said, model.generate(prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False))
    assert int(said.max()) < 8


def test_the_table_is_rounded_and_measured_afterwards(tmp_path: Path):
    result = pruned(tiny.model("bert", HEAD), "  - prune_vocab\n  - int8: {mode: static}\n")
    assert result.model.get_input_embeddings().weight.dtype == torch.int8
    assert len(result.model.get_input_embeddings().weight) == 8
    result.save(tmp_path / "out")
    inputs = {"input_ids": torch.tensor([[1, 5, 2]])}
    assert torch.equal(tiny.outputs(lissom.load(tmp_path / "out"), inputs), tiny.outputs(result.model, inputs))
    assert result.readings["accuracy"] is not None


def test_nothing_is_cut_where_every_token_is_used():
    model = tiny.model("bert", HEAD)
    data = {"train": {"text": [" ".join(f"w{i}" for i in range(3, 99))] * 2, "label": [0, 1]}}
    result = lissom.compress(model, recipe("  - prune_vocab\n"), data=data, tokenizer=(reader := tiny.tokenizer()))
    assert result.tokenizer is reader
    assert not Record.of(result.model).edits


def test_a_plan_reads_each_stage_with_its_own_tokenizer():
    plan = lissom.plan(tiny.model("bert", HEAD), recipe("  - prune_vocab\n"), data=DATA, tokenizer=tiny.tokenizer())
    assert plan.before.parameters - plan.after.parameters == 91 * 32


def test_training_afterwards_is_refused_in_one_line():
    with pytest.raises(LissomError, match=r"LSM-316.*tune cannot follow prune_vocab.*order: tune, prune_vocab"):
        recipe("  - prune_vocab\n  - tune: {epochs: 1}\n").check_order()


def test_what_is_missing_is_said():
    model = tiny.model("bert", HEAD, vocab_size=50)
    with pytest.raises(LissomError, match=r"LSM-317.*needs texts"):
        lissom.compress(model, recipe("  - prune_vocab\n"))
    with pytest.raises(LissomError, match=r"LSM-318.*the tokenizer has 99 tokens, the model 50"):
        pruned(model)


def test_perplexities_of_unlike_tokens_give_no_ratio():
    model = tiny.model("gpt2", "AutoModelForCausalLM")
    data = {"train": {"text": tiny.texts(8)}, "test": {"text": tiny.texts(8, seed=1)}}
    result = lissom.compress(model, recipe("  - prune_vocab\n"), data=data, tokenizer=tiny.tokenizer(), keep=0.5)
    keep = next(row for row in result.rows if row.subject == "compressed").reading("keep")
    assert keep.value is None
    assert keep.how.startswith("Perplexity counts tokens, and the two read by")
    assert not result.verdicts[0].met
