import math

import pytest
import torch
from transformers.utils.generic import ModelOutput

from lissom.errors import LissomError
from lissom.methods.distillation.tune import Tune
from lissom.train.objectives import Answers
from lissom.train.objectives.relations import Relations, related
from lissom.train.projections import Projections
from tests import tiny
from tests.train.objectives.taught import HEAD, learned

MASK = torch.tensor([[1, 1, 0]])


def valued(*layers, heads=1):
    """Values of layers, each (tokens, width) of one text; queries and keys are zero."""
    tensors = [torch.tensor([one]) for one in layers]
    made = tuple(
        Projections(q=0 * v, k=0 * v, v=v, heads=heads, kv_heads=heads, head_dim=v.shape[-1] // heads) for v in tensors
    )
    return ModelOutput(projections=made)


def hidden(*layers):
    return ModelOutput(hidden_states=tuple(torch.tensor([one]) for one in layers))


def answers(student, teacher, mask=MASK):
    return Answers(inputs={"input_ids": mask, "attention_mask": mask}, student=student, teacher=teacher)


def loss(objective, both):
    return objective.value(both, objective.begin(both)).item()


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def softmax(*numbers):
    return [math.exp(one) / sum(map(math.exp, numbers)) for one in numbers]


FLAT = [[0.0], [0.0], [9.0]]  # relations [0, 0], [0, 0]
STEEP = [[1.0], [2.0], [9.0]]  # [1, 2], [2, 4]
EXPECTED = (kl(softmax(1, 2), [0.5, 0.5]) + kl(softmax(2, 4), [0.5, 0.5])) / 2


def test_kl_over_real_tokens_by_hand():
    assert loss(Relations(), answers(valued(FLAT), valued(STEEP))) == pytest.approx(EXPECTED, rel=1e-5)


def test_kinds_are_averaged():
    both = answers(valued(FLAT), valued(STEEP))  # queries and keys agree
    assert loss(Relations(of=("q", "k", "v")), both) == pytest.approx(EXPECTED / 3, rel=1e-5)


def test_relation_heads_by_hand():
    # two heads of two numbers, each divided by the root of 2
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 1.0, 0.0]]])
    found = related(x, 2, torch.ones(1, 2, dtype=torch.bool)) * math.sqrt(2)
    torch.testing.assert_close(found[0], torch.tensor([[[5.0, 2.0], [2.0, 1.0]], [[25.0, 3.0], [3.0, 1.0]]]))


def test_widths_are_free_where_heads_are_given():
    wide = [[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0], [9.0] * 4]
    narrow = [
        [1.0, 1.0],
        [1.0, 1.0],
        [9.0] * 2,
    ]  # each head: 1 / 1 everywhere; the teacher's: 1 / sqrt 2 on the diagonal
    both = answers(valued(narrow, heads=2), valued(wide, heads=4))
    expected = kl(softmax(1 / math.sqrt(2), 0), [0.5, 0.5])
    assert loss(Relations(heads=2), both) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("layer", "expected"), [(-1, 0.0), (1, 0.0), (-2, EXPECTED), (2, EXPECTED)])
def test_a_layer_of_the_teacher_teaches_the_last_of_the_student(layer, expected):
    both = answers(valued(STEEP, FLAT), valued(FLAT, STEEP, FLAT))
    assert loss(Relations(layer=layer), both) == pytest.approx(expected, abs=1e-6)


def test_all_layers():
    both = answers(valued(FLAT, FLAT), valued(FLAT, STEEP, STEEP, FLAT))  # 1 -> 2, 2 -> 4
    assert loss(Relations(layer="all"), both) == pytest.approx(EXPECTED / 2, rel=1e-5)


@pytest.mark.parametrize("layer", [0, 4, -4])
def test_a_layer_that_is_not_there(layer):
    with pytest.raises(LissomError) as caught:
        Relations(layer=layer).begin(answers(valued(FLAT), valued(FLAT, FLAT, FLAT)))
    assert str(caught.value) == f"LSM-319 relations.layer: the teacher has layers 1 to 3, or -3 to -1; found {layer}."


