"""GPTQ: by hand, against rounding to nearest, and on models."""

import pytest
import torch

import lissom
from lissom.data import load_data
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods import Given
from lissom.methods.quantization.gptq import Gptq
from lissom.methods.quantization.rtn import Rtn
from lissom.nn.grouped import GroupedLinear, restore
from tests import tiny


def given(rows=16):
    data = load_data({"train": tiny.labelled_texts(rows), "validation": tiny.labelled_texts(4, seed=1)})
    return Given(data=data, tokenizer=tiny.tokenizer(), max_length=32)


def test_by_hand():
    # Scale 1, zero point 0: the third column's power of 100 holds the ends. The inverse of H is [[1, -2], [-2, 5]] for
    # the first two columns, so U_12 / U_11 = -2. The first weight loses -0.4, the second becomes 2 - 0.8 = 1.2. The
    # error eHeᵀ is 0.2; of rounding to nearest, (2, 2), it is 0.8.
    weight = torch.tensor([[1.6, 2.0, 3.0]])
    hessian = torch.tensor([[5.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 100.0]])
    found = Gptq(bits=2, group=8, damp=0, act_order=False).solve(weight, hessian)
    assert found.codes.tolist() == [[2, 1, 3]]
    assert Rtn(bits=2, group=8).rounded(weight, "").codes.tolist() == [[2, 2, 3]]


def test_ends_are_drawn_in_where_the_largest_weight_is_hardly_used():
    # two bits hold 0 .. 12 by steps of 4; the 12 meets inputs that are all but zero, and without it steps of 2.4 hold 2
    weight, power = torch.tensor([[2.0, 2.0, 2.0, 12.0]]), torch.tensor([1.0, 1.0, 1.0, 1e-4])
    found = Gptq(bits=2, group=8, damp=0).solve(weight, torch.diag(power))
    assert found.scale.item() < 2.5
    assert restore(*found, group=8)[0, :3].tolist() == pytest.approx([2, 2, 2], abs=0.5)


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_outputs_are_nearer_than_of_rounding_to_nearest(bits, act_order):
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn(32, 200, generator=generator)
    x = torch.randn(500, 40, generator=generator) @ torch.randn(40, 200, generator=generator)
    x += 0.3 * torch.randn(500, 200, generator=generator)
    found = Gptq(bits=bits, group=64, act_order=act_order).solve(weight, 2 * x.t() @ x)
    plain = Rtn(bits=bits, group=64).rounded(weight, "")
    errors = [(x @ (restore(*one, group=64) - weight).t()).norm() for one in (found, plain)]
    assert errors[0] < 0.8 * errors[1]


def test_columns_never_seen_are_rounded_to_the_nearest():
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Gptq(group=8).solve(weight, torch.zeros(16, 16)).codes, Rtn(group=8).rounded(weight, "").codes)


def test_refusals():
    weight = torch.ones(1, 2)
    with pytest.raises(LissomError, match=r"LSM-903 here: .*not positive definite"):
        Gptq(group=8).solve(weight, torch.tensor([[1.0, 99.0], [99.0, 1.0]]), "here")
    with pytest.raises(LissomError, match=r"LSM-901 here: .*NaN"):
        Gptq(group=8).solve(weight, torch.full((2, 2), torch.nan), "here")
    with pytest.raises(LissomError, match=r"LSM-317"):
        Gptq().apply(Editor(tiny.model("bert")), Given())


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_models_are_packed_and_saved(kind, tmp_path):
    editor = Editor(tiny.model(kind))
    whole = tiny.outputs(editor.model, inputs := tiny.batch(editor.model))
    Gptq(bits=8, group=8).apply(editor, given())
    packed = tiny.outputs(editor.model, inputs)
    assert any(isinstance(one, GroupedLinear) for one in editor.model.modules())
    assert (packed - whole).norm() < 0.05 * whole.norm()
    lissom.save(editor.model, tmp_path)
    assert torch.equal(tiny.outputs(lissom.load(tmp_path), inputs), packed)
