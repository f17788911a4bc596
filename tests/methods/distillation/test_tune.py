import dataclasses
import re

import pytest
import torch

from lissom.anatomy import dissect
from lissom.data import load_data
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods import METHODS, Given, Stage
from lissom.methods.distillation.tune import Tune
from lissom.methods.options import build, plain
from lissom.recipe import Recipe
from lissom.train.objectives import OBJECTIVES
from lissom.train.objectives.hidden import Hidden
from lissom.train.objectives.logits import Logits
from tests import tiny
from tests.train.tiny_rows import tokenizer, topics

HEAD = "AutoModelForSequenceClassification"


def given(tmp_path, **changes):
    torch.set_num_threads(1)
    return Given(**{"data": topics(), "tokenizer": tokenizer(), "max_length": 16, "work": tmp_path, **changes})


def student(seed=0, **changes):
    return tiny.model("bert", HEAD, seed, num_labels=2, **changes)


def test_it_is_in_the_table():
    assert METHODS["tune"] is Tune
    assert Tune.stage is Stage.TUNE


def test_options_survive_plain_values():
    step = Tune(epochs=1.0, learn={"logits": Logits(temperature=4.0), "hidden": Hidden(layers=((1, 2), (3, 6)))})
    assert build(Tune, plain(step), str) == step


RECIPE = """
lissom: 1
steps:
  - tune:
      epochs: 2
      learn: {logits: {weight: 1.0, temperature: 2.0}, hidden: {weight: 1.0}}
"""


def test_the_recipe_of_the_design_reads():
    (step,) = Recipe.parse(RECIPE, "r.yaml").steps
    assert step == Tune(epochs=2.0, learn={"logits": Logits(), "hidden": Hidden()})


@pytest.mark.parametrize(
    ("learn", "message"),
    [
        ({"logit": {}}, 'LSM-312 learn.logit: unknown key "logit" in tune.learn. Did you mean "logits"?'),
        (
            {"logits": {"temprature": 2}},
            'LSM-312 learn.logits.temprature: unknown key "temprature" in tune.learn.logits. '
            'Did you mean "temperature"?',
        ),
        ({"logits": {"weight": 0}}, "LSM-314 learn.logits.weight: learn.logits.weight 0 is outside 0 and above"),
        ({"hidden": {"layers": [[1, -2]]}}, "learn.hidden.layers.0.1 -2 is outside 0 and above."),
        ({"logits": {"temperature": {"start": 0, "end": 1}}}, '{"start": 0, "end": 1}: start and end lie above 0.'),
        ({"logits": {"weight": {"start": 1}}}, "LSM-315 learn.logits.weight: learn.logits.weight needs end."),
        (
            {"logits": {"weight": {"start": 1, "end": 0, "begin": 0.8, "finish": 0.2}}},
            "begin 0.8 lies behind finish 0.2.",
        ),
        ({"logits": {"weight": {"start": 0, "end": 0}}}, "start and end are both 0, so that it never counts."),
        ({"logits": {"weight": {"start": 1, "end": -1}}}, "start and end are not below 0."),
        ({"logits": {"margin": {"start": -1, "end": 0}}}, "start and end are not below 0."),
        ({"hidden": {"layers": "unifrom"}}, 'Did you mean "uniform"?'),
        ({}, f"LSM-319 learn: learn names no objective. Known: {', '.join(OBJECTIVES)}."),
    ],
)
def test_wrong_objectives_are_explained(tmp_path, learn, message):
    with pytest.raises(LissomError) as caught:
        Tune(learn=learn).check(dissect(student()), given(tmp_path))
    assert message in str(caught.value)


def test_two_names_in_one_entry_of_while_are_named_with_their_line():
    text = "lissom: 1\nsteps:\n  - tune:\n      while:\n        - {movement: {}, fake_quant: {}}\n"
    with pytest.raises(LissomError, match=r"LSM-315 mine.yaml:5: while.0 .*: an entry of while is one name with its"):
        Recipe.parse(text, "mine.yaml")


def test_a_teacher_that_is_missing(tmp_path):
    with pytest.raises(LissomError) as caught:
        Tune(learn={"task": {}, "logits": {}}).check(dissect(student()), given(tmp_path))
    assert str(caught.value) == (
        "LSM-317 learn: logits learns from a teacher, and there is none. Give one, or learn only the task."
    )


def test_a_tokenizer_that_is_missing(tmp_path):
    with pytest.raises(LissomError, match="LSM-317 there is no tokenizer to read the training data with"):
        Tune().check(dissect(student()), given(tmp_path, tokenizer=None))


def test_what_compares_one_row_of_layers_is_refused_for_two_stacks(tmp_path):
    model = tiny.model("bart", HEAD, num_labels=2)
    with pytest.raises(LissomError, match=r"LSM-715 learn: relations compares one row of layers, and bart has"):
        Tune(learn={"relations": {}}).check(dissect(model), given(tmp_path, teacher=model))
    with pytest.raises(LissomError, match=r"LSM-715 attention\.of: scores are those of one row .* Use of: maps\."):
        Tune(learn={"attention": {}}).check(dissect(model), given(tmp_path, teacher=model))
    learn = {"hidden": {}, "attention": {"of": "maps"}}
    Tune(learn=learn).check(dissect(model), given(tmp_path, teacher=model))


