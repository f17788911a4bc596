"""Which thresholds are chosen: by hand from tables of answers, and on a model."""

from __future__ import annotations

import pytest
import torch

from lissom.data import load_data
from lissom.edits import AddExits, Editor, exits_of
from lissom.errors import LissomError
from lissom.methods import METHODS
from lissom.methods.base import Given
from lissom.methods.early_exit.set_exits import SetExits, _lowest
from lissom.nn.exit_rules import NOBODY
from lissom.stats.exits import ExitTable
from tests import tiny

CLASSIFIER = "AutoModelForSequenceClassification"


def table() -> ExitTable:
    """Three texts, two exits after layers 1 and 2 of 4; the logits of each answer are its number, from 0."""
    logits = torch.arange(3.0)[:, None, None].expand(3, 3, 2)
    return ExitTable(logits=logits, scores=torch.tensor([[0.9, 0.2, 0.1], [0.0, 0.8, 0.3]]), layers=(1, 2, 4))


def test_texts_leave_at_the_first_exit_that_is_sure() -> None:
    left = table().leave(torch.tensor([0.5, 0.5]))
    assert left.tolist() == [0, 1, 2]
    assert table().answers(left)[:, 0].tolist() == [0.0, 1.0, 2.0]
    assert table().mean_layers(left) == pytest.approx((1 + 2 + 4) / 3)
    assert table().leave(torch.tensor([NOBODY, NOBODY])).tolist() == [2, 2, 2]
    assert table().leave(torch.tensor([0.0, 0.0])).tolist() == [0, 0, 0]


def test_the_lowest_threshold_before_the_first_that_misses() -> None:
    tried = [{"threshold": t, "kept": k, "layers": 1.0} for t, k in ((9, 1.0), (0.9, 0.99), (0.8, 0.95), (0.7, 1.0))]
    assert _lowest(tried, 0.98)["threshold"] == 0.9  # not 0.7, which keeps it by chance
    assert _lowest(tried, 0.9)["threshold"] == 0.7
    missed = _lowest(tried, 1.1)
    assert (missed["threshold"], missed["met"]) == (9, False)


def given(*, labels: bool = True) -> Given:
    rows = tiny.labelled_texts(32)
    rows = rows if labels else {"text": rows["text"]}
    model = tiny.model("bert", CLASSIFIER)
    data = load_data({"train": rows, "validation": rows})
    return Given(data=data, tokenizer=tiny.tokenizer(), teacher=model, max_length=32)


@pytest.mark.parametrize("rule", ["confidence", "patience"])
def test_points_of_a_model(rule: str) -> None:
    model = tiny.model("bert", CLASSIFIER)
    editor = Editor(model)
    editor.apply(AddExits(layers=(1, 2)))
    step, gets = SetExits(rule=rule, keep={"all": 1.0, "some": 0.5}, use="some"), given()
    step.check(editor.anatomy(), gets)
    did = step.apply(editor, gets)["points"]
    exits = exits_of(model)
    assert exits is not None
    assert exits.use == "some"
    assert {name: point[0] for name, point in exits.points.items()} == {n: one["threshold"] for n, one in did.items()}
    assert did["all"]["layers"] >= did["some"]["layers"] >= 1
    assert did["some"]["kept"] >= 0.5


def test_a_threshold_of_ones_own_needs_no_data() -> None:
    model = tiny.model("bert", CLASSIFIER)
    editor = Editor(model)
    editor.apply(AddExits(layers=(1, 2)))
    step = SetExits(threshold=0.8)
    step.check(editor.anatomy(), Given())
    step.apply(editor, Given())
    assert exits_of(model).points == {"fixed": (0.8, 0.8)}


def test_what_is_refused() -> None:
    assert METHODS["set_exits"] is SetExits
    editor = Editor(tiny.model("bert", CLASSIFIER))
    with pytest.raises(LissomError, match="LSM-317 thresholds are chosen on validation texts, and there are none"):
        SetExits().check(editor.anatomy(), Given())
    with pytest.raises(LissomError, match="LSM-315 use: use names 'x', and keep has accurate, balanced, fast"):
        SetExits(use="x").check(editor.anatomy(), Given())
    with pytest.raises(LissomError, match="LSM-715 set_exits: the model has no exits"):
        SetExits(threshold=0.8).apply(editor, Given())
    editor.apply(AddExits(layers=(1,)))
    with pytest.raises(LissomError, match="LSM-715 set_exits: rule learned asks a judge"):
        SetExits(rule="learned", threshold=0.8).apply(editor, Given())
