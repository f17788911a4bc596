"""Quality by hand, against scikit-learn and scipy, and with intervals that hold the value."""

import math

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sklearn

from lissom.data import Task, load_data
from lissom.errors import LissomError
from lissom.measure.quality import accuracy, answer, pearson, scores_of, spearman, texts_of
from lissom.measure.questions import best_span, word_overlap
from lissom.measure.scores import Scores, additive, keep_reading, quality_reading, ratio_of_sums, resamples
from lissom.measure.tagging import span_counts, spans
from lissom.measure.windows import next_token_losses
from lissom.runtime import TorchRunner
from tests import tiny
from tests.measure.fakes import Fake, reviews
from tests.runtime import made


def _classified(gold: list[int], said: list[int], classes: int) -> dict[str, Scores]:
    names = tuple(f"label {number}" for number in range(classes))
    data = load_data({"test": {"text": [f"t{row}" for row in range(len(gold))], "label": gold}}, model_labels=names)
    logits = np.eye(classes)[said]
    return {one.name: one for one in scores_of(logits, data.split("test"), data.task)}


def test_two_labels_by_hand() -> None:
    # true positives 3, false positives 1, false negatives 2, true negatives 4
    found = _classified([1, 1, 1, 0, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0, 0, 0], 2)

    assert found["accuracy"].point() == pytest.approx(0.7)
    assert found["f1"].point() == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert found["mcc"].point() == pytest.approx((3 * 4 - 1 * 2) / math.sqrt(4 * 5 * 5 * 6))


def test_three_labels_by_hand() -> None:
    # class 0: right 2, said 3, gold 2; class 1: right 1, said 1, gold 2; class 2: right 0, said 1, gold 1
    found = _classified([0, 0, 1, 1, 2], [0, 0, 1, 2, 0], 3)

    assert found["f1"].point() == pytest.approx((4 / 5 + 2 / 3 + 0) / 3)
    assert found["mcc"].point() == pytest.approx((3 * 5 - 9) / math.sqrt((25 - 11) * (25 - 9)))


@settings(max_examples=40, deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=40))
def test_classification_agrees_with_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    gold, said = ([pair[side] for pair in pairs] for side in (0, 1))
    if len(set(gold)) < 2:
        return  # the loader refuses data with one class
    found = _classified(gold, said, 4)

    assert found["accuracy"].point() == pytest.approx(sklearn.accuracy_score(gold, said))
    assert found["f1"].point() == pytest.approx(sklearn.f1_score(gold, said, average="macro", zero_division=0))
    assert found["mcc"].point() == pytest.approx(sklearn.matthews_corrcoef(gold, said))


NUMBERS = st.integers(-5, 5).map(float)


