"""The fit of what reads units, by hand, and on tiny models."""

import copy

import pytest
import torch

from lissom.anatomy import dissect
from lissom.errors import LissomError
from lissom.stats.refit import Sums, added_weights, fitted_gates, readers, refit
from tests import tiny


def sums(x: torch.Tensor, e: torch.Tensor) -> Sums:
    return Sums(x.t() @ x, x.t() @ e, x.sum(0), e.sum(0), len(x))


def test_a_column_takes_over_what_a_gone_one_said():
    # x2 is twice x1 on every text, and its column said 2 x2 = 4 x1
    x = torch.tensor([[1.0, 2.0], [-1.0, -2.0], [2.0, 4.0]])
    added, shift = added_weights(sums(x, 2 * x[:, 1:]), torch.tensor([0]), shift=False)
    assert added.tolist() == [[pytest.approx(24 / 6.06)]]  # Σ x1² = 6, damped by 0.06
    assert shift.tolist() == [0.0]


def test_a_bias_takes_over_a_constant():
    # x2 is always 3, and its column said 2 * 3
    x = torch.tensor([[1.0, 3.0], [-2.0, 3.0], [1.0, 3.0]])
    added, shift = added_weights(sums(x, 2 * x[:, 1:]), torch.tensor([0]), shift=True)
    assert added.tolist() == [[pytest.approx(0.0)]]
    assert shift.tolist() == [pytest.approx(6.0)]


def test_gates_by_hand():
    # three units of one input each; the third went and was as the first: the first has to say both
    x = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    weight = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    lacks = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    found = fitted_gates(weight, sums(x, lacks), torch.tensor([True, True, False]))
    # products diag(2, 2), damped by 0.02; lacks 2 and 0
    assert found.tolist() == [pytest.approx(1 + 2 / 2.02), pytest.approx(1.0), 0.0]


def test_gates_of_units_of_several_inputs_are_one_factor_each():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(50, 4, generator=generator), torch.randn(3, 4, generator=generator)
    more = torch.tensor([1.0, 1.0, -0.5, -0.5])
    found = fitted_gates(weight, sums(x, x @ (weight * more).t()), torch.tensor([True, True]))
    assert found.tolist() == pytest.approx([2.0, 0.5], abs=0.05)


def test_gates_that_run_away_are_clipped():
    x = torch.tensor([[1.0]])
    assert fitted_gates(torch.ones(1, 1), sums(x, torch.tensor([[100.0]])), torch.tensor([True])).tolist() == [10.0]


@pytest.mark.parametrize("kind", ["weights", "gates"])
@pytest.mark.parametrize("variant", ["bert", "gpt2", "llama", "gpt_neox", "bart", "t5", "albert"])
def test_where_nothing_goes_nothing_changes(variant: str, kind: str):
    """Which shows that residuals are found right, whether blocks normalise first or last."""
    model = tiny.model(variant)
    inputs = tiny.batch(model)
    before, was = tiny.outputs(model, inputs), copy.deepcopy(model.state_dict())
    anatomy = dissect(model)
    kept = {
        slot.path: torch.ones(2, dtype=torch.bool)
        for stack in anatomy.stacks
        for block in stack.blocks
        for slot in readers(block)
    }
    refit(anatomy, [inputs], kept, kind=kind)
    assert torch.allclose(tiny.outputs(model, inputs), before, atol=1e-5)
    assert all(torch.allclose(value, was[name], atol=1e-5) for name, value in model.state_dict().items())


@pytest.mark.parametrize("variant", ["bert", "llama"])
def test_a_fit_brings_the_answers_nearer(variant: str):
    model = tiny.model(variant)
    batches = [tiny.batch(model, rows=8, length=20, seed=seed) for seed in range(4)]
    before = [tiny.outputs(model, one) for one in batches]
    errors = {}
    for kind in ("none", "gates", "weights"):
        made = copy.deepcopy(model)
        anatomy = dissect(made)
        half = torch.arange(48) % 2 == 0
        refit(anatomy, batches, {block.ffn.down.path: half for block in anatomy.stacks[0].blocks}, kind=kind)
        assert all(bool((block.ffn.down.weight[:, 1::2] == 0).all()) for block in anatomy.stacks[0].blocks)
        answers = [tiny.outputs(made, one) for one in batches]
        errors[kind] = sum(float((a - b).square().mean()) for a, b in zip(answers, before, strict=True))
    assert errors["weights"] < errors["gates"] < errors["none"]


def test_what_is_not_finite_is_named():
    model = tiny.model("bert")
    block = dissect(model).stacks[0].blocks[1]
    with torch.no_grad():
        block.ffn.up.weight[3, 0] = torch.nan
    kept = {block.ffn.down.path: torch.ones(48, dtype=torch.bool)}
    with pytest.raises(LissomError, match=r"LSM-901 .*layer\.1\.output\.dense: an input holds NaN"):
        refit(dissect(model), [tiny.batch(model)], kept, kind="weights")
