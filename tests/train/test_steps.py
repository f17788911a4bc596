"""What a step is made of, and when there are no more: budgets of tokens, accumulated batches, patience."""

import math

import pytest
import torch

from lissom.train.score import Validation
from tests import tiny
from tests.train.test_during import Scaling
from tests.train.test_run import CLASSIFIER, equal, run, state
from tests.train.tiny_rows import rows

EXACT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def exact():
    """A model that answers alike each time, for runs that are compared number by number."""
    return tiny.model("bert", CLASSIFIER, **EXACT)


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 8, "accumulate": 5},
        {"batch_size": 16, "accumulate": 3},  # 16, 16 and 8 rows: a mean over rows, not over batches
        {"batch_tokens": 50, "accumulate": 99},
    ],
    ids=["even", "uneven", "tokens"],
)
def test_accumulated_batches_are_one_large_batch(tmp_path, monkeypatch, changes):
    monkeypatch.setattr("lissom.train.run.bf16_is_faster", lambda device: False)
    once, done = run(tmp_path / "a", model=exact(), batch_size=40, learning_rate=1e-4)
    parts, again = run(tmp_path / "b", model=exact(), learning_rate=1e-4, **changes)
    assert (done.steps, again.steps) == (2, 2)
    for name, one in state(once).items():
        torch.testing.assert_close(state(parts)[name], one, rtol=1e-3, atol=1e-5)


def test_the_loss_that_is_reported_is_that_of_all_rows_of_the_step(tmp_path, monkeypatch):
    monkeypatch.setattr("lissom.train.run.bf16_is_faster", lambda device: False)
    data, model = rows(), exact()
    with torch.no_grad():
        whole = -Validation(rows=data.to_list(), metric="loss")(model)
    heard = []
    options = {"rows": data, "batch_size": 16, "accumulate": 3, "epochs": 1}
    run(tmp_path, model=model, report=lambda phrase, fraction: heard.append(phrase), **options)
    assert len(heard) == 1
    assert heard[0].startswith(f"epoch 1 of 1, loss {whole:.3g}, ")
    assert heard[0].endswith(" rows/s")


def test_the_schedule_counts_steps_not_batches(tmp_path):
    heard = []
    _, done = run(tmp_path, accumulate=2, report=lambda phrase, fraction: heard.append(fraction))
    assert (done.steps, done.rows_per_step) == (6, 16)
    assert heard == pytest.approx([i / 6 for i in range(1, 7)])
    assert run(tmp_path, batch_tokens=10**6)[1].rows_per_step == 40


class Stop:
    """Interrupts at the given report."""

    def __init__(self, at):
        self.left = at

    def __call__(self, phrase, fraction):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stop", [2, 5])
@pytest.mark.parametrize(
    "changes",
    [{"accumulate": 2}, {"batch_tokens": 80}, {"batch_tokens": 40, "accumulate": 3}, {"patience": 2}],
    ids=["accumulate", "tokens", "both", "patience"],
)
def test_an_interrupted_run_continues_to_the_same_bytes(tmp_path, changes, stop):
    data = rows()
    options = {"rows": data, "save_seconds": 0, "validate": Validation(rows=data.to_list(), metric="accuracy")}
    whole, done = run(tmp_path / "whole", **options, **changes)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", report=Stop(stop), **options, **changes)
    resumed, again = run(tmp_path / "cut", **options, **changes)
    assert again.resumed == stop - 1
    assert equal(state(whole), state(resumed))
    assert (done.steps, done.score, done.best_step) == (again.steps, again.score, again.best_step)


class Scores:
    """Gives scores that were written down, and counts."""

    def __init__(self, *scores):
        self.scores, self.asked = list(scores), 0

    def __call__(self, model):
        self.asked += 1
        return self.scores[self.asked - 1]


def test_patience_ends_the_run_with_the_best_weights(tmp_path):
    scores = Scores(0.5, 0.7, 0.6, 0.7, 0.9)
    stopped, done = run(tmp_path / "a", epochs=5, validate=scores, patience=2)
    assert (scores.asked, done.steps, done.best_step, done.score) == (4, 20, 10, 0.7)
    whole, _ = run(tmp_path / "b", epochs=5, validate=Scores(0.5, 0.7, 0.6, 0.7, 0.1))
    assert equal(state(stopped), state(whole))


def test_a_run_that_patience_ended_is_not_trained_again(tmp_path):
    first, done = run(tmp_path, epochs=5, validate=Scores(0.7, 0.6), patience=1)
    second, again = run(tmp_path, epochs=5, validate=Scores(), patience=1)
    assert equal(state(first), state(second))
    assert (again.resumed, again.steps, again.best_step, again.rows_per_second) == (10, 10, 5, 0)
    assert done.rows_per_second > 0


def test_a_run_that_goes_on_remembers_its_patience(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, epochs=5, validate=Scores(0.7, 0.6), patience=2, report=Stop(12))
    _, done = run(tmp_path, epochs=5, validate=Scores(0.5), patience=2)
    assert (done.resumed, done.steps) == (10, 15)


def test_epochs_before_full_strength_do_not_cost_patience(tmp_path):
    scores = Scores(0.9, 0.8, 0.7)
    _, done = run(tmp_path, epochs=3, validate=scores, patience=1, during=[Scaling()])
    assert (scores.asked, done.steps, done.best_step) == (3, 15, 15)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_never_the_best(tmp_path, bad):
    assert run(tmp_path / "a", validate=Scores(bad, 0.1))[1].best_step == 10
    assert run(tmp_path / "b", validate=Scores(0.1, bad))[1].best_step == 5
    _, done = run(tmp_path / "c", validate=Scores(bad, bad))
    assert (done.best_step, done.score) == (None, None)
