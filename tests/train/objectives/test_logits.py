import dataclasses
import math

import pytest
import torch
from transformers.modeling_outputs import QuestionAnsweringModelOutput, SequenceClassifierOutput, TokenClassifierOutput

from lissom.errors import LissomError
from lissom.train.objectives import Answers
from lissom.train.objectives.logits import Logits, ranked
from lissom.train.ramp import Ramp

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


def test_padding_of_questions_is_no_error():
    """It is masked with one number on both sides, which a scaled teacher would be far from."""
    student, teacher = (
        QuestionAnsweringModelOutput(start_logits=torch.full((2, 3), at), end_logits=torch.full((2, 3), at))
        for at in (1.0, 4.0)
    )
    both = Answers(inputs={"input_ids": MASK, "attention_mask": MASK}, student=student, teacher=teacher)
    assert Logits(loss="mse").value(both, NOTHING).item() == pytest.approx(9.0), "a mean over real tokens"
    assert Logits(loss="mse", scale=0.5).value(both, NOTHING).item() == pytest.approx(1.0)
    assert Logits(loss="mse", scale=0.5, margin=2.0).value(both, NOTHING).item() == 0.0


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


def test_all_tokens_count_where_it_is_asked_for():
    student = torch.zeros(2, 3, 2).tolist()
    teacher = [[[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]], [[4.0, 0.0], [5.0, 0.0], [100.0, 0.0]]]
    both = answers(student, teacher, TokenClassifierOutput, [[-100, 0, -100], [-100, -100, -100]])
    assert Logits(loss="mse").value(both, NOTHING).item() == pytest.approx(4 / 2)
    value = Logits(loss="mse", tokens="all").value(both, NOTHING)
    assert value.item() == pytest.approx((1 + 4 + 9 + 16 + 25) / 5 / 2)


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


# what else a loss can be, by hand: the teacher's softmax is p = [3/4, 1/4], the student's q = [1/2, 1/2]

PAIR = ([[0.0, 0.0]], [[math.log(3), 0.0]])
P, Q = (0.75, 0.25), (0.5, 0.5)


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def mixed(share, p, q):
    return [share * a + (1 - share) * b for a, b in zip(p, q, strict=True)]


JS = 0.3 * kl(P, mixed(0.3, P, Q)) + 0.7 * kl(Q, mixed(0.3, P, Q))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"loss": "reverse"}, kl(Q, P)),
        ({"loss": "js"}, 0.5 * kl(P, mixed(0.5, P, Q)) + 0.5 * kl(Q, mixed(0.5, P, Q))),
        ({"loss": "js", "mix": 0.3}, JS),
        ({"loss": "skew"}, kl(P, mixed(0.1, P, Q))),
        ({"loss": "skew_reverse"}, kl(Q, mixed(0.1, Q, P))),
    ],
)
def test_divergences_by_hand(options, expected):
    value = Logits(temperature=1.0, **options).value(answers(*PAIR), NOTHING)
    assert value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", ["kl", "reverse", "js", "skew", "skew_reverse"])
def test_every_divergence_is_nothing_where_both_agree_and_never_negative(loss):
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    objective = Logits(loss=loss)
    assert objective.value(answers(student.tolist(), student.tolist()), NOTHING).item() == pytest.approx(0, abs=1e-6)
    assert objective.value(answers(student.tolist(), teacher.tolist()), NOTHING).item() > 0


def test_a_small_share_of_js_is_kl():
    """JS(b) / b -> KL(p, q) for b -> 0 (Agarwal et al. 2024)."""
    share = 1e-3
    value = Logits(temperature=1.0, loss="js", mix=share).value(answers(*PAIR), NOTHING)
    assert value.item() / share == pytest.approx(kl(P, Q), rel=1e-2)


def test_the_temperature_may_move():
    objective = Logits(temperature=Ramp(start=3.0, end=1.0))
    for progress, temperature in ((0.0, 3.0), (0.5, 2.0), (1.0, 1.0)):
        wanted = Logits(temperature=temperature).value(answers(*PAIR), NOTHING)
        assert objective.value(answers(*PAIR, progress=progress), NOTHING).item() == pytest.approx(wanted.item())


