import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from lissom.data import Task
from lissom.edits import AddExits, Editor
from lissom.train.score import _SCORES, Validation, as_shown
from tests import tiny
from tests.train.tiny_rows import rows


def test_scores_by_hand():
    guesses, wanted = np.array([1, 1, 0, 0]), np.array([1, 0, 1, 0])
    assert _SCORES["accuracy"](guesses, wanted, None) == 0.5
    assert _SCORES["f1"](guesses, wanted, None) == pytest.approx(f1_score(wanted, guesses))
    assert _SCORES["mcc"](guesses, wanted, None) == 0.0
    tags, gold = np.array([0, 1, 2, 2, 0]), np.array([0, 1, 1, 2, 2])
    assert _SCORES["f1"](tags, gold, 0) == pytest.approx(f1_score(gold, tags, labels=[1, 2], average="micro"))


def test_correlations():
    guesses, wanted = np.array([1.0, 2.0, 10.0]), np.array([1.0, 2.0, 3.0])
    assert _SCORES["spearman"](guesses, wanted, None) == pytest.approx(1.0)
    assert 0.8 < _SCORES["pearson"](guesses, wanted, None) < 1.0
    assert _SCORES["pearson"](np.ones(3), wanted, None) == 0.0


def test_accuracy_of_a_model_whatever_the_order_of_rows():
    model, data = tiny.model("bert", "AutoModelForSequenceClassification"), rows(count=70).to_list()
    right = [int(model(input_ids=torch.tensor([one["input_ids"]])).logits.argmax() == one["labels"]) for one in data]
    assert Validation(rows=data, metric="accuracy")(model) == pytest.approx(sum(right) / 70)


@pytest.mark.parametrize(
    ("kind", "head", "metric"),
    [
        ("tagging", "AutoModelForTokenClassification", "f1"),
        ("question_answering", "AutoModelForQuestionAnswering", "f1"),
        ("language_modelling", "AutoModelForMaskedLM", "perplexity"),
    ],
)
def test_every_kind_has_a_score(kind, head, metric):
    score = Validation(rows=rows(kind).to_list(), metric=metric, outside=0)(tiny.model("bert", head))
    assert score < 0 if metric == "perplexity" or kind == "question_answering" else 0 <= score <= 1


def test_a_batch_without_labelled_tokens_does_not_count():
    model = tiny.model("bert", "AutoModelForTokenClassification")
    data = rows("tagging", count=64).to_list()
    silent = [{**one, "labels": [-100] * len(one["labels"])} for one in rows("tagging", count=64, seed=1).to_list()]
    short = [{name: value[:2] if isinstance(value, list) else value for name, value in one.items()} for one in silent]
    score = Validation(rows=data, metric="perplexity")(model)
    assert Validation(rows=[*short, *data], metric="perplexity")(model) == pytest.approx(score)


@pytest.mark.parametrize(
    ("kind", "metric", "told"),
    [
        ("language_modelling", "perplexity", ("loss", 3.5)),
        ("text_to_text", "perplexity", ("loss", 3.5)),
        ("question_answering", "f1", ("loss", 3.5)),
        ("classification", "f1", ("f1", -3.5)),
        ("masked_language_modelling", "accuracy", ("accuracy", -3.5)),
        ("regression", "pearson", ("pearson", -3.5)),
    ],
)
def test_a_score_that_is_minus_a_loss_is_told_as_the_loss(kind, metric, told):
    assert as_shown(Task(kind=kind, metric=metric), -3.5) == told
    assert as_shown(Task(kind=kind, metric=metric), None) == (told[0], None)


def test_exits_are_scored_by_the_mean_over_all_of_them():
    """Class 1 by the first exit, class 0 by the second, the model's own answer by the last layer."""
    model, data = tiny.model("bert", "AutoModelForSequenceClassification"), rows(count=70).to_list()
    labels = [one["labels"] for one in data]
    last = Validation(rows=data, metric="accuracy")(model)
    Editor(model).apply(AddExits(layers=(1, 2), head="linear"))
    with torch.no_grad():
        for head, bias in zip(model.exits.heads, ([0.0, 1.0, 0.0], [1.0, 0.0, 0.0]), strict=True):
            head.classifier.weight.zero_()
            head.classifier.bias.copy_(torch.tensor(bias))
    shares = labels.count(1) / 70, labels.count(0) / 70
    found = Validation(rows=data, metric="accuracy", exits=True)(model)
    assert found == pytest.approx((sum(shares) + last) / 3)
    assert not model.exits.collecting
