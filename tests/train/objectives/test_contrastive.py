import dataclasses
import math

import pytest
import torch
from transformers.modeling_outputs import SequenceClassifierOutput

from lissom.train.objectives import Answers
from lissom.train.objectives.contrastive import Contrastive, summary
from tests import tiny
from tests.train.objectives.taught import HEAD, learned, resumes

MASK = torch.tensor([[1, 1], [1, 0]])


def answers(student, teacher, labels=None, mask=MASK, first=1):
    """One layer of states (texts, tokens, width) each. first: the token that the texts begin with."""
    inputs = {"input_ids": mask * torch.tensor([first, 5]), "attention_mask": mask} | (
        {} if labels is None else {"labels": torch.tensor(labels)}
    )
    both = [SequenceClassifierOutput(hidden_states=(torch.tensor(one),)) for one in (student, teacher)]
    return Answers(inputs=inputs, student=both[0], teacher=both[1])


def straight(objective, both):
    """What `begin` gives, with maps that change nothing."""
    beside = objective.begin(both)
    with torch.no_grad():
        for one in (beside.student, beside.teacher):
            one.weight.copy_(torch.eye(2))
            one.bias.zero_()
    return beside


X, Y, OTHER = [1.0, 0.0], [0.0, 1.0], [9.0, 9.0]
SAME = [[X, X], [Y, OTHER]]  # means X and Y
CONE = -math.log(math.e / (math.e + 1))  # cosine 1 with its own, 0 with another, temperature 1


def test_summaries_are_means_of_every_layer():
    output = SequenceClassifierOutput(
        hidden_states=(torch.tensor([[[1.0], [5.0]], [[2.0], [9.0]]]), torch.tensor([[[0.0, 2.0]] * 2] * 2))
    )
    assert summary(output, MASK.bool()).tolist() == [[3.0, 0.0, 2.0], [2.0, 0.0, 2.0]]


def test_texts_against_the_batch_by_hand():
    objective, both = Contrastive(temperature=1.0, size=2), answers(SAME, SAME)
    assert objective.value(both, straight(objective, both)).item() == pytest.approx(CONE, rel=1e-5)
    hot = Contrastive(temperature=0.5, size=2)
    expected = -math.log(math.e**2 / (math.e**2 + 1))
    assert hot.value(both, straight(hot, both)).item() == pytest.approx(expected, rel=1e-5)


def test_texts_of_the_same_class_are_no_others():
    objective = Contrastive(temperature=1.0, size=2)
    both = answers(SAME, SAME, labels=[1, 1])
    assert objective.value(both, straight(objective, both)).item() == pytest.approx(0.0, abs=1e-6)
    both = answers(SAME, SAME, labels=[1, 0])
    assert objective.value(both, straight(objective, both)).item() == pytest.approx(CONE, rel=1e-5)
    numbers = dataclasses.replace(answers(SAME, SAME, labels=[1.0, 1.0]), regression=True)
    assert objective.value(numbers, straight(objective, numbers)).item() == pytest.approx(CONE, rel=1e-5)


def test_the_queue_holds_the_newest_texts_of_the_teacher():
    objective = Contrastive(temperature=1.0, size=2, queue=3)
    both = answers(SAME, SAME)
    beside = straight(objective, both)
    objective.value(both, beside)
    assert beside.queue.tolist() == [X, Y, [0.0, 0.0]]
    value = objective.value(answers(SAME, SAME, first=2), beside)  # now X and Y are others, besides each other
    e = math.e
    assert value.item() == pytest.approx(-math.log(e / (e + 1 + e + 1)), rel=1e-5)
    assert beside.queue.tolist() == [Y, Y, X], "the third and the oldest place"
    assert not beside.queue.requires_grad
    assert int(beside.seen) == 4


def test_a_text_is_no_other_of_itself():
    """It comes again in the next epoch, when the queue still has it, and so may a copy of it in the batch."""
    objective = Contrastive(temperature=1.0, size=2, queue=4)
    both = answers(SAME, SAME)
    beside = straight(objective, both)
    objective.value(both, beside)
    e = math.e  # the other text twice: in the batch and in the queue
    assert objective.value(both, beside).item() == pytest.approx(-math.log(e / (e + 1 + 1)), rel=1e-5)
    twins = answers([[X, X], [Y, Y]], [[X, X], [Y, Y]], mask=torch.ones(2, 2, dtype=torch.int64))
    assert objective.value(twins, straight(objective, twins)).item() == pytest.approx(0.0, abs=1e-6)


def test_the_queue_knows_classes():
    objective = Contrastive(temperature=1.0, size=2, queue=4)
    both = answers(SAME, SAME, labels=[0, 1])
    beside = straight(objective, both)
    objective.value(both, beside)
    assert beside.classes.tolist() == [0, 1, -1, -1]
    e = math.e  # of the queue and the batch only the other text has another class
    assert objective.value(both, beside).item() == pytest.approx(-math.log(e / (e + 1 + 1)), rel=1e-5)


def test_a_queue_that_is_shorter_than_a_batch_or_none():
    both = answers(SAME, SAME)
    for queue, expected in ((1, [Y]), (0, [])):
        objective = Contrastive(size=2, queue=queue)
        beside = straight(objective, both)
        objective.value(both, beside)
        assert beside.queue.tolist() == expected


def test_tokens_by_hand():
    # the first text has two tokens, the second one alone: nothing to tell it from
    objective, both = Contrastive(of="tokens", temperature=1.0), answers(SAME, [[X, Y], [Y, OTHER]])
    second = -math.log(1 / (math.e + 1))  # the student's second token is nearer to the teacher's first
    assert objective.value(both, objective.begin(both)).item() == pytest.approx((CONE + second + 0) / 3, rel=1e-5)


@pytest.mark.parametrize("objective", [Contrastive(), Contrastive(of="tokens")])
@pytest.mark.parametrize("family", ["bert", "distilbert", "albert", "modernbert", "gpt2", "llama"])
def test_a_narrow_and_shallow_student_tells_them_apart(tmp_path, family, objective):
    names = {"distilbert": ("dim", "n_layers"), "gpt2": ("n_embd", "n_layer")}
    width, depth = names.get(family, ("hidden_size", "num_hidden_layers"))
    student, teacher = tiny.model(family, HEAD, **{width: 16, depth: 2}), tiny.model(family, HEAD, seed=1)
    values = learned(tmp_path, student, teacher, dataclasses.replace(objective, queue=0))  # a queue makes it harder
    assert values[-1] < 0.9 * values[0]


@pytest.mark.parametrize(
    ("family", "head", "kind"),
    [
        ("bert", "AutoModelForTokenClassification", "tagging"),
        ("bert", "AutoModelForQuestionAnswering", "question_answering"),
        ("gpt2", "AutoModelForCausalLM", "language_modelling"),
    ],
)
def test_other_tasks(tmp_path, family, head, kind):
    for of in ("texts", "tokens"):
        student, teacher = tiny.model(family, head), tiny.model(family, head, seed=1)
        values = learned(tmp_path / of, student, teacher, Contrastive(of=of, queue=0), kind=kind)
        assert values[-1] < values[0]


def test_an_interrupted_run_continues_to_the_same_bytes(tmp_path):
    assert resumes(tmp_path, Contrastive(queue=12))