def test_annealed_targets_grow_to_full_size():
    objective = Logits(loss="mse", scale=Ramp(start=0.1, end=1.0))  # T from 10 to 1
    values = [objective.value(answers([[0.0]], [[10.0]], progress=at), NOTHING).item() for at in (0.0, 0.5, 1.0)]
    assert values == pytest.approx([1.0, 5.5**2, 100.0])


def test_errors_inside_the_margin_count_nothing():
    both = answers([[0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [2.0, 4.0]])  # squared errors 1 and 10
    assert Logits(loss="mse", margin=2.0).value(both, NOTHING).item() == pytest.approx((0 + 8) / 2)
    ramp = Logits(loss="mse", margin=Ramp(start=20.0, end=0.0))
    assert ramp.value(both, NOTHING).item() == 0.0


def test_order_by_hand():
    # one pair: the student holds both equal, the teacher the first for likelier by sigma(ln 3) = 3/4
    value = Logits(loss="rank", temperature=1.0).value(answers([[1.0], [1.0]], [[math.log(3)], [0.0]]), NOTHING)
    assert value.item() == pytest.approx(kl(P, Q), rel=1e-5)


def test_order_is_a_mean_over_pairs_and_forgets_where_zero_is():
    student, teacher = torch.tensor([0.0, 1.0, 5.0]), torch.tensor([1.0, 0.0, 2.0])
    pairs = [ranked(student[[i, j]], teacher[[i, j]], 2.0) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert ranked(student, teacher, 2.0).item() == pytest.approx(sum(pairs).item() / 3)
    assert ranked(teacher + 7, teacher, 2.0).item() == pytest.approx(0.0, abs=1e-6)
    assert ranked(student[:1], teacher[:1], 2.0).item() == 0.0


# several teachers


def several(student, *teachers, labels=None, **more):
    first = answers(student, teachers[0], labels=labels, **more)
    return Answers(
        inputs=first.inputs,
        student=first.student,
        teacher=first.teacher,
        others=tuple(SequenceClassifierOutput(logits=torch.tensor(one)) for one in teachers[1:]),
        **more,
    )


def test_the_mean_of_teachers_is_that_of_their_probabilities():
    # softmax at T = 2: [3/4, 1/4] and [1/4, 3/4] have the mean [1/2, 1/2], which the student says
    value = Logits().value(several([[0.0, 0.0]], [[math.log(9), 0.0]], [[0.0, math.log(9)]]), NOTHING)
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    three = several([[0.0, 0.0]], [[math.log(9), 0.0]], [[0.0, 0.0]], [[math.log(9), 0.0]])
    assert Logits().value(three, NOTHING).item() == pytest.approx(4 * kl((2 / 3, 1 / 3), Q), rel=1e-5)


def test_the_mean_of_numbers():
    value = Logits().value(several([[1.0]], [[2.0]], [[6.0]], regression=True), NOTHING)
    assert value.item() == pytest.approx(9.0)


def test_a_teacher_that_is_wrong_counts_less():
    # CE with label 0: -ln 3/4 and -ln 1/4
    both = several([[0.0, 0.0]], [[math.log(3), 0.0]], [[0.0, math.log(3)]], labels=[0])
    right, wrong = 1 / (1 - math.log(0.75)), 1 / (1 - math.log(0.25))
    value = Logits(temperature=1.0, teachers="confidence").value(both, NOTHING)
    assert value.item() == pytest.approx((right + wrong) / 2 * kl(P, Q), rel=1e-5)


def test_without_labels_a_teacher_counts_by_how_sure_it_is():
    both = several([[0.0, 0.0]], [[math.log(3), 0.0]], [[math.log(9), 0.0]])
    sure, surer = 1 / (1 - math.log(0.75)), 1 / (1 - math.log(0.9))
    wanted = (sure * kl(P, Q) + surer * kl((0.9, 0.1), Q)) / 2
    assert Logits(temperature=1.0, teachers="confidence").value(both, NOTHING).item() == pytest.approx(wanted, rel=1e-5)


def test_confidence_of_next_tokens_reads_the_next_label():
    student = torch.zeros(2, 3, 2).tolist()
    teacher = [[[math.log(3), 0.0]] * 3] * 2
    labels = [[1, 0, -100], [1, -100, -100]]  # one row counts: position 0 of the first text, whose next token is 0
    both = answers(student, teacher, TokenClassifierOutput, labels, next_token=True)
    value = Logits(temperature=1.0, teachers="confidence").value(both, NOTHING)
    assert value.item() == pytest.approx(kl(P, Q) / (1 - math.log(0.75)), rel=1e-5)


def test_only_where_the_student_is_unsure():
    student = [[9.0, 0.0], [0.1, 0.0], [5.0, 0.0], [0.0, 0.0]]
    both = answers(student, [[0.0, 0.0], [1.1, 0.0], [0.0, 0.0], [2.0, 0.0]])
    value = Logits(loss="mse", examples=0.5).value(both, NOTHING)
    assert value.item() == pytest.approx((1.0 / 2 + 4.0 / 2) / 2)  # rows 1 and 3
    least = Logits(loss="mse", examples=0.01).value(both, NOTHING)
    assert least.item() == pytest.approx(4.0 / 2)


def test_from_easy_to_hard():
    """The teacher is surest of row 2, then of 0; the share of the batch rises with the run."""
    teacher = [[3.0, 0.0], [0.0, 0.0], [0.0, 5.0], [1.0, 0.0]]
    both = answers([[0.0, 0.0]] * 4, teacher)
    options = Logits(loss="mse", examples=Ramp(start=0.25, end=1.0), first="sure")
    found = [options.value(dataclasses.replace(both, progress=done), NOTHING).item() for done in (0.0, 1 / 3, 1.0)]
    assert found == pytest.approx([25 / 2, (25 / 2 + 9 / 2) / 2, (25 + 9 + 1) / 2 / 4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mix": 0.1}, "LSM-319 logits: mix belongs to js, skew, skew_reverse, and the loss is kl. Leave mix out."),
        ({"scale": 0.5}, 'LSM-319 logits: scale and margin belong to mse, and the loss is kl. Write "loss: mse".'),
        ({"loss": "js", "margin": Ramp(start=1.0, end=0.0)}, "scale and margin belong to mse, and the loss is js"),
        ({"first": "sure"}, "LSM-319 logits: first chooses among examples, and all of them count"),
        ({"loss": "rank", "examples": 0.5}, "LSM-319 logits: rank compares pairs of rows; it weights and chooses"),
        ({"loss": "rank", "teachers": "confidence"}, "rank compares pairs of rows"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(LissomError) as caught:
        Logits(**options).check(None, None, ())
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "classes", "regression", "message"),
    [
        ({"loss": "rank"}, 3, False, "LSM-319 logits: rank compares one number a text, and there are 3. Use kl."),
        ({"loss": "js"}, 1, True, "js compares distributions, and the model answers with a number. Use mse or rank."),
        ({"loss": "mse", "examples": 0.5}, 1, True, "a number does not tell how sure the student is."),
        ({"teachers": "confidence"}, 1, True, "a number does not tell how sure a teacher is, and there are no labels."),
    ],
)
def test_options_that_the_answers_do_not_allow(options, classes, regression, message):
    with pytest.raises(LissomError) as caught:
        Logits(**options).begin(answers([[0.0] * classes], [[0.0] * classes], regression=regression))
    assert message in str(caught.value)


def test_a_further_teacher_of_other_classes_is_refused():
    with pytest.raises(LissomError, match="the student answers with 2 values, the teacher with 3"):
        Logits().begin(several([[0.0, 1.0]], [[0.0, 1.0]], [[0.0, 1.0, 2.0]]))
