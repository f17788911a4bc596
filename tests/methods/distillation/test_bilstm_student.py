"""The BiLSTM student: what it takes over from the original, pairs, and a run that teaches it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import datasets
import pytest
import torch

import lissom
from lissom.anatomy import dissect
from lissom.bilstm.model import BiLstmForSequenceClassification
from lissom.data import load_data
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods import METHODS, Given, Stage
from lissom.methods.distillation.bilstm_student import BilstmStudent, between
from lissom.methods.distillation.tune import Tune
from lissom.methods.options import build, plain
from tests import tiny
from tests.train.tiny_rows import tokenizer, topics

HEAD = "AutoModelForSequenceClassification"
PAIRS = {"text": ["w5 w6", "w7"] * 4, "text_b": ["w8", "w9 w9"] * 4, "label": [0, 1] * 4}


def made(variant: str = "bert", options: dict | None = None, **given: object) -> BiLstmForSequenceClassification:
    torch.set_num_threads(1)
    editor = Editor(tiny.model(variant, HEAD))
    step = BilstmStudent(**{"units": 4, "hidden": 5, **(options or {})})
    step.check(editor.anatomy(), Given(**given))
    step.apply(editor, Given(**given))
    return editor.model


def test_it_is_in_the_table() -> None:
    assert METHODS["bilstm_student"] is BilstmStudent
    assert BilstmStudent.stage is Stage.STUDENT


def test_options_survive_plain_values() -> None:
    for step in (BilstmStudent(), BilstmStudent(embedding=64, units=3)):
        assert build(BilstmStudent, plain(step), str) == step


@pytest.mark.parametrize("variant", ["bert", "electra", "distilbert", "t5", "gpt2"])
def test_the_token_table_is_a_copy(variant: str) -> None:
    table = tiny.model(variant, HEAD).get_input_embeddings().weight
    assert torch.equal(made(variant).embeddings.weight, table)
    assert made(variant, {"embedding": 7}).embeddings.weight.shape == (tiny.VOCABULARY, 7)


def test_labels_and_task_are_the_originals() -> None:
    original = tiny.model("bert", HEAD, num_labels=2, problem_type="single_label_classification")
    original.config.id2label = {0: "no", 1: "yes"}
    editor = Editor(original)
    BilstmStudent().apply(editor, Given())
    assert editor.model.config.id2label == {0: "no", 1: "yes"}
    assert editor.model.config.problem_type == "single_label_classification"
    assert editor.model.config.units == 150


def test_pairs_are_read_apart_where_the_tokenizer_parts_them() -> None:
    pairs, single = load_data({"train": PAIRS}), load_data({"train": tiny.labelled_texts(8)})
    assert made(data=pairs, tokenizer=tiny.tokenizer()).config.separator_id == 2
    assert made(data=single, tokenizer=tiny.tokenizer()).config.separator_id is None
    assert made().config.separator_id is None
    glued = tiny.tokenizer()
    glued.backend_tokenizer.post_processor = None
    assert between(glued) is None
    assert made(data=pairs, tokenizer=glued).config.separator_id is None


def test_the_seed_decides() -> None:
    one, same, other = made(), made(), made(seed=1)
    assert torch.equal(one.hidden.weight, same.hidden.weight)
    assert not torch.equal(one.hidden.weight, other.hidden.weight)


def test_a_model_that_answers_tokens_is_refused() -> None:
    model = tiny.model("bert", "AutoModelForTokenClassification")
    with pytest.raises(LissomError) as caught:
        BilstmStudent().check(dissect(model), Given())
    assert str(caught.value) == (
        "LSM-715 the BiLSTM answers whole texts, and BertForTokenClassification does not. "
        "Begin with a classifier or a regression model, or use fresh_student."
    )


def taught(tmp_path: Path, learn: dict) -> BiLstmForSequenceClassification:
    torch.set_num_threads(1)
    data = topics()
    rows = data.split("train")
    unlabelled = {"train": rows.remove_columns("label")}
    teacher = tiny.model("bert", HEAD, num_labels=2)
    given = Given(data=data, tokenizer=tokenizer(), teacher=teacher, max_length=16, work=tmp_path)
    Tune(epochs=4, learning_rate=1e-2, batch_size=8, learn={"task": {}}).apply(Editor(teacher), given)
    editor = Editor(teacher)
    BilstmStudent(units=8, hidden=8).apply(editor, given)
    given = dataclasses.replace(given, data=dataclasses.replace(data, splits=unlabelled))
    Tune(epochs=6, learning_rate=1e-2, batch_size=8, learn=learn).apply(editor, given)
    return editor.model


def test_it_learns_from_logits_alone(tmp_path: Path) -> None:
    student = taught(tmp_path, {"logits": {"loss": "mse"}})
    rows: datasets.Dataset = topics().split("validation")
    inputs = tokenizer()(list(rows["text"]), padding=True, return_tensors="pt")
    with torch.no_grad():
        found = student(inputs["input_ids"], inputs["attention_mask"]).logits.argmax(dim=-1)
    assert float((found == torch.tensor(rows["label"])).float().mean()) > 0.9


@pytest.mark.parametrize(
    ("learn", "message"),
    [
        ({"hidden": {}}, "LSM-715 hidden: the model gives no single row of hidden states"),
        ({"relations": {}}, "LSM-715 lissom-bilstm has no attention to learn from. Learn from logits."),
    ],
)
def test_what_it_cannot_learn_is_explained(tmp_path: Path, learn: dict, message: str) -> None:
    with pytest.raises(LissomError) as caught:
        taught(tmp_path, learn)
    assert message in str(caught.value)


def test_compressed_saved_planned_and_measured(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    data = {"train": PAIRS, "test": PAIRS}
    model = tiny.model("bert", HEAD, num_labels=2)
    recipe = tmp_path / "r.yaml"
    recipe.write_text("lissom: 1\nsteps:\n  - bilstm_student: {units: 4, hidden: 5}\n  - tune: {max_steps: 2}\n")
    planned = lissom.plan(model, recipe, data=data, tokenizer=tiny.tokenizer(), max_length=16)
    result = lissom.compress(model, recipe, data=data, tokenizer=tiny.tokenizer(), keep=0.1, max_length=16)
    assert planned.after.parameters == result.readings["parameters"]
    assert planned.after.flops is not None
    result.save(tmp_path / "out")
    inputs = tiny.batch(model)
    assert torch.equal(tiny.outputs(lissom.load(tmp_path / "out"), inputs), tiny.outputs(result.model, inputs))