@settings(max_examples=40, deadline=None)
@given(pairs=st.lists(st.tuples(NUMBERS, NUMBERS), min_size=3, max_size=30), seed=st.integers(0, 99))
def test_correlations_agree_with_scipy_whole_and_resampled(pairs: list[tuple[float, float]], seed: int) -> None:
    x, y = np.array(pairs).T
    weights = next(resamples(len(x), seed, times=1))
    drawn = np.repeat(np.arange(len(x)), weights[0].astype(int))
    for ours, theirs in ((pearson, stats.pearsonr), (spearman, stats.spearmanr)):
        for a, b, found in ((x, y, ours(x, y).point()), (x[drawn], y[drawn], float(ours(x, y).value(weights)[0]))):
            if np.ptp(a) == 0 or np.ptp(b) == 0:
                assert math.isnan(found)
            else:
                assert found == pytest.approx(theirs(a, b).statistic, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(right=st.lists(st.booleans(), min_size=1, max_size=60), seed=st.integers(0, 9))
def test_the_interval_holds_the_value(right: list[bool], seed: int) -> None:
    reading = quality_reading(accuracy(np.ones(len(right)), np.array(right, float)), seed)

    assert reading.value == pytest.approx(np.mean(right))
    assert 0 <= reading.low <= reading.value <= reading.high <= 1
    assert reading.n == len(right)


def test_the_interval_of_a_share_is_near_the_textbook_one() -> None:
    right = np.arange(400) % 5 > 0  # 0.8
    reading = quality_reading(accuracy(np.ones(400), right.astype(float)), 0)

    margin = 1.96 * math.sqrt(0.8 * 0.2 / 400)
    assert reading.low == pytest.approx(0.8 - margin, abs=0.008)
    assert reading.high == pytest.approx(0.8 + margin, abs=0.008)
    assert reading == quality_reading(
        accuracy(np.ones(400), right.astype(float)), 0
    )  # the same seed, the same interval


def test_keep_pairs_the_examples() -> None:
    gold = np.ones(200)
    reference, subject = np.arange(200) % 10 > 0, np.arange(200) % 5 > 0  # 0.9 and 0.8, wrong on the same texts

    reading = keep_reading(accuracy(gold, subject.astype(float)), accuracy(gold, reference.astype(float)), 0)

    assert reading.value == pytest.approx(0.8 / 0.9)
    assert reading.value - 0.06 < reading.low < reading.value < reading.high < reading.value + 0.06
    itself = accuracy(gold, reference.astype(float))
    assert [getattr(keep_reading(itself, itself, 0), end) for end in ("value", "low", "high")] == [1, 1, 1]


def test_keep_turns_perplexity_round() -> None:
    def perplexity(loss: float) -> Scores:
        return additive("perplexity", np.array([[loss, 1.0]] * 3), lambda sums: np.exp(ratio_of_sums(sums)), "")

    reading = keep_reading(perplexity(math.log(20)), perplexity(math.log(10)), 0)

    assert reading.value == pytest.approx(0.5)
    assert reading.how.startswith("Reference / subject in perplexity")


def test_keep_without_a_divisor_says_so() -> None:
    none_right = accuracy(np.ones(5), np.zeros(5))

    reading = keep_reading(none_right, none_right, 0)

    assert reading.value is None
    assert "the divisor is 0" in reading.how


def test_the_metric_that_judges_comes_first() -> None:
    task = Task(kind="classification", labels=("bad", "good"), metric="mcc")
    rows = reviews().split("test")

    assert [one.name for one in scores_of(np.eye(2)[rows["label"]], rows, task)] == ["mcc", "accuracy", "f1"]


def test_regression_reads_the_one_output() -> None:
    gold = [0.0, 1.5, 3.0, 4.5, 5.0, 2.5]
    data = load_data({"test": {"text": list("abcdef"), "label": gold}})
    answers = np.array([[2 * value + 1] for value in gold], np.float32)

    found = {one.name: one.point() for one in scores_of(answers, data.split("test"), data.task)}

    assert found == {"pearson": pytest.approx(1), "spearman": pytest.approx(1)}


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O B-PER I-PER O", {(1, 3, "PER")}),
        ("B-PER B-PER I-PER", {(0, 1, "PER"), (1, 3, "PER")}),
        ("I-LOC I-LOC O", {(0, 2, "LOC")}),  # a span may begin inside
        ("B-PER I-LOC I-LOC", {(0, 1, "PER"), (1, 3, "LOC")}),  # and change its type
        ("O NOUN O", set()),
        ("", set()),
    ],
)
def test_spans_as_conlleval_reads_them(tags: str, expected: set[tuple[int, int, str]]) -> None:
    assert spans(tags.split()) == expected


def test_span_f1_by_hand() -> None:
    labels = ("O", "B-PER", "I-PER", "B-LOC")
    # gold spans: PER 0-2, LOC 3; said: PER 0-1 (wrong end), LOC 3 (right), PER 4 (not there)
    assert span_counts([1, 2, 0, 3, 0], [1, 0, 0, 3, 1], labels) == (1, 3, 2)

    sentences = {
        "tokens": [["a", "b", "c", "d", "e"], ["f", "g"]],
        "tags": [["B-PER", "I-PER", "O", "B-LOC", "O"], ["B-PER", "O"]],
    }
    data = load_data({"test": sentences}, model_labels=labels)
    logits = np.full((2, 5, 4), np.nan, np.float32)
    logits[0] = np.eye(4)[[1, 0, 0, 3, 1]]
    logits[1, :1] = np.eye(4)[[1]]  # the second word was cut off: outside

    found = {one.name: one for one in scores_of(logits, data.split("test"), data.task)}

    assert found["f1"].point() == pytest.approx(2 * 2 / (4 + 3))
    assert found["accuracy"].point() == pytest.approx(5 / 7)
    assert next(iter(found)) == "f1"


def test_words_of_an_answer_overlap_as_in_squad() -> None:
    assert word_overlap("the Red fox!", ["a red fox"]) == 1
    assert word_overlap("red fox ran", ["blue fox", "red fox"]) == pytest.approx(2 * 2 / (3 + 2))
    assert word_overlap("fox", ["wolf"]) == 0
    assert word_overlap("", []) == 1


