import math

import pytest
import torch
from transformers.modeling_outputs import QuestionAnsweringModelOutput, SequenceClassifierOutput, TokenClassifierOutput

from lissom.errors import LissomError
from lissom.train.objectives import Answers
from lissom.train.objectives.logits import Logits

NOTHING = torch.nn.Module()
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])


def answers(student, teacher, kind=SequenceClassifierOutput, labels=None, **more):
    inputs = {"input_ids": MASK, "attention_mask": MASK} | ({} if labels is None else {"labels": torch.tensor(labels)})
    outputs = [kind(logits=torch.tensor(one)) for one in (student, teacher)]
    return Answers(inputs=inputs, student=outputs[0], teacher=outputs[1], **more)


def test_kl_of_one_row_by_hand():
    # teacher softmax([ln 9, 0] / 2) = [3/4, 1/4]; student softmax([0, 0]) = [1/2, 1/2]
    kl = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    value = Logits(temperature=2.0).value(answers([[0.0, 0.0]], [[math.log(9), 0.0]]), NOTHING)
    assert value.item() == pytest.approx(4 * kl, rel=1e-5)


def test_kl_is_a_mean_over_rows():
    one = Logits().value(answers([[0.0, 0.0]], [[1.0, 0.0]]), NOTHING)
    two = Logits().value(answers([[0.0, 0.0], [3.0, 2.0]], [[1.0, 0.0], [3.0, 2.0]]), NOTHING)
    assert two.item() == pytest.approx(one.item() / 2, rel=1e-5)


def test_mse_by_hand():
    value = Logits(loss="mse").value(answers([[0.0, 1.0]], [[2.0, 2.0]]), NOTHING)
    assert value.item() == pytest.approx((4 + 1) / 2)


def test_regression_is_mse_whatever_the_loss():
    value = Logits(loss="kl").value(answers([[1.0], [2.0]], [[1.5], [4.0]], regression=True), NOTHING)
    assert value.item() == pytest.approx((0.25 + 4.0) / 2)


def test_tags_count_only_where_labelled():
    student = [[[0.0, 0.0], [0.0, 0.0], [9.0, 0.0]], [[0.0, 0.0], [5.0, 0.0], [7.0, 0.0]]]
    teacher = [[[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]]
    value = Logits(loss="mse").value(
        answers(student, teacher, TokenClassifierOutput, [[1, 0, -100], [0, -100, -100]]), NOTHING
    )
    assert value.item() == pytest.approx(0.5)


def test_tags_without_labels_count_at_real_tokens():
    student = torch.zeros(2, 3, 2).tolist()
    teacher = [[[2.0, 0.0]] * 3, [[2.0, 0.0], [2.0, 0.0], [100.0, 0.0]]]
    value = Logits(loss="mse").value(answers(student, teacher, TokenClassifierOutput), NOTHING)
    assert value.item() == pytest.approx(2.0)


def test_next_tokens_leave_out_the_last_position_and_padding():
    # answers at position i are about token i + 1: rows (0, 0), (0, 1) and (1, 0) count
    student = torch.zeros(2, 3, 2).tolist()
    teacher = [[[1.0, 0.0], [2.0, 0.0], [100.0, 0.0]], [[3.0, 0.0], [100.0, 0.0], [100.0, 0.0]]]
    labels = [[4, 5, 6], [4, 5, -100]]
    value = Logits(loss="mse").value(answers(student, teacher, TokenClassifierOutput, labels, next_token=True), NOTHING)
    assert value.item() == pytest.approx((1 + 4 + 9) / 6)


def test_spans_are_distributions_over_real_positions():
    def output(start, end):
        return QuestionAnsweringModelOutput(start_logits=torch.tensor(start), end_logits=torch.tensor(end))

    flat, padded = [[0.0, 0.0, 0.0]], [[0.0, 0.0, 50.0]]
    inputs = {"input_ids": MASK[1:], "attention_mask": MASK[1:]}
    same = Answers(inputs=inputs, student=output(flat, flat), teacher=output(padded, flat))
    assert Logits().value(same, NOTHING).item() == pytest.approx(0.0, abs=1e-6)


def test_a_batch_without_a_labelled_token_costs_nothing():
    both = torch.zeros(2, 3, 2).tolist()
    value = Logits().value(answers(both, both, TokenClassifierOutput, [[-100] * 3] * 2), NOTHING)
    assert value.item() == 0.0


def test_other_classes_are_refused():
    with pytest.raises(LissomError) as caught:
        Logits().begin(answers([[0.0, 1.0]], [[0.0, 1.0, 2.0]]))
    assert str(caught.value) == (
        "LSM-319 logits: the student answers with 2 values, the teacher with 3. "
        "Use a teacher of the same task and vocabulary."
    )


def test_no_teacher_is_refused():
    lonely = Answers(inputs={}, student=SequenceClassifierOutput(logits=torch.zeros(1, 2)))
    with pytest.raises(LissomError, match=r"LSM-317 there is no teacher to learn from\. Give one, or learn only"):
        Logits().begin(lonely)
