"""AutoRound: by hand, against rounding to nearest, and on models."""

import copy

import pytest
import torch

import lissom
from lissom.anatomy import dissect
from lissom.data import load_data
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods import Given
from lissom.methods.quantization.auto_round import AutoRound, Learnt, error
from lissom.methods.quantization.rtn import Rtn
from lissom.nn.grouped import GroupedLinear, restore
from lissom.stats.blocks import Case
from tests import tiny


def given(rows=16):
    data = load_data({"train": tiny.labelled_texts(rows), "validation": tiny.labelled_texts(4, seed=1)})
    return Given(data=data, tokenizer=tiny.tokenizer(), max_length=32)


class Alone:
    """A slot of one linear map."""

    def __init__(self, weight):
        self.weight, self.path, self.module = weight, "map", torch.nn.Linear(weight.shape[1], len(weight))


def test_by_hand():
    # two bits hold 0 .. 3 in steps of 1, so that 0.4 becomes 0, and 1 where V is 0.2; with alpha = 1/2 steps are 0.5
    one = Learnt(Alone(torch.tensor([[0.4, 3.0]])), 2, 8)
    assert one.stored().codes.tolist() == [[0, 3]]
    one.take((torch.tensor([[0.2, 0.2]]), torch.ones(1, 1), torch.ones(1, 1)))
    assert one.stored().codes.tolist() == [[1, 3]]
    one.take((torch.zeros(1, 2), torch.full((1, 1), 0.5), torch.ones(1, 1)))
    assert one.stored().codes.tolist() == [[1, 3]]
    assert restore(*one.stored(), group=8).tolist() == [[0.5, 1.5]]


def test_a_step_by_hand():
    # the output 0 should be 0.4, so V goes up by the rate where the input is positive, down where it is negative
    one = Learnt(Alone(torch.tensor([[0.4, 0.4, 3.0]])), 2, 8)
    x = torch.tensor([1.0, -2.0, 0.0])
    ((one.weight() @ x - 0.4) ** 2).sum().backward()
    one.move(0.25)
    assert one.numbers()[0].tolist() == [[0.25, -0.25, 0.0]]
    one.shift.grad = torch.tensor([[-5.0, 5.0, 0.0]])
    one.move(0.75)
    assert one.numbers()[0].tolist() == [[0.5, -0.5, 0.0]]  # the ends


def test_without_a_step_to_a_smaller_loss_it_is_rounding_to_nearest():
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    found, plain = Learnt(Alone(weight), 3, 8).stored(), Rtn(bits=3, group=8).rounded(weight, "")
    assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=True))


def test_padding_is_not_counted():
    block, x = torch.nn.Linear(4, 4), torch.randn(2, 3, 4)
    target = block(x).detach()
    target[0, 2] += 5
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    with torch.no_grad():
        assert float(error(block, {}, Case((x,), {}, mask, target, (x,)), "")) == 0
        assert float(error(block, {}, Case((x,), {}, None, target, (x,)), "")) > 1


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5"])
def test_a_model_answers_more_nearly_than_after_rounding_to_nearest(kind, tmp_path):
    model = tiny.model(kind, "AutoModelForSequenceClassification")
    inputs = next(given().calibration(model, 16))
    right = tiny.outputs(model, inputs)
    errors = []
    for method in (AutoRound(bits=3, group=16, steps=40, samples=16), Rtn(bits=3, group=16)):
        editor = Editor(copy.deepcopy(model))
        method.apply(editor, given())
        answer = tiny.outputs(editor.model, inputs)
        errors.append(float((answer - right).norm()))
        assert all(isinstance(slot.module, GroupedLinear) for slot in dissect(editor.model).linears())
    assert errors[0] < 0.95 * errors[1]
    AutoRound(bits=3, group=16, steps=3, samples=16).apply(editor := Editor(model), given())
    answer = tiny.outputs(editor.model, inputs)
    lissom.save(editor.model, tmp_path)
    assert torch.equal(tiny.outputs(lissom.load(tmp_path), inputs), answer)


def test_refusals():
    with pytest.raises(LissomError, match=r"LSM-317 needs texts to look at"):
        AutoRound().apply(Editor(tiny.model("bert")), Given())
    editor = Editor(tiny.model("llama"))
    with torch.no_grad():
        editor.model.embed_tokens.weight[3:] = torch.inf
    with pytest.raises(LissomError, match=r"LSM-901 .*an input holds NaN or infinity on a calibration text"):
        AutoRound(group=8).apply(editor, given())
