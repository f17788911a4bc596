"""Int8 layers with columns in floating point: a token by hand, large inputs apart, and what a module survives."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lissom.nn.low_bit import unpack, weights_held
from lissom.nn.split import SplitInt8Linear, split

torch.set_num_threads(1)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(columns: tuple[int, ...] = (2, 9), rows: int = 6, width: int = 13, bias: bool = True) -> SplitInt8Linear:
    made = SplitInt8Linear(width, rows, outliers=len(columns), bias=bias)
    for name, value in split(random(rows, width), torch.tensor(columns, dtype=torch.int64)).items():
        setattr(made, name, value)
    made.bias = random(rows, seed=1) if bias else None
    return made


def test_one_token_by_hand() -> None:
    made = SplitInt8Linear(3, 1, outliers=1, bias=False)
    for name, value in split(torch.tensor([[1.27, 0.10, -0.635]]), torch.tensor([1])).items():
        setattr(made, name, value)
    assert made.codes().tolist() == [[127, 0, -64]]  # -63.5 is rounded half to even
    assert made.weight_scale.tolist() == pytest.approx([0.01])
    # of (2.54, 60, 0.029) the 60 is apart: 60 · 0.1; the others are 127 and round(1.45) in units of 0.02
    assert made(torch.tensor([2.54, 60.0, 0.029])).tolist() == pytest.approx([(127 * 127 - 64) * 0.02 * 0.01 + 6])


def test_large_inputs_cost_the_others_nothing_where_their_column_is_apart() -> None:
    x, weight = random(5, 13), random(6, 13)
    x[:, 9] = 1000
    apart, together = layer((9,), bias=False), layer((), bias=False)
    wanted = F.linear(x, weight)
    assert (apart(x) - wanted).abs().max() < 0.1
    assert (together(x) - wanted).abs().max() > 1


def test_an_answer_depends_on_its_token_alone() -> None:
    made, x = layer(), random(4, 13)
    x[3] *= 100
    torch.testing.assert_close(made(x)[:3], made(x[:3]), rtol=1e-5, atol=1e-5)
    assert made(torch.zeros(1, 13)).tolist() == [made.bias.tolist()]
    assert made(x[:0]).shape == (0, 6)
    assert made(x.reshape(2, 2, 13)).shape == (2, 2, 6)
    assert made.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
    assert made.weight_outliers.dtype == made.weight_scale.dtype == torch.float32


def test_columns_that_are_apart_are_not_rounded() -> None:
    made, weight = layer(), random(6, 13)
    assert torch.equal(made.dense()[:, [2, 9]], weight[:, [2, 9]])
    assert ((made.dense() - weight).abs() <= made.weight_scale[:, None] / 2 + 1e-7).all()


def test_cuts_move_columns_and_never_change_their_number() -> None:
    made, x = layer(), random(4, 13)
    made(x)
    whole = made.dense()
    rows, columns = torch.tensor([5, 1]), torch.tensor([12, 9, 7])
    made.keep(out=rows, in_=columns)
    assert (made.in_features, made.out_features) == (3, 2)
    assert made.weight_positions.tolist() == [-1, 1]
    assert torch.equal(made.dense(), whole[rows][:, columns])
    torch.testing.assert_close(made(x[:, columns]), F.linear(x[:, columns], made.dense(), made.bias), rtol=0, atol=0.05)


def test_state_copies_and_empty_skeleton() -> None:
    made, x = layer(), random(2, 13)
    expected = made(x)
    empty = SplitInt8Linear(13, 6, outliers=2, device="meta")
    assert empty.dense().shape == (6, 13)
    empty.load_state_dict(made.state_dict(), assign=True)
    assert torch.equal(empty(x), expected)
    assert torch.equal(copy.deepcopy(made)(x), expected)
    with pytest.raises(RuntimeError, match="have no gradient"):
        made(random(2, 13).requires_grad_()).sum().backward()


def test_it_is_counted_and_unpacked_as_float() -> None:
    model, x = nn.ModuleDict({"one": layer()}), random(2, 13)
    dense, bias = model["one"].dense(), model["one"].bias
    assert weights_held(model) == {id(model["one"].weight): 6 * 13, id(model["one"].weight_positions): 0}
    unpack(model)
    assert type(model["one"]) is nn.Linear
    assert torch.equal(model["one"](x), F.linear(x, dense, bias))


@pytest.mark.parametrize("wrong", [-2, 13])
def test_a_column_that_there_is_not_is_refused(wrong: int) -> None:
    made = layer()
    made.weight_positions[0] = wrong
    with pytest.raises(ValueError, match=f"column {wrong} is kept in floating point, of 13 columns"):
        made(random(2, 13))
