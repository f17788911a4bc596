"""Loyalty by hand and against scipy."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from lissom.data import Task
from lissom.measure.loyalty import distance, loyalty, softmax

CLASSES = Task(kind="classification", labels=("a", "b"), metric="accuracy")


def test_the_distance_by_hand() -> None:
    p, q = np.array([0.5, 0.5]), np.array([1.0, 0.0])
    # m = (0.75, 0.25); KL(p|m) = 0.5 log2(2/3) + 0.5 log2(2); KL(q|m) = log2(4/3)
    bits = (0.5 * math.log2(2 / 3) + 0.5 + math.log2(4 / 3)) / 2

    assert distance(p, q) == pytest.approx(math.sqrt(bits))
    assert distance(p, p) == 0
    assert distance(q, 1 - q) == 1


@given(logits=st.lists(st.tuples(*[st.floats(-20, 20)] * 6), min_size=1, max_size=10))
def test_the_distance_agrees_with_scipy(logits: list[tuple[float, ...]]) -> None:
    p, q = softmax(np.array(logits)[:, :3]), softmax(np.array(logits)[:, 3:])

    with np.errstate(invalid="ignore"):
        theirs = jensenshannon(p, q, base=2, axis=1)  # NaN, the root of less than 0, where both are all but equal
    np.testing.assert_allclose(distance(p, q), np.nan_to_num(theirs), atol=1e-6)


def test_opposite_certainty_is_no_loyalty_and_a_half_is_a_half() -> None:
    sure = np.array([[90.0, 0.0], [90.0, 0.0]])

    label, probability = loyalty(np.array([[90.0, 0.0], [0.0, 90.0]]), sure, CLASSES, seed=0)

    assert (label.value, probability.value) == (0.5, pytest.approx(0.5))
    assert label.low <= 0.5 <= label.high


@settings(max_examples=20, deadline=None)
@given(logits=st.lists(st.tuples(*[st.floats(-50, 50)] * 2), min_size=1, max_size=20))
def test_equal_answers_are_wholly_loyal(logits: list[tuple[float, float]]) -> None:
    for reading in loyalty(np.array(logits), np.array(logits), CLASSES, seed=0):
        assert (reading.value, reading.low, reading.high) == (1, 1, 1)


def test_words_that_one_of_the_two_cut_off_do_not_count() -> None:
    task = Task(kind="tagging", labels=("O", "B-A"), metric="f1")
    reference = np.array([[[9.0, 0.0], [0.0, 9.0]], [[9.0, 0.0], [np.nan, np.nan]]])
    said = np.array([[[9.0, 0.0], [9.0, 0.0]], [[9.0, 0.0], [1.0, 0.0]]])

    label, probability = loyalty(said, reference, task, seed=0)

    assert label.value == pytest.approx(2 / 3)
    assert probability.value == pytest.approx((2 + 1 - distance(*softmax(np.array([[9.0, 0.0], [0.0, 9.0]])))) / 3)


@pytest.mark.parametrize(
    ("kind", "answers", "reference", "why"),
    [
        ("regression", np.zeros((2, 1)), np.zeros((2, 1)), "regression gives no label"),
        ("language_modelling", np.zeros((2, 2)), np.zeros((2, 2)), "language modelling gives no label"),
        ("classification", np.zeros((2, 2)), np.zeros((2, 3)), "answers of shape (2, 2), the reference's have (2, 3)"),
    ],
)
def test_what_cannot_be_compared_says_why(kind: str, answers: np.ndarray, reference: np.ndarray, why: str) -> None:
    for reading in loyalty(answers, reference, Task(kind=kind, metric="x"), seed=0):  # type: ignore[arg-type]
        assert reading.value is None
        assert why in reading.how


def test_answers_in_words_are_compared_as_they_are() -> None:
    task = Task(kind="question_answering", metric="f1")

    label, probability = loyalty(["a fox", "two"], ["a fox", "three"], task, seed=0)

    assert label.value == 0.5
    assert probability.value is None
