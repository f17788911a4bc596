import math

import pytest
import torch
from transformers.utils.generic import ModelOutput

from lissom.errors import LissomError
from lissom.train.objectives import Answers
from lissom.train.objectives.universal import Universal
from tests import tiny
from tests.train.objectives.taught import HEAD, learned, resumes

MASK = torch.tensor([[1, 1]])


def answers(student, teacher, logits, **more):
    """Layers of one number for both tokens of a text, after embeddings that must not matter; the teacher's answer."""

    def states(numbers):
        return (torch.full((1, 2, 1), 99.0), *(torch.full((1, 2, 1), one) for one in numbers))

    return Answers(
        inputs={"input_ids": MASK, "attention_mask": MASK},
        student=ModelOutput(logits=torch.zeros(1, len(logits)), hidden_states=states(student)),
        teacher=ModelOutput(logits=torch.tensor([logits]), hidden_states=states(teacher)),
        **more,
    )


def plain(both):
    """Heads that give (x, 0) for a state x."""
    beside = Universal().begin(both)
    with torch.no_grad():
        for one in (*beside.student, *beside.teacher):
            one.weight.copy_(torch.tensor([[1.0], [0.0]])[: len(one.weight)])
            one.bias.zero_()
    return beside


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def softmax(*numbers):
    return [math.exp(one) / sum(map(math.exp, numbers)) for one in numbers]


def test_by_hand():
    both = answers([1.0], [math.log(3), 0.0], [math.log(9), 0.0])
    near = softmax(math.log(3), 0.0)  # [3/4, 1/4]
    target = [near[0] * 0.75 + near[1] * 0.5, near[0] * 0.25 + near[1] * 0.5]
    learning = (kl([0.9, 0.1], [0.75, 0.25]) + kl([0.9, 0.1], [0.5, 0.5])) / 2
    expected = kl(target, softmax(1.0, 0.0)) + learning
    assert Universal().value(both, plain(both)).item() == pytest.approx(expected, rel=1e-5)


def test_a_regression_by_hand():
    both = answers([1.0], [0.0, 2.0], [3.0], regression=True)
    near = softmax(0.0, 2.0)
    expected = (1 - 2 * near[1]) ** 2 + (9 + 1) / 2
    assert Universal().value(both, plain(both)).item() == pytest.approx(expected, rel=1e-5)


def test_the_student_does_not_move_the_heads_of_the_teacher():
    both = answers([1.0], [0.7, -0.2], [1.0, 0.0])
    beside = plain(both)
    moved = [one.weight for one in beside.teacher]
    first = torch.autograd.grad(Universal().value(both, beside), moved)
    other = answers([-3.0], [0.7, -0.2], [1.0, 0.0])
    second = torch.autograd.grad(Universal().value(other, beside), moved)
    assert all(torch.equal(one, two) and one.any() for one, two in zip(first, second, strict=True))


def test_a_batch_without_a_labelled_token_costs_nothing():
    state = torch.ones(1, 2, 3)
    output = ModelOutput(logits=torch.zeros(1, 2, 4), hidden_states=(state, state))
    inputs = {"input_ids": MASK, "attention_mask": MASK, "labels": torch.full((1, 2), -100)}
    both = Answers(inputs=inputs, student=output, teacher=output)
    assert Universal().value(both, Universal().begin(both)).item() == 0.0


def test_a_model_without_hidden_states():
    bare = ModelOutput(logits=torch.zeros(1, 2))
    with pytest.raises(LissomError, match="LSM-715 universal: the model gives no single row of hidden states"):
        Universal().begin(Answers(inputs={}, student=bare, teacher=bare))


@pytest.mark.parametrize(
    ("family", "head", "kind"),
    [
        ("distilbert", HEAD, "classification"),
        ("albert", "AutoModelForTokenClassification", "tagging"),
        ("bert", "AutoModelForQuestionAnswering", "question_answering"),
        ("llama", "AutoModelForCausalLM", "language_modelling"),
    ],
)
def test_a_narrow_and_shallow_student_follows(tmp_path, family, head, kind):
    width, depth = ("dim", "n_layers") if family == "distilbert" else ("hidden_size", "num_hidden_layers")
    student, teacher = tiny.model(family, head, **{width: 16, depth: 2}), tiny.model(family, head, seed=1)
    values = learned(tmp_path, student, teacher, Universal(), kind=kind)
    assert values[-1] < 0.9 * values[0]


def test_an_interrupted_run_continues_to_the_same_bytes(tmp_path):
    assert resumes(tmp_path, Universal())
