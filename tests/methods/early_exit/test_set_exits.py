"""Which thresholds are chosen: by hand from tables of answers, and on a model."""

from __future__ import annotations

import pytest
import torch

from lissom.data import load_data
from lissom.edits import AddExits, Editor, exits_of
from lissom.errors import LissomError
from lissom.methods import METHODS
from lissom.methods.base import Given
from lissom.methods.early_exit.set_exits import SetExits, _agreeing, _lowest
from lissom.nn.exit_rules import EVERYBODY, NOBODY
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


def test_the_threshold_that_guarantees_agreement_by_hand() -> None:
    """Four texts, one exit: it is wrong about two, with scores 0.6 and 0.9. One of five places is above the highest."""
    exit_, last = torch.tensor([[0.0, 1], [1, 0], [0, 1], [1, 0]]), torch.tensor([[0.0, 1], [1, 0], [1, 0], [0, 1]])
    found = ExitTable(logits=torch.stack([exit_, last]), scores=torch.tensor([[0.5, 0.95, 0.6, 0.9]]), layers=(1, 2))
    assert found.agreeing(0.4) == EVERYBODY  # the second of (none, none, 0.6, 0.9)
    assert found.agreeing(0.6) == pytest.approx(0.6)
    assert found.leave(torch.tensor([found.agreeing(0.6)])).tolist() == [1, 0, 1, 0]  # above it, not at it
    assert found.leave(torch.tensor([found.agreeing(0.8)])).tolist() == [1, 0, 1, 1]
    assert found.agreeing(0.81) == NOBODY  # the fifth of four
    assert _agreeing(found, 0.8) == {
        "threshold": found.agreeing(0.8),
        "kept": 1.0,
        "layers": 1.75,
        "wish": 0.8,
        "met": True,
    }


def test_agreement_holds_for_new_texts() -> None:
    """Over many draws: 19 texts to choose by, one to judge by; what holds is a share of at least 0.9."""
    generator = torch.Generator().manual_seed(0)
    agree = 0
    for _ in range(2000):
        scores = torch.rand((2, 20), generator=generator)
        classes = (torch.rand((2, 20), generator=generator) > scores).long()  # wrong more often where it is less sure
        answers = torch.nn.functional.one_hot(torch.cat([classes, torch.zeros_like(classes[:1])]), 2).float()
        seen = ExitTable(logits=answers[:, :19], scores=scores[:, :19], layers=(1, 2, 3))
        new = ExitTable(logits=answers[:, 19:], scores=scores[:, 19:], layers=(1, 2, 3))
        left = new.leave(torch.full((2,), seen.agreeing(0.9)))
        agree += int(new.answers(left).argmax(-1) == 0)
    assert 0.885 < agree / 2000 < 0.95  # 0.9 with a standard error of 0.007, and no more than it costs


def test_agreement_reads_no_labels() -> None:
    model = tiny.model("bert", CLASSIFIER)
    editor = Editor(model)
    editor.apply(AddExits(layers=(1, 2)))
    step = SetExits(by="agreement", keep={"half": 0.5, "all": 0.999}, use="half")
    step.check(editor.anatomy(), given(labels=False))
    did = step.apply(editor, given(labels=False))["points"]
    assert did["all"]["threshold"] == NOBODY
    assert did["half"]["threshold"] < NOBODY
    assert did["half"]["kept"] >= 0.5
    with pytest.raises(LissomError, match="LSM-715 by: by agreement compares classes") as caught:
        step.check(Editor(tiny.model("bert", CLASSIFIER, num_labels=1)).anatomy(), given())
    assert caught.value.remedy == "Use by: quality."


def given(*, labels: bool = True) -> Given:
    rows = tiny.labelled_texts(32)
    rows = rows if labels else {"text": rows["text"]}
    model = tiny.model("bert", CLASSIFIER)
    data = load_data({"train": rows, "validation": rows}, model_labels=None if labels else ("a", "b", "c"))
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
