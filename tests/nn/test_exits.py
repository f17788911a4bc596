"""Texts that leave a running batch: answers by hand, one text at a time as in a batch, and nothing left behind."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from lissom.anatomy import dissect
from lissom.edits import AddExits, Editor, SetExits, exits_of
from lissom.nn.exit_rules import EVERYBODY, NOBODY, RULES
from tests import tiny
from tests.contracts.cases import ENCODERS

CLASSIFIER = "AutoModelForSequenceClassification"


@cache
def made(variant: str = "bert", *, reads: str = "mean", classes: int = 3, layers: tuple[int, ...] = (1, 2, 4)):
    """A tiny encoder of five layers with random exits, and a rule at which nobody leaves."""
    depth = {"n_layers": 5} if variant == "distilbert" else {"num_hidden_layers": 5}
    model = tiny.model(variant, CLASSIFIER, num_labels=classes, **depth)
    editor = Editor(model)
    editor.apply(AddExits(layers=layers, head="pooled", reads=reads, judge=True))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for one in exits_of(model).parameters():
            one.copy_(torch.randn(one.shape, generator=generator) * 0.4)
    rule = "confidence" if classes > 1 else "patience"
    editor.apply(SetExits(rule=rule, points={"whole": (NOBODY,) * len(layers)}, use="whole"))
    return model


def ask(model: PreTrainedModel, inputs: dict[str, torch.Tensor], threshold: float | None = None):
    exits = exits_of(model)
    chosen = {} if threshold is None else {"exit_thresholds": torch.full((len(exits.layers),), threshold)}
    with torch.inference_mode():
        return model(**inputs, **chosen)


def batch(model: PreTrainedModel, rows: int, length: int, seed: int) -> dict[str, torch.Tensor]:
    """Random ids, each row padded from a random place on."""
    inputs = tiny.batch(model, rows=rows, length=length, seed=seed)
    lengths = torch.randint(1, length + 1, (rows, 1), generator=torch.Generator().manual_seed(seed))
    inputs["attention_mask"] = (torch.arange(length) < lengths).long()
    inputs["input_ids"] = inputs["input_ids"] * inputs["attention_mask"]
    return inputs


def scores(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    exits = exits_of(model)
    exits.collecting = True
    try:
        with torch.no_grad():
            return exits.scores(model(**inputs)["exit_states"])
    finally:
        exits.collecting = False


@pytest.mark.parametrize("variant", ENCODERS)
def test_nobody_and_everybody(variant: str) -> None:
    model = made(variant)
    depth = len(dissect(model).stacks[0].order)
    plain = copy.deepcopy(model)
    plain.exits.rule = None
    inputs = batch(model, 5, 9, 0)
    whole, ordinary = ask(model, inputs), ask(plain, inputs)
    assert "exit_layer" not in ordinary
    torch.testing.assert_close(whole["logits"], ordinary["logits"], atol=1e-5, rtol=0)
    assert whole["exit_layer"].tolist() == [depth] * 5
    first = ask(model, inputs, EVERYBODY)
    assert first["exit_layer"].tolist() == [1] * 5
    with torch.no_grad():
        states = plain(**inputs, output_hidden_states=True)["hidden_states"][1]
    mask = inputs["attention_mask"][..., None].float()
    read = (states * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(first["logits"], model.exits.answer(0, read), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", ENCODERS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(rows=st.integers(1, 9), length=st.integers(1, 12), seed=st.integers(0, 999), share=st.floats(0, 1))
def test_a_batch_is_answered_as_one_text_at_a_time(variant: str, rows: int, length: int, seed: int, share: float):
    model = made(variant)
    inputs = batch(model, rows, length, seed)
    threshold = float(scores(model, inputs).quantile(share)) + 1e-5  # between scores, not on one
    together = ask(model, inputs, threshold)
    alone = [ask(model, {name: one[i : i + 1] for name, one in inputs.items()}, threshold) for i in range(rows)]
    assert together["exit_layer"].tolist() == [int(one["exit_layer"]) for one in alone]
    torch.testing.assert_close(together["logits"], torch.cat([one["logits"] for one in alone]), atol=1e-4, rtol=0)
    with torch.no_grad():  # here nobody leaves the batch, and the answers are the same
        chosen = torch.full((3,), threshold)
        slowly = model(**inputs, exit_thresholds=chosen)
    assert torch.equal(slowly["exit_layer"], together["exit_layer"])
    torch.testing.assert_close(slowly["logits"], together["logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("classes", [1, 3])
def test_every_rule_in_a_batch(rule: str, classes: int) -> None:
    if classes == 1 and not RULES[rule].regression:
        return
    model = made(classes=classes)
    before = model.exits.rule, model.exits.constant
    model.exits.rule, model.exits.constant = rule, RULES[rule].constant or 0.0
    try:
        inputs = batch(model, 9, 9, 3)
        found = scores(model, inputs)
        threshold = 1.0 if RULES[rule].whole else float(found.median()) + 1e-5
        together = ask(model, inputs, threshold)
        sure = torch.cat([found >= threshold, torch.ones(1, 9, dtype=torch.bool)])
        assert together["exit_layer"].tolist() == [(1, 2, 4, 5)[i] for i in sure.int().argmax(0)]
        alone = [ask(model, {name: one[i : i + 1] for name, one in inputs.items()}, threshold) for i in range(9)]
        torch.testing.assert_close(together["logits"], torch.cat([one["logits"] for one in alone]), atol=1e-4, rtol=0)
    finally:
        model.exits.rule, model.exits.constant = before


def test_rows_that_left_are_computed_no_more() -> None:
    model, seen = copy.deepcopy(made()), []
    inputs = batch(model, 8, 9, 5)
    for block in dissect(model).stacks[0].blocks:
        model.get_submodule(block.path).register_forward_pre_hook(lambda _module, args: seen.append(len(args[0])))
    layers = ask(model, inputs, float(scores(model, inputs).median()))["exit_layer"]
    del seen[:5]  # of the scores
    assert seen == [int((layers > number).sum()) for number in range(5)]
    assert seen[-1] < 8
    seen.clear()
    ask(model, inputs, EVERYBODY)
    assert seen == [8, 0, 0, 0, 0]


def test_training_and_labels_ask_all_exits() -> None:
    model = made()
    inputs = batch(model, 4, 9, 0)
    said = model(**inputs, labels=torch.tensor([0, 1, 2, 0]))
    assert [tuple(one.shape) for one in said["exit_states"]] == [(4, 32)] * 3
    assert torch.isfinite(said["loss"])
    torch.testing.assert_close(said["logits"], ask(model, inputs)["logits"], atol=1e-5, rtol=0)
    copied = copy.deepcopy(model).train()
    assert len(copied(**inputs)["exit_states"]) == 3


def test_a_failed_call_leaves_nothing_behind() -> None:
    model = made()
    inputs = batch(model, 4, 9, 0)
    before = ask(model, inputs, 0.5)["logits"]
    with pytest.raises(IndexError), torch.inference_mode():
        model(**{**inputs, "input_ids": inputs["input_ids"] + 1000})
    assert model.exits._run is None
    assert torch.equal(ask(model, inputs, 0.5)["logits"], before)
    block = model.get_submodule(dissect(model).stacks[0].blocks[0].path)
    assert torch.isfinite(block(torch.zeros(2, 3, 32))).all()
    assert "forward" not in vars(block)


def test_a_copy_runs_by_itself() -> None:
    model = made()
    twin, inputs = copy.deepcopy(model), batch(made(), 6, 9, 0)
    assert twin.exits is not model.exits
    with torch.no_grad():
        for one in twin.exits.parameters():
            one.zero_()
    assert ask(twin, inputs, EVERYBODY)["logits"].abs().max() == 0
    assert ask(model, inputs, EVERYBODY)["logits"].abs().max() > 0
    assert twin.exits._blocks[0] is twin.get_submodule(dissect(twin).stacks[0].blocks[0].path)


def test_an_answer_as_a_tuple() -> None:
    model, inputs = made(), batch(made(), 6, 9, 0)
    with torch.inference_mode():
        plain = model(**inputs, return_dict=False, exit_thresholds=torch.full((3,), EVERYBODY))
    assert torch.equal(plain[0], ask(model, inputs, EVERYBODY)["logits"])


def test_threads_may_ask_one_model_at_once() -> None:
    model = made()
    inputs = [batch(model, 4, 7, seed) for seed in range(8)]
    middle = float(scores(model, inputs[0]).median())
    wanted = [ask(model, one, middle)["logits"] for one in inputs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: ask(model, one, middle)["logits"], inputs * 5))
    for one, other in zip(found, wanted * 5, strict=True):
        torch.testing.assert_close(one, other)


def test_a_call_that_fails_lets_the_next_thread_in() -> None:
    model = made()
    with pytest.raises(ValueError, match="too many values"):
        ask(model, {"input_ids": torch.zeros(1, 2, 3, dtype=torch.int64)})
    with ThreadPoolExecutor(1) as pool:
        answered = pool.submit(ask, model, batch(model, 2, 5, 0)).result(timeout=60)
    assert answered["logits"].shape == (2, 3)


def test_texts_leave_under_autocast() -> None:
    model, inputs = made(), batch(made(), 4, 7, 0)
    with torch.autocast("cpu", torch.bfloat16):
        assert ask(model, inputs, EVERYBODY)["exit_layer"].tolist() == [1] * 4


def test_nobody_leaves_where_the_config_asks_for_states() -> None:
    model = copy.deepcopy(made())
    model.config.output_hidden_states = True
    shown = ask(model, batch(model, 4, 7, 0), EVERYBODY)
    assert [len(one) for one in shown["hidden_states"]] == [4] * 6
