"""Steps that look at the loss of labels say before any work when there is none."""

from __future__ import annotations

import dataclasses
import re

import pytest

from lissom.data import Data, Task, load_data
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods import METHODS, Given
from lissom.methods.base import check_labelled
from tests import tiny

STEPS = (
    ("obert", {}, "take sparsegpt, which needs none"),
    ("mixed", {"by": "hessian"}, "choose by: answers"),
    ("prune_units", {"by": "labels"}, "choose by: answers"),
    ("svd", {"by": "fisher"}, "choose by: inputs"),
    ("prune_heads", {"by": "first-order"}, "choose by: magnitude"),
    ("prune_neurons", {"by": "fisher"}, "choose by: magnitude"),
)


def data(**labels: object) -> Data:
    return load_data({"train": {"text": tiny.texts(8), **labels}, "validation": tiny.labelled_texts(4)})


def given(found: Data) -> Given:
    return Given(data=found, tokenizer=tiny.tokenizer())


@pytest.mark.parametrize(("name", "options", "instead"), STEPS)
def test_texts_without_labels_are_refused_at_once(name: str, options: dict[str, str], instead: str):
    anatomy = Editor(tiny.model("bert", "AutoModelForSequenceClassification")).anatomy()
    METHODS[name](**options).check(anatomy, given(data(label=[0, 1] * 4)))
    said = re.escape(f"LSM-821 needs labelled texts, and the training texts have no labels. Give labels, or {instead}.")
    with pytest.raises(LissomError, match=said):
        METHODS[name](**options).check(anatomy, given(data()))


@pytest.mark.parametrize("kind", ["question_answering", "masked_language_modelling", "embedding"])
def test_a_task_whose_calibration_texts_have_no_labels_is_refused(kind: str):
    task = Task(kind=kind, metric="cosine")  # type: ignore[arg-type]
    said = f"LSM-821 needs the loss of labels, and takes none for {kind.replace('_', ' ')}. Choose by: x."
    with pytest.raises(LissomError, match=re.escape(said)):
        check_labelled(given(dataclasses.replace(data(label=[0, 1] * 4), task=task)), "choose by: x")


def test_running_text_is_its_own_label():
    check_labelled(given(load_data({"train": {"text": tiny.texts(8)}})), "choose by: x")
