"""`int8: {mode: auto}` takes the fastest form that is loyal enough, from what is measured elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from lissom.cli.compress import told
from lissom.data import load_data
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods import Given
from lissom.methods.base import Trial
from lissom.methods.quantization import int8
from lissom.methods.quantization.int8 import Int8
from lissom.nn import Int8Linear
from lissom.nn.static import StaticInt8Linear
from tests import tiny

CLASSIFIER = "AutoModelForSequenceClassification"
FIGURES = {"float32": (100.0, 1.0), "dynamic": (200.0, 0.99), "static": (300.0, 0.97)}


def given(figures: Mapping[str, tuple[float, float]], seen: dict[str, PreTrainedModel] | None = None) -> Given:
    def trial(models: Mapping[str, PreTrainedModel]) -> list[Trial]:
        (seen if seen is not None else {}).update(models)
        return [
            Trial(form=form, engine="ONNX Runtime", texts_per_s=pace, low=pace - 1, high=pace + 1, loyalty=loyalty)
            for form, (pace, loyalty) in figures.items()
        ] + [Trial(form="static", engine="OpenVINO", why="LSM-742 it cannot be traced")]

    data = load_data({"train": tiny.labelled_texts(16)})
    return Given(data=data, tokenizer=tiny.tokenizer(), max_length=32, trial=trial)


def kinds(editor: Editor) -> set[type]:
    return {type(slot.module) for slot in editor.anatomy().linears()}


def taken(figures: Mapping[str, tuple[float, float]], **options: Any) -> tuple[set[type], dict[str, Any]]:
    editor = Editor(tiny.model("bert", CLASSIFIER))
    step = Int8(mode="auto", **options)
    step.check(editor.anatomy(), given(figures))
    did = step.apply(editor, given(figures))
    assert did is not None
    return kinds(editor), did


def test_the_fastest_loyal_form_is_taken_and_the_table_says_why():
    found, did = taken(FIGURES)
    assert found == {Int8Linear}
    assert did["taken"] == "dynamic in ONNX Runtime, the fastest with loyalty >= 0.985"
    assert "static in ONNX Runtime: 300 texts/s (299 to 301), loyalty 0.970" in did["tried"]
    assert "static in OpenVINO: LSM-742 it cannot be traced" in did["tried"]
    assert did["trials"]["float32 in ONNX Runtime"]["texts_per_s"] == 100
    assert told(did) == f"taken {did['taken']}, tried {did['tried']}"


def test_a_lower_floor_takes_the_faster_one():
    found, did = taken(FIGURES, loyalty=0.96)
    assert found == {StaticInt8Linear}
    assert did["taken"].startswith("static (")


def test_of_forms_whose_intervals_overlap_the_more_loyal_one_is_taken():
    level = {"float32": (100.0, 1.0), "dynamic": (298.5, 0.995), "static": (300.0, 0.99)}  # each reaches 1 up and down
    found, did = taken(level)
    assert found == {Int8Linear}
    assert did["taken"] == (
        "dynamic in ONNX Runtime, as fast as static in ONNX Runtime, whose interval overlaps, and more loyal, "
        "of those with loyalty >= 0.985"
    )
    assert taken({**level, "dynamic": (297.9, 0.995)})[0] == {StaticInt8Linear}  # 298.9 is below 299
    assert taken({**level, "dynamic": (298.5, 0.99)})[1]["taken"].startswith("static (")  # no more loyal: the faster


def test_calibrators_are_judged_on_validation_texts(monkeypatch):
    texts = {"train": tiny.labelled_texts(16), "validation": tiny.labelled_texts(9, seed=1)}
    data, rows = load_data(texts), []
    real = int8._agreement

    def agreement(one, other, batches):
        rows.append(sum(len(batch["input_ids"]) for batch in batches))
        return real(one, other, batches)

    monkeypatch.setattr(int8, "_agreement", agreement)
    editor = Editor(tiny.model("bert", CLASSIFIER))
    Int8(mode="auto").apply(editor, dataclasses.replace(given(FIGURES), data=data))
    assert rows == [9, 9, 9, 9]


def test_where_nothing_is_faster_the_model_stays():
    found, did = taken({**FIGURES, "dynamic": (90.0, 0.99)})
    assert found == {torch.nn.Linear}
    assert did["taken"].startswith("float32 in ONNX Runtime")


def test_what_is_tried_is_what_would_be_made():
    editor, seen = Editor(tiny.model("bert", CLASSIFIER)), {}
    before = {name: one.clone() for name, one in editor.model.state_dict().items()}
    Int8(mode="auto", skip=("*.query",), bits=7).apply(editor, given({**FIGURES, "static": (300.0, 1.0)}, seen))
    assert list(seen) == ["float32", "dynamic", "static"]
    assert all(torch.equal(before[name], one) for name, one in seen["float32"].state_dict().items())
    made, kept = seen["static"].state_dict(), editor.model.state_dict()
    assert made.keys() == kept.keys()
    assert all(torch.equal(made[name], one) for name, one in kept.items())
    assert kinds(Editor(seen["dynamic"])) == {Int8Linear, torch.nn.Linear}


def test_no_form_that_is_loyal_is_one_clear_line():
    with pytest.raises(
        LissomError, match=r"LSM-501 int8\.mode: no form keeps 0\.999 .*float32 in ONNX Runtime: 100 texts/s"
    ):
        taken({"float32": (100.0, 0.9)}, loyalty=0.999)


def test_it_needs_something_to_measure_with_texts_and_labels():
    editor = Editor(tiny.model("bert", CLASSIFIER))
    alone = dataclasses.replace(given(FIGURES), trial=None)
    with pytest.raises(LissomError, match="LSM-317 mode: auto measures on this machine"):
        Int8(mode="auto").apply(editor, alone)
    with pytest.raises(LissomError, match=r"LSM-317 int8: \{mode: auto\} finds the ranges"):
        Int8(mode="auto").check(editor.anatomy(), Given())
    words = Given(data=load_data({"train": {"text": ["one two"] * 12}}), tokenizer=tiny.tokenizer())
    with pytest.raises(LissomError, match=r"LSM-315 int8\.mode: .*language modelling"):
        Int8(mode="auto").check(editor.anatomy(), words)
    with pytest.raises(LissomError, match=r"LSM-315 int8\.per"):
        Int8(mode="auto", per="token").check(editor.anatomy(), alone)