def test_hidden_states_are_one_head():
    assert Relations(of=("hidden",)).reads == {"hidden_states"}
    assert Relations(of=("hidden", "v")).reads == {"hidden_states", "projections"}
    assert Relations().reads == {"projections"}
    both = answers(hidden(STEEP, FLAT), hidden(FLAT, FLAT, STEEP))
    assert loss(Relations(of=("hidden",)), both) == pytest.approx(EXPECTED, rel=1e-5)


def test_direction_by_hand():
    # X X^T is [[1, 0], [0, 1]] and [[1, 1], [1, 1]]: over their norms 1/sqrt 2 on the diagonal, and 1/2 everywhere
    student, teacher = [[1.0, 0.0], [0.0, 1.0], [9.0] * 2], [[1.0, 0.0], [1.0, 0.0], [9.0] * 2]
    expected = math.sqrt(2 * (1 / math.sqrt(2) - 0.5) ** 2 + 2 * 0.5**2)
    both = answers(valued(student), valued(teacher))
    assert loss(Relations(loss="direction"), both) == pytest.approx(expected, rel=1e-5)
    scaled = answers(valued(student), valued([[3.0 * one for one in row] for row in student]))
    assert loss(Relations(loss="direction"), scaled) == pytest.approx(0.0, abs=1e-6)


def test_direction_of_a_copy_has_a_gradient_of_zero():
    v = torch.randn(1, 3, 4, requires_grad=True)
    layer = Projections(q=v, k=v, v=v, heads=2, kv_heads=2, head_dim=2)
    one = ModelOutput(projections=(layer,))
    other = ModelOutput(projections=(Projections(**{**vars(layer), "v": v.detach()}),))
    Relations(loss="direction").value(answers(one, other), torch.nn.Module()).backward()
    assert torch.equal(v.grad, torch.zeros_like(v))


@pytest.mark.parametrize(
    ("heads", "cause", "remedy"),
    [
        (None, "v has 2 heads in the student and 4 in the teacher", 4),
        (3, "v is 12 wide in the student and 16 in the teacher: 3 heads do not fit", 4),
        (8, "v is 12 wide in the student and 16 in the teacher: 8 heads do not fit", 4),
    ],
)
def test_heads_that_do_not_fit_and_those_that_do(heads, cause, remedy):
    both = answers(valued([[0.0] * 12] * 3, heads=2), valued([[0.0] * 16] * 3, heads=4))
    with pytest.raises(LissomError) as caught:
        Relations(heads=heads).begin(both)
    assert str(caught.value) == f"LSM-319 relations.heads: {cause}. Use heads: {remedy}."
    Relations(heads=remedy).begin(both)


def test_nothing_to_relate_is_refused():
    with pytest.raises(LissomError, match=r"learn.relations.of"):
        Tune(learn={"relations": {"of": []}})._built()


@pytest.mark.parametrize(
    "objective",
    [
        Relations(),
        Relations(of=("q", "k", "v"), heads=8, layer=2),
        Relations(of=("hidden",)),
        Relations(of=("q", "k", "v"), loss="direction", layer="all"),
    ],
)
@pytest.mark.parametrize("family", ["bert", "distilbert", "albert", "modernbert", "gpt2", "llama"])
def test_a_narrow_and_shallow_student_relates_as_its_teacher_does(tmp_path, family, objective):
    names = {"distilbert": ("dim", "n_layers"), "gpt2": ("n_embd", "n_layer")}
    width, depth = names.get(family, ("hidden_size", "num_hidden_layers"))
    student, teacher = tiny.model(family, HEAD, **{width: 16, depth: 2}), tiny.model(family, HEAD, seed=1)
    values = learned(tmp_path, student, teacher, objective)
    assert values[-1] < 0.9 * values[0]


@pytest.mark.parametrize(
    ("family", "head", "kind"),
    [
        ("bert", "AutoModelForTokenClassification", "tagging"),
        ("gpt2", "AutoModelForCausalLM", "language_modelling"),
    ],
)
def test_other_tasks(tmp_path, family, head, kind):
    values = learned(tmp_path, tiny.model(family, head), tiny.model(family, head, seed=1), Relations(), kind=kind)
    assert values[-1] < 0.9 * values[0]