def test_the_best_span_ends_after_it_starts() -> None:
    start, end = np.array([0.0, 5.0, 1.0]), np.array([9.0, 0.0, 2.0])

    assert best_span(start, end) == (0, 0)  # 0 + 9; the larger 5 + 9 would end before it starts
    assert best_span(np.eye(1, 50, 0)[0], np.eye(1, 50, 40)[0] * 9) == (11, 40)  # within 30 tokens


class _Bigram:
    """A language model over four tokens that gives the next number probability 0.7 and the others 0.1."""

    inputs = frozenset({"input_ids", "attention_mask"})
    max_length = 5

    def token_ids(self, text: str) -> list[int]:
        return [int(token) for token in text.split()]

    def forward(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        likely = (batch["input_ids"] + 1) % 4
        return {"logits": np.log(np.where(np.eye(4)[likely] > 0, 0.7, 0.1)).astype(np.float32)}


def test_perplexity_by_hand() -> None:
    # windows 0 1 2 3 0 | 1 1: losses of the four right steps and of the one wrong step
    losses = next_token_losses(_Bigram(), ["0 1 2 3 0", "1 1"])

    np.testing.assert_allclose(losses, [[-4 * math.log(0.7), 4], [-math.log(0.1), 1]], rtol=1e-6)
    data = load_data({"test": {"text": ["0 1 2 3 0", "1 1"]}})
    (scores,) = scores_of(losses, data.split("test"), data.task)
    assert scores.point() == pytest.approx((0.7**4 * 0.1) ** (-1 / 5))


def test_perplexity_agrees_with_the_loss_of_transformers() -> None:
    runner = TorchRunner(tiny.model("llama", "AutoModelForCausalLM"), made.tokenizer(), max_length=6)
    texts = ["the end is near and far", "a very good film and a bad end"]
    ids = torch.tensor([runner.token_ids("\n\n".join(texts))])
    with torch.inference_mode():
        windows = [runner.model(input_ids=one, labels=one).loss.item() for one in ids.split(6, dim=1)]

    losses = next_token_losses(runner, texts)

    assert len(losses) == len(windows)
    np.testing.assert_allclose(losses[:, 0] / losses[:, 1], windows, rtol=1e-5)


def test_windows_are_spread_over_a_long_text() -> None:
    assert len(next_token_losses(_Bigram(), ["0 1 2 3 " * 100], windows=7)) == 7
    with pytest.raises(LissomError, match="LSM-853 there is no running text to predict"):
        next_token_losses(_Bigram(), ["1"])


def test_a_model_that_sees_what_it_predicts_has_no_perplexity() -> None:
    class Sees(_Bigram):
        def forward(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"logits": np.eye(4)[np.roll(batch["input_ids"], -1, axis=1)].astype(np.float32)}

    with pytest.raises(LissomError, match="LSM-737 this model sees the tokens that it should predict"):
        next_token_losses(Sees(), ["0 1 2 3 0"])


def test_labels_are_matched_by_name() -> None:
    data = reviews(4)
    runner = Fake(lambda text: (1.0, -1.0), labels=("GOOD", "bad"))

    answers = answer(runner, texts_of(data.split("test"), data.task), data.task)

    np.testing.assert_array_equal(answers, [[-1, 1]] * 4)


def test_another_number_of_classes_is_an_error() -> None:
    data = reviews(4)
    with pytest.raises(LissomError, match=r"LSM-851 the model has 3 classes, the data 2 labels \(bad, good\)"):
        answer(Fake(lambda text: (0, 0, 1)), texts_of(data.split("test"), data.task), data.task)


def test_rows_without_labels_cannot_be_judged() -> None:
    rows = reviews(4).split("test").remove_columns("label")
    with pytest.raises(LissomError, match=r"LSM-852 this split has no labels to compare answers with"):
        scores_of(np.zeros((4, 2)), rows, reviews(4).task)


@pytest.mark.parametrize(("family", "causal"), [("bert", False), ("roberta", False), ("gpt2", True), ("llama", True)])
def test_weights_as_small_as_at_the_start_of_training_hide_no_look_ahead(family: str, causal: bool) -> None:
    head = "AutoModelForCausalLM" if causal else "AutoModelForMaskedLM"
    torch.manual_seed(0)
    model = getattr(transformers, head).from_config(tiny.config(family)).eval()
    runner = TorchRunner(model, tiny.tokenizer())
    if causal:
        assert len(next_token_losses(runner, tiny.texts(20)))
    else:
        with pytest.raises(LissomError, match="LSM-737"):
            next_token_losses(runner, tiny.texts(20))
