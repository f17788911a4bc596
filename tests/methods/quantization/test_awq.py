"""AWQ: by hand, exact factors, and against rounding to nearest."""

import copy

import pytest
import torch

import lissom
from lissom.anatomy import dissect
from lissom.data import load_data
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods import Given
from lissom.methods.quantization.awq import Awq, output_error
from lissom.methods.quantization.rtn import Rtn
from lissom.nn.grouped import GroupedLinear, restore
from tests import tiny


def given(rows=16):
    data = load_data({"train": tiny.labelled_texts(rows), "validation": tiny.labelled_texts(4, seed=1)})
    return Given(data=data, tokenizer=tiny.tokenizer(), max_length=32)


class Alone:
    """A slot of one weight."""

    def __init__(self, weight):
        self.weight, self.path = weight, "map"


def test_the_error_by_hand():
    # one row changes by (1, -1); over the tokens (1, 0) and (2, 1) its output changes by 1 and 1: 2 · (1 + 1)
    x = torch.tensor([[1.0, 0.0], [2.0, 1.0]])
    assert output_error(torch.tensor([[1.0, -1.0]]), 2 * x.t() @ x) == 4


def test_ends_are_drawn_in_where_the_largest_weight_is_never_used():
    # two bits hold 0 .. 12 by steps of 4; the 12 meets inputs that are all but zero, and without it steps of 2 hold 2
    weight = torch.tensor([[2.0, 2.0, 2.0, 12.0, 0.0, 0.0, 0.0, 0.0]])
    hessian = torch.diag(torch.tensor([1.0, 1, 1, 1e-6, 1, 1, 1, 1]))
    one = Alone(weight)
    plain, found = Rtn(bits=2, group=8).rounded(weight, ""), Awq(bits=2, group=8).ends(one, hessian, clip=True)
    assert restore(*plain, group=8)[0, :3].tolist() in ([0, 0, 0], [4, 4, 4])
    assert restore(*found, group=8)[0, :3].tolist() == pytest.approx([2, 2, 2], abs=0.01)
    spared = Awq(bits=2, group=8).ends(one, hessian, clip=False)
    assert torch.equal(spared.codes, plain.codes)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_drawing_in_never_makes_a_group_worse(bits):
    generator = torch.Generator().manual_seed(bits)
    weight, x = torch.randn(16, 40, generator=generator), torch.randn(200, 40, generator=generator)
    hessian = 2 * torch.diag((x * x).sum(0))  # groups by themselves make up the whole error
    found = Awq(bits=bits, group=16).ends(Alone(weight), hessian, clip=True)
    plain = Rtn(bits=bits, group=16).rounded(weight, "")
    errors = [output_error(restore(*one, group=16) - weight, hessian) for one in (found, plain)]
    assert errors[0] <= errors[1]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_error_of_a_model_with_a_loud_channel_is_lower(kind):
    model = tiny.model(kind, "AutoModelForCausalLM")
    norms = [
        module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in ("input_layernorm", "post_attention_layernorm", "ln_1", "ln_2")
    ]
    with torch.no_grad():
        for norm in norms:
            norm.weight[3] *= 30
    inputs = tiny.batch(model)
    right = tiny.outputs(model, inputs)
    errors = []
    for method in (Awq(bits=4, group=32), Rtn(bits=4, group=32)):
        editor = Editor(copy.deepcopy(model))
        method.apply(editor, given())
        errors.append((tiny.outputs(editor.model, inputs) - right).norm())
    assert errors[0] < errors[1]


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_eight_bits_leave_the_model_as_it_was_and_are_saved(kind, tmp_path):
    model = tiny.model(kind)
    inputs = tiny.batch(model)
    right = tiny.outputs(model, inputs)
    editor = Editor(model)
    Awq(bits=8, group=8).apply(editor, given())
    answer = tiny.outputs(editor.model, inputs)
    assert all(isinstance(slot.module, GroupedLinear) for slot in dissect(editor.model).linears())
    torch.testing.assert_close(answer, right, atol=0.05, rtol=0.05)  # factors are exact, 8 bits are nearly so
    lissom.save(editor.model, tmp_path / "saved")
    assert torch.equal(tiny.outputs(lissom.load(tmp_path / "saved"), inputs), answer)


def test_refusals():
    with pytest.raises(LissomError, match=r"LSM-317 needs texts to look at. Give --data"):
        Awq().apply(Editor(tiny.model("bert")), Given())
    editor = Editor(tiny.model("llama"))
    with torch.no_grad():
        editor.model.embed_tokens.weight[3:] = torch.inf
    with pytest.raises(LissomError, match=r"LSM-901 .*an input holds NaN or infinity on a calibration text"):
        Awq(group=8).apply(editor, given())
