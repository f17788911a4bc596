import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils.generic import ModelOutput

from lissom.errors import LissomError
from lissom.train.objectives import Answers
from lissom.train.objectives.hidden import Hidden
from lissom.train.objectives.layers import drawn, groups, pairs
from lissom.train.objectives.transport import flow, moved, reweighed, shares
from tests import tiny
from tests.train.objectives.taught import HEAD, learned, resumes

MASK = torch.tensor([[1, 1, 0]])


def answers(student, teacher):
    """Hidden states as lists: layers of (tokens, width), for one text with a padded third token."""

    def output(layers):
        states = tuple(torch.tensor([one]) for one in layers)
        return SequenceClassifierOutput(logits=torch.zeros(1, 2), hidden_states=states)

    inputs = {"input_ids": MASK, "attention_mask": MASK}
    return Answers(inputs=inputs, student=output(student), teacher=output(teacher))


def loss(objective, student, teacher):
    both = answers(student, teacher)
    return objective.value(both, objective.begin(both))


@pytest.mark.parametrize(
    ("layers", "student", "teacher", "expected"),
    [
        ("uniform", 4, 12, ((0, 0), (1, 3), (2, 6), (3, 9), (4, 12))),  # TinyBERT 4
        ("uniform", 6, 12, ((0, 0), (1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (6, 12))),
        ("uniform", 4, 6, ((0, 0), (1, 2), (2, 3), (3, 5), (4, 6))),  # 1.5 and 4.5 are rounded up
        ("uniform", 2, 2, ((0, 0), (1, 1), (2, 2))),
        ("skip", 6, 12, ((1, 2), (2, 4), (3, 6), (4, 8), (5, 10))),  # PKD-skip
        ("last", 3, 12, ((3, 12),)),
        (((1, 4), (2, 4)), 2, 6, ((1, 4), (2, 4))),
    ],
)
def test_layer_maps(layers, student, teacher, expected):
    assert pairs(layers, student, teacher, place="hidden") == expected


def test_a_layer_that_is_not_there():
    with pytest.raises(LissomError) as caught:
        pairs(((1, 7),), 3, 6, place="hidden")
    assert str(caught.value) == (
        "LSM-319 hidden.layers: [1, 7] is outside [0, 0] to [3, 6]: student layer, teacher layer. "
        "0 is the output of the embeddings."
    )


def test_skip_of_one_layer_compares_nothing():
    with pytest.raises(LissomError, match=r'LSM-319 .* layers "skip" of a student with 1 layers compares nothing'):
        pairs("skip", 1, 12, place="hidden")


def test_mse_over_real_tokens_by_hand():
    student = [[[0.0, 0.0], [0.0, 0.0], [9.0, 9.0]], [[1.0, 1.0], [0.0, 2.0], [9.0, 9.0]]]
    teacher = [[[0.0, 2.0], [0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]]
    value = loss(Hidden(), student, teacher)
    assert value.item() == pytest.approx((4 / 4 + 4 / 4) / 2)  # two pairs, four numbers each


def test_cosine_by_hand():
    student = [[[1.0, 0.0], [3.0, 0.0], [9.0, 9.0]], [[0.0, 1.0], [1.0, 0.0], [9.0, 9.0]]]
    teacher = [[[5.0, 0.0], [0.0, 1.0], [0.0, 0.0]], [[0.0, 1.0], [-1.0, 0.0], [0.0, 0.0]]]
    layers = ((0, 0), (1, 1))  # cosines 1, 0 and 1, -1
    value = loss(Hidden(layers=layers, loss="cosine"), student, teacher)
    assert value.item() == pytest.approx(((0 + 1) / 2 + (0 + 2) / 2) / 2)


def test_a_narrow_student_is_projected():
    student = [[[1.0], [2.0], [9.0]]] * 2
    teacher = [[[2.0, 1.0], [4.0, 2.0], [0.0, 0.0]]] * 2
    both = answers(student, teacher)
    beside = Hidden().begin(both)
    assert beside.width.weight.shape == (2, 1)
    with torch.no_grad():
        beside.width.weight.copy_(torch.tensor([[2.0], [1.0]]))
    assert Hidden().value(both, beside).item() == pytest.approx(0.0)


def test_equal_widths_need_no_projection():
    same = [[[1.0], [2.0], [9.0]]] * 2
    assert not list(Hidden().begin(answers(same, same)).parameters())


def test_a_model_without_hidden_states():
    bare = SequenceClassifierOutput(logits=torch.zeros(1, 2))
    with pytest.raises(LissomError, match="LSM-715 hidden: the model gives no single row of hidden states"):
        Hidden().begin(Answers(inputs={}, student=bare, teacher=bare))


def test_adjacent_groups():
    assert groups(4, 12) == ((1, 2, 3), (4, 5, 6), (7, 8, 9), (10, 11, 12))
    assert groups(4, 6) == ((1, 2), (2, 3), (4, 5), (5, 6))
    assert groups(3, 2) == ((1,), (1, 2), (2,))


def test_draws_are_sorted_layers_before_the_last():
    torch.manual_seed(0)
    found = drawn(4, 9, 200, place="hidden")
    assert found.shape == (200, 3)
    assert (found[:, 1:] > found[:, :-1]).all()
    assert set(found.flatten().tolist()) == set(range(1, 9))


def test_a_draw_lasts_for_its_share_of_the_run():
    student = [[[0.0], [0.0], [0.0]]] * 3
    teacher = [[[float(n)], [float(n)], [0.0]] for n in range(5)]  # the loss is the square of the layer's number
    objective, both = Hidden(layers="random", draws=4), answers(student, teacher)
    torch.manual_seed(1)
    beside = objective.begin(both)
    assert len(set(beside.drawn.flatten().tolist())) > 1, "this seed draws different layers"
    for progress in (0.0, 0.24, 0.25, 0.5, 0.99, 1.0):
        value = objective.value(dataclasses.replace(both, progress=progress), beside)
        assert value.item() == beside.drawn[min(int(4 * progress), 3), 0].item() ** 2


@pytest.mark.parametrize(
    ("student", "teacher", "cause"),
    [
        (1, 4, 'layers "random" of a student with 1 layers compares nothing'),
        (4, 3, "the student has 3 layers before its last, the teacher 2 to draw from"),
    ],
)
def test_draws_that_are_not_possible(student, teacher, cause):
    with pytest.raises(LissomError, match=f"LSM-319 hidden.layers: {cause}"):
        drawn(student, teacher, 1, place="hidden")


def test_attended_layers_by_hand():
    # <[1, 0], .> of the teacher layers 1 and 2 is ln 3 and 0: they weigh 3/4 and 1/4
    student = [[[9.0, 9.0]] * 3, [[1.0, 0.0], [1.0, 0.0], [9.0, 9.0]]]
    teacher = [[[9.0, 9.0]] * 3, [[math.log(3), 4.0], [math.log(3), 4.0], [0.0, 0.0]], [[0.0, 8.0]] * 3]
    first, second = 1 - 0.75 * math.log(3), 0.75 * 4 + 0.25 * 8
    assert loss(Hidden(layers="attend"), student, teacher).item() == pytest.approx((first**2 + second**2) / 2, rel=1e-5)


def test_combined_layers_by_hand():
    student = [[[9.0], [9.0], [9.0]], [[5.0], [6.0], [9.0]]]
    teacher = [[[9.0, 9.0]] * 3, [[1.0, 0.0], [2.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]]
    objective, both = Hidden(layers="combine"), answers(student, teacher)
    beside = objective.begin(both)
    (only,) = beside.combine
    assert only.weight.shape == (1, 4), "two layers of two numbers to the student's one"
    with torch.no_grad():
        only.weight.copy_(torch.tensor([[3.0, 7.0, 7.0, 2.0]]))  # 3 + 2 and 6
    assert objective.value(both, beside).item() == pytest.approx(0.0)
    only.weight.data[0, 3] = 0.0  # 3 and 6
    assert objective.value(both, beside).item() == pytest.approx((2**2 + 0) / 2)


@pytest.mark.parametrize(("at", "expected"), [("tokens", (1 + 9) / 2), ("first", 1.0), ("mean", 2.0**2)])
def test_rows_by_hand(at, expected):
    student, teacher = [[[0.0], [0.0], [50.0]]], [[[1.0], [3.0], [0.0]]]
    assert loss(Hidden(layers=((0, 0),), at=at), student, teacher).item() == pytest.approx(expected)


def test_normalised_states_by_hand():
    student, teacher = [[[2.0, 0.0], [3.0, 4.0], [9.0, 9.0]]], [[[0.0, 5.0], [6.0, 8.0], [0.0, 0.0]]]
    value = loss(Hidden(layers=((0, 0),), loss="normalised"), student, teacher)
    assert value.item() == pytest.approx((2 + 0) / 2)  # a right angle, and the same direction


def test_transport_by_hand():
    # teacher layers 1 and 2 hold 0 and 2; the student's 3 and 0: d = [[9, 1], [0, 4]], so layers cross over
    student = [[[9.0]] * 3, [[3.0], [3.0], [9.0]], [[0.0], [0.0], [9.0]]]
    teacher = [[[9.0]] * 3, [[0.0], [0.0], [9.0]], [[2.0], [2.0], [9.0]]]
    objective, both = Hidden(layers="transport"), answers(student, teacher)
    beside = objective.begin(both)
    assert objective.value(both, beside).item() == pytest.approx(0.5 * 1 + 0.5 * 0)
    # c of the student is [1, 0]: all weight moves to its second layer, as much as the least weight allows
    assert beside.shares.student.tolist() == pytest.approx([0.001 / 1.001, 1 / 1.001])
    assert beside.shares.teacher.tolist() == pytest.approx([1 / 1.001, 0.001 / 1.001])


def test_transport_sends_its_gradient_through_the_costs_alone():
    costs = torch.tensor([[9.0, 1.0], [0.0, 4.0], [2.0, 2.0]], requires_grad=True)
    weights = shares(3, 2)
    moved(costs, weights).backward()
    third = 1 / 3
    torch.testing.assert_close(costs.grad, torch.tensor([[0.0, third], [third, 0.0], [third / 2, third / 2]]))


def test_transport_is_the_optimum():
    generator = np.random.default_rng(0)
    for _ in range(5):
        cost = generator.random((4, 4))
        found = flow(cost, np.full(4, 0.25), np.full(4, 0.25))
        rows, columns = linear_sum_assignment(cost)
        assert (found * cost).sum() == pytest.approx(cost[rows, columns].sum() / 4)
        assert found.sum(axis=0) == pytest.approx(np.full(4, 0.25))
        assert found.sum(axis=1) == pytest.approx(np.full(4, 0.25))


def test_weights_of_layers_by_hand():
    # c = [1, 2, 3], 6 / c = [6, 3, 2]
    e = np.exp([6.0, 3.0, 2.0])
    assert reweighed(np.array([1.0, 2.0, 3.0])) == pytest.approx(e / e.sum())


def test_costs_that_are_not_numbers_are_shown_and_change_nothing():
    weights = shares(2, 2)
    assert moved(torch.tensor([[1.0, float("nan")], [1.0, 1.0]]), weights).isnan()
    assert weights.student.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("layers", ["random", "attend", "combine", "transport"])
@pytest.mark.parametrize("family", ["albert", "distilbert", "llama"])
def test_every_map_brings_a_narrow_and_shallow_student_nearer(tmp_path, family, layers):
    depth = "n_layers" if family == "distilbert" else "num_hidden_layers"
    teacher = tiny.model(family, HEAD, seed=1)
    narrow = {"dim": 16} if family == "distilbert" else {"hidden_size": 16}
    student = tiny.model(family, HEAD, **{depth: 2}, **narrow)
    objective = Hidden(layers=layers)
    values = learned(tmp_path, student, teacher, objective)
    assert values[-1] < 0.9 * values[0]


@pytest.mark.parametrize(
    "objective", [Hidden(layers="random", draws=7), Hidden(layers="transport"), Hidden(layers="combine", at="first")]
)
def test_an_interrupted_run_continues_to_the_same_bytes(tmp_path, objective):
    assert resumes(tmp_path, objective)


def test_an_encoder_decoder_has_two_rows_of_states_by_hand():
    def output(encoder, decoder):
        return ModelOutput(
            encoder_last_hidden_state=torch.zeros(1),
            encoder_hidden_states=tuple(torch.full((1, 2, 1), one) for one in encoder),
            decoder_hidden_states=tuple(torch.full((1, 2, 1), one) for one in decoder),
        )

    mask = torch.ones(1, 2, dtype=torch.int64)
    inputs = {"input_ids": mask, "attention_mask": mask}
    student, teacher = output([0.0, 1.0], [0.0, 2.0]), output([0.0, 9.0, 2.0], [2.0, 2.0])
    both = Answers(inputs=inputs, student=student, teacher=teacher)
    assert Hidden().value(both, Hidden().begin(both)).item() == pytest.approx(((0 + 1) / 2 + (4 + 0) / 2) / 2)


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_encoder_decoders_learn_in_another_width(tmp_path, family):
    width = {"d_model": 16}
    student, teacher = tiny.model(family, HEAD, **width), tiny.model(family, HEAD, seed=1)
    values = learned(tmp_path, student, teacher, Hidden())
    assert values[-1] < 0.9 * values[0]
