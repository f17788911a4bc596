"""Forms of a model, exported and timed beside each other: what is in the table, not how fast."""

from __future__ import annotations

import copy

import pytest

import lissom
from lissom import trial
from lissom.data import load_data
from lissom.edits import Editor
from lissom.methods import METHODS, Given
from lissom.recipe import Recipe
from lissom.trial import ENGINES, tried
from tests import tiny

CLASSIFIER = "AutoModelForSequenceClassification"


def asked(forms, texts=12):
    data = load_data({"train": tiny.labelled_texts(texts)})
    return tried(forms, data=data, tokenizer=tiny.tokenizer(), max_length=32, seed=0, rounds=2)


@pytest.fixture
def one_engine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trial, "ENGINES", {"onnx": ENGINES["onnx"]})


@pytest.mark.usefixtures("one_engine")
def test_each_form_has_its_pace_and_its_loyalty():
    model = tiny.model("bert", CLASSIFIER)
    packed = Editor(copy.deepcopy(model))
    METHODS["int8"]().apply(packed, Given())
    found = asked({"float32": model, "dynamic": packed.model})
    assert [(one.form, one.engine) for one in found] == [("float32", "ONNX Runtime"), ("dynamic", "ONNX Runtime")]
    assert found[0].loyalty == 1.0
    assert all(0 < one.low <= one.texts_per_s <= one.high and 0 <= one.loyalty <= 1 for one in found)


@pytest.mark.usefixtures("one_engine")
def test_what_cannot_be_exported_stays_in_the_table(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_args, **_named):
        raise lissom.LissomError(742, "it does not become a graph")

    monkeypatch.setattr(trial, "export", refuse)
    (found,) = asked({"float32": tiny.model("bert", CLASSIFIER)})
    assert (found.texts_per_s, found.why) == (None, "LSM-742 it does not become a graph.")
    assert found.words() == "float32 in ONNX Runtime: LSM-742 it does not become a graph."


@pytest.mark.usefixtures("one_engine")
def test_compress_gives_the_step_what_it_measures_with():
    texts = {"train": tiny.labelled_texts(16), "validation": tiny.labelled_texts(8, seed=1)}
    done = lissom.compress(
        tiny.model("bert", CLASSIFIER),
        Recipe("one", (METHODS["int8"](mode="auto", loyalty=0.0),)),
        data=texts,
        tokenizer=tiny.tokenizer(),
        max_length=32,
    )
    did = done.steps[0]["did"]
    assert {one["form"] for one in did["trials"].values()} == {"float32", "dynamic", "static"}
    assert did["taken"].endswith("in ONNX Runtime, the fastest with loyalty >= 0")
