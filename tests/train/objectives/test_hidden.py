import pytest
import torch
from transformers.modeling_outputs import SequenceClassifierOutput

from lissom.errors import LissomError
from lissom.train.objectives import Answers
from lissom.train.objectives.hidden import Hidden, pairs

MASK = torch.tensor([[1, 1, 0]])


def answers(student, teacher):
    """Hidden states as lists: layers of (tokens, width), for one text with a padded third token."""

    def output(layers):
        states = tuple(torch.tensor([one]) for one in layers)
        return SequenceClassifierOutput(logits=torch.zeros(1, 2), hidden_states=states)

    inputs = {"input_ids": MASK, "attention_mask": MASK}
    return Answers(inputs=inputs, student=output(student), teacher=output(teacher))


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
    assert pairs(layers, student, teacher) == expected


def test_a_layer_that_is_not_there():
    with pytest.raises(LissomError) as caught:
        pairs(((1, 7),), 3, 6)
    assert str(caught.value) == (
        "LSM-319 hidden.layers: [1, 7] is outside [0, 0] to [3, 6]: student layer, teacher layer. "
        "0 is the output of the embeddings."
    )


def test_skip_of_one_layer_compares_nothing():
    with pytest.raises(LissomError, match=r'LSM-319 .* layers "skip" of a student with 1 layers compares nothing'):
        pairs("skip", 1, 12)


def test_mse_over_real_tokens_by_hand():
    student = [[[0.0, 0.0], [0.0, 0.0], [9.0, 9.0]], [[1.0, 1.0], [0.0, 2.0], [9.0, 9.0]]]
    teacher = [[[0.0, 2.0], [0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]]
    value = Hidden().value(answers(student, teacher), torch.nn.Module())
    assert value.item() == pytest.approx((4 / 4 + 4 / 4) / 2)  # two pairs, four numbers each


def test_cosine_by_hand():
    student = [[[1.0, 0.0], [3.0, 0.0], [9.0, 9.0]], [[0.0, 1.0], [1.0, 0.0], [9.0, 9.0]]]
    teacher = [[[5.0, 0.0], [0.0, 1.0], [0.0, 0.0]], [[0.0, 1.0], [-1.0, 0.0], [0.0, 0.0]]]
    layers = ((0, 0), (1, 1))  # cosines 1, 0 and 1, -1
    value = Hidden(layers=layers, loss="cosine").value(answers(student, teacher), torch.nn.Module())
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