def test_it_learns_the_task_without_a_teacher(tmp_path):
    model = student()
    Tune(epochs=4, learning_rate=1e-2, batch_size=8).apply(Editor(model), given(tmp_path))
    assert accuracy(model) > 0.9


def test_it_learns_from_the_teacher_by_default(tmp_path):
    teacher, model = student(1), student()
    Tune(epochs=4, learning_rate=1e-2, batch_size=8).apply(Editor(teacher), given(tmp_path))
    data = topics()
    unlabelled = {"train": data.split("train").remove_columns("label")}
    Tune(epochs=4, learning_rate=1e-2, batch_size=8).apply(
        Editor(model), given(tmp_path, teacher=teacher, data=dataclasses.replace(data, splits=unlabelled))
    )
    assert accuracy(model) > 0.9


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_structure_and_record_stay(tmp_path, family):
    model, teacher = (tiny.model(family, HEAD, seed, num_labels=2) for seed in (0, 1))
    editor = Editor(model)
    shapes = {name: one.shape for name, one in model.state_dict().items()}
    Tune(epochs=1).apply(editor, given(tmp_path, teacher=teacher))
    assert {name: one.shape for name, one in editor.model.state_dict().items()} == shapes
    assert editor.record.edits == ()


def accuracy(model):
    rows = topics().split("validation")
    inputs = tokenizer()(list(rows["text"]), padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model(**inputs).logits.argmax(dim=-1)
    return float((found == torch.tensor(rows["label"])).float().mean())


def test_a_score_chooses_weights_only_where_answers_are_learnt(tmp_path, monkeypatch):
    from lissom.train.score import Validation

    scored = []
    monkeypatch.setattr(Validation, "__call__", lambda self, model: scored.append(1) or 0.5)
    teacher = student(1)
    Tune(epochs=2, learn={"hidden": {}}).apply(Editor(student()), given(tmp_path, teacher=teacher))
    assert not scored
    Tune(epochs=2, learn={"hidden": {}, "logits": {}}).apply(Editor(student()), given(tmp_path, teacher=teacher))
    assert len(scored) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"while_": [{"fake_quant": {}}, {"movement": {}}]},
            "LSM-319 while: fake_quant stands before movement, and rounds what is masked or gated afterwards. "
            "Write fake_quant last.",
        ),
        (
            {"while_": [{"meta": {}}, {"movement": {}}]},
            "LSM-319 while: meta needs a forward derivative, and movement has none. Do one in this step",
        ),
        (
            {"learn": {"mixup": {}, "task": {}}, "while_": [{"sub_networks": {}}]},
            "LSM-319 while: mixup makes batches of its own, and sub_networks asks for each loss several times.",
        ),
    ],
)
def test_what_cannot_act_together_is_refused_before_any_work(tmp_path, options, message):
    model = student()
    with pytest.raises(LissomError, match=re.escape(message)):
        Tune(**options).check(dissect(model), given(tmp_path, teacher=model))


def test_labels_that_are_missing_are_missed_before_any_work(tmp_path):
    data = topics()
    unlabelled = {"train": data.split("train").remove_columns("label")}
    asked = given(tmp_path, teacher=student(), data=dataclasses.replace(data, splits=unlabelled))
    with pytest.raises(LissomError, match="LSM-317 learn: task learns from labels, and the training rows have none"):
        Tune(learn={"task": {}, "logits": {}}).check(dissect(student()), asked)
    Tune(learn={"logits": {}}).check(dissect(student()), asked)
    for name in ("group_quant", "search_bits", "meta"):
        with pytest.raises(
            LissomError, match=f"LSM-317 while: {name} looks at labels, and the training rows have none"
        ):
            Tune(learn={"logits": {}}, while_=[{name: {}}]).check(dissect(student()), asked)


def test_weights_that_stay_in_floating_point_are_named(tmp_path):
    rounding = {"fake_quant": {"weights": "ternary", "pack": False}}
    step = Tune(while_=(rounding,), learn={"task": {}}, max_steps=1)
    assert step.words() == "no faster: weights stay in floating point"
    assert step.apply(Editor(student()), given(tmp_path))["weights"] == "stay in floating point"
    packs = Tune(while_=({"fake_quant": {}},), learn={"task": {}}, max_steps=1)
    assert "floating point" not in packs.words()
    assert "weights" not in packs.apply(Editor(student()), given(tmp_path / "packs"))


def test_a_language_model_tells_its_loss(tmp_path):
    texts = load_data({"train": {"text": tiny.texts(20)}, "validation": {"text": tiny.texts(10, seed=1)}})
    did = Tune(max_steps=1, learn={"task": {}}).apply(
        Editor(tiny.model("llama", "AutoModelForCausalLM")), given(tmp_path, data=texts)
    )
    assert did["validation_loss"] > 0
    assert "score" not in did
    assert Tune(max_steps=1, learn={"task": {}}).apply(Editor(student()), given(tmp_path))["score"] >= 0


def test_without_labels_to_judge_by_the_last_weights_are_kept(tmp_path):
    data = topics()
    bare = {name: rows.remove_columns("label") for name, rows in data.splits.items()}
    asked = given(tmp_path, teacher=student(1), data=dataclasses.replace(data, splits=bare))
    did = Tune(max_steps=2).apply(Editor(student()), asked)
    assert (did["steps"], did["score"], did["best_step"]) == (2, None, None)
    with pytest.raises(LissomError, match="LSM-317 patience: patience looks at validation scores, and there are none"):
        Tune(patience=1).check(dissect(student()), asked)
