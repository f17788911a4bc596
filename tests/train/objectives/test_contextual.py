import math

import pytest
import torch
from transformers.utils.generic import ModelOutput

from lissom.errors import LissomError
from lissom.train.objectives import Answers
from lissom.train.objectives.contextual import Contextual, windows
from tests import tiny
from tests.train.objectives.taught import HEAD, learned

MASK = torch.tensor([[1, 1, 1, 0]])
ORIGIN, X, Y, OTHER = [0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [9.0, 9.0]
RIGHT = [X, [1.0, 1.0], Y, OTHER]  # a square's corners: a right angle at the second token
WORDS = Contextual(of=("words",), layers=((0, 0),))


def answers(student, teacher, mask=MASK):
    """Layers of states (tokens, width) each."""
    both = [ModelOutput(hidden_states=tuple(torch.tensor([one]) for one in layers)) for layers in (student, teacher)]
    return Answers(inputs={"input_ids": mask, "attention_mask": mask}, student=both[0], teacher=both[1])


def loss(objective, both):
    return objective.value(both, objective.begin(both)).item()


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def angle(a, b, c):
    return cosine([x - y for x, y in zip(a, b, strict=True)], [x - y for x, y in zip(c, b, strict=True)])


def squared(tokens, others, window):
    """The loss of one layer, triple by triple."""
    near = {(i, j) for i in range(3) for j in range(3) if i != j and abs(i - j) <= window}
    pairs = [(cosine(tokens[i], tokens[j]) - cosine(others[i], others[j])) ** 2 for i, j in near]
    triples = [
        (angle(tokens[a], tokens[b], tokens[c]) - angle(others[a], others[b], others[c])) ** 2
        for b in range(3)
        for a in range(3)
        for c in range(3)
        if len({a, b, c}) == 3 and (b, a) in near and (b, c) in near
    ]
    return sum(pairs) / len(pairs) + sum(triples) / max(len(triples), 1)


@pytest.mark.parametrize("window", [1, 2, 5])
def test_words_triple_by_triple(window):
    bent = [X, [2.0, 3.0], [-1.0, 2.0], OTHER]
    found = loss(Contextual(of=("words",), layers=((0, 0),), window=window), answers([RIGHT], [bent]))
    assert found == pytest.approx(squared(RIGHT, bent, window), rel=1e-5)


def test_turning_and_scaling_change_nothing_but_moving_does():
    turned = [[-2.0 * y, 2.0 * x] for x, y in RIGHT]
    assert loss(WORDS, answers([RIGHT], [turned])) == pytest.approx(0.0, abs=1e-6)
    assert loss(WORDS, answers([RIGHT], [[[x + 3.0, y] for x, y in RIGHT]])) > 0.01


def test_layers_of_a_token_by_hand():
    # the three layers of each token stand at a right angle in the student, in a line in the teacher
    student = [[X] * 4, [[1.0, 1.0]] * 4, [Y] * 4]
    teacher = [[X] * 4, [[2.0, 0.0]] * 4, [[3.0, 0.0]] * 4]
    root = 1 / math.sqrt(2)
    cosines = (2 * (1 - root) ** 2 + (1 - 0.0) ** 2) * 2 / 6
    # at the first layer 45 against 0 degrees, at the second 90 against 180, at the third 45 against 0
    angles = ((1 - root) ** 2 + 1.0 + (1 - root) ** 2) / 3
    objective = Contextual(of=("layers",))
    assert loss(objective, answers(student, teacher)) == pytest.approx(cosines + angles, rel=1e-5)


def test_both_are_added():
    student, teacher = [RIGHT, [Y, X, [2.0, 1.0], OTHER]], [[X, Y, [1.0, 3.0], OTHER], RIGHT]
    both = answers(student, teacher)
    parts = [loss(Contextual(of=(one,)), both) for one in ("words", "layers")]
    assert min(parts) > 0
    assert loss(Contextual(), both) == pytest.approx(sum(parts), rel=1e-5)


def test_equal_states_have_no_angle_and_a_gradient():
    states = torch.tensor([[X, X, X, OTHER]], requires_grad=True)
    both = answers([RIGHT], [RIGHT])
    both.student["hidden_states"] = (states,)
    value = WORDS.value(both, torch.nn.Module())
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(states.grad).all()
    assert states.grad[0, :3].any()
    assert not states.grad[0, 3].any(), "padding"


def test_windows_end_with_the_text():
    near, seen = windows(torch.tensor([[True, True, False]]), 1)
    assert near.tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 2]]
    assert seen.tolist() == [[[False, True, True], [True, True, False], [False, False, False]]]


def test_one_layer_has_no_others():
    with pytest.raises(LissomError, match=r"LSM-319 contextual\.layers: one layer has no others to lie to"):
        Contextual(layers="last").begin(answers([RIGHT, RIGHT], [RIGHT, RIGHT]))


@pytest.mark.parametrize(
    ("family", "head", "kind"),
    [
        ("distilbert", HEAD, "classification"),
        ("albert", "AutoModelForTokenClassification", "tagging"),
        ("llama", "AutoModelForCausalLM", "language_modelling"),
    ],
)
def test_a_narrow_and_shallow_student_follows(tmp_path, family, head, kind):
    width, depth = ("dim", "n_layers") if family == "distilbert" else ("hidden_size", "num_hidden_layers")
    student, teacher = tiny.model(family, head, **{width: 16, depth: 2}), tiny.model(family, head, seed=1)
    values = learned(tmp_path, student, teacher, Contextual(), kind=kind)
    assert values[-1] < 0.9 * values[0]
