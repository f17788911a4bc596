"""Rows with bits of their own: bytes, choices and mixtures by hand, and what a layer survives."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from lissom.nn.fake_quant import FakeWeight
from lissom.nn.low_bit import weights_held
from lissom.nn.mixed_bits import Choices, FakeMixed, MixedBitLinear, fewest_bits, pack_runs, runs_of, unpack_runs

torch.set_num_threads(1)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(**options: bool) -> MixedBitLinear:
    made = MixedBitLinear(5, 6, runs=((2, 1), (8, 2), (0, 2), (4, 1)), **options)
    codes = torch.tensor([[1, 0, -1, 1, 0], [127, -5, 3, 0, 1], [9, 9, -127, 2, 0], [0] * 5, [0] * 5, [7, -7, 1, 2, 3]])
    made.weight, made.weight_scale = pack_runs(codes.to(torch.int8), made.runs), random(6, seed=2).abs()
    if made.bias is not None:
        made.bias = random(6, seed=1)
    return made


def test_bytes_by_hand() -> None:
    packed = pack_runs(
        torch.tensor([[1, 0, -1], [127, -5, 3], [0, 0, 0], [7, -7, 1]]), ((2, 1), (8, 1), (0, 1), (4, 1))
    )
    expected = [0b01_10_11, 255, 123, 131, 0x1F, 0x09]  # numbers code + 2, + 128, + 8
    assert packed.view(torch.uint8).tolist() == expected
    back = unpack_runs(packed, 3, ((2, 1), (8, 1), (0, 1), (4, 1)))
    assert back.tolist() == [[1, 0, -1], [127, -5, 3], [0, 0, 0], [7, -7, 1]]
    assert unpack_runs(pack_runs(torch.zeros(4, 3), ((0, 4),)), 3, ((0, 4),)).tolist() == [[0] * 3] * 4


def test_runs_by_hand() -> None:
    assert runs_of(torch.tensor([8, 8, 2, 0, 0, 8])) == ((8, 2), (2, 1), (0, 2), (8, 1))


@pytest.mark.parametrize("rounds", [True, False])
def test_it_computes_as_one_matrix(rounds: bool) -> None:
    made, x = layer(rounds=rounds), random(3, 5)
    assert (made.in_features, made.out_features, made.weight.shape) == (5, 6, (2 + 10 + 3,))
    cosine = F.cosine_similarity(made(x).flatten(), F.linear(x, made.dense(), made.bias).flatten(), dim=0)
    assert cosine > (0.999 if rounds else 0.999999)
    assert torch.equal(made.unpacked()(x), made(x))
    assert torch.equal(copy.deepcopy(made)(x), made(x))
    assert weights_held(torch.nn.ModuleList([made])) == {id(made.weight): 30}


def test_cuts_of_rows_leave_one_run_of_the_most_bits() -> None:
    made = layer()
    dense, bias = made.dense(), made.bias
    rows, columns = torch.tensor([5, 0, 4, 1]), torch.tensor([4, 0, 2])
    made.keep(out=rows, in_=columns)
    assert made.runs == ((8, 4),)
    assert torch.equal(made.dense(), dense[rows][:, columns])
    assert torch.equal(made.bias, bias[rows])


def test_runs_that_are_not_the_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="runs of 5 rows in a matrix of 6"):
        MixedBitLinear(4, 6, runs=((8, 5),))


def test_each_row_takes_the_fewest_bits_that_give_it() -> None:
    weight = random(4, 33)
    rows = [FakeWeight(kind)(weight[i : i + 1]) for i, kind in enumerate(("int8", "int4", "ternary"))]
    made = torch.cat([*rows, torch.zeros(1, 33), weight[3:]])
    bits, codes, scale = fewest_bits(made)
    assert bits.tolist() == [8, 4, 2, 0, 8]
    torch.testing.assert_close((codes * scale[:, None])[:4], made[:4])


def test_a_mixture_by_hand() -> None:
    choices = Choices(torch.tensor([0.5, 0.5]))
    made = FakeMixed(choices, slice(0, 2), [1, 2])
    weight = random(3, 8).requires_grad_()
    with torch.no_grad():
        choices.a.copy_(torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.0, 0.0, 0.5, 0.5]]).log())
    forms = [FakeWeight(kind)(weight.detach()) for kind in ("int8", "int4", "ternary")]
    y = made(weight)
    torch.testing.assert_close(y[0], 0.5 * forms[0][0] + 0.25 * forms[1][0] + 0.125 * forms[2][0])
    torch.testing.assert_close(y[1:], 0.5 * forms[2][1:])
    y.sum().backward()
    torch.testing.assert_close(weight.grad, torch.tensor([[0.875], [0.5], [0.5]]).expand(3, 8))
    assert choices.a.grad is None, "the weights' loss does not train the choices"
    choices.live = True
    made(weight).sum().backward()
    assert choices.a.grad.abs().sum() > 0
    made.eval()
    torch.testing.assert_close(made(weight)[0], forms[0][0])
    torch.testing.assert_close(choices.mean_bits(choices.shares(slice(0, 2))), torch.tensor(5.0))


def test_groups_go_down_where_it_costs_least_by_hand() -> None:
    choices = Choices(torch.tensor([0.25, 0.25, 0.5]))
    with torch.no_grad():
        choices.a.copy_(torch.tensor([[3.0, 1.0, 0.0, 0.0], [3.0, 2.9, 0.0, 0.0], [0.0, 3.0, 1.0, 0.0]]))
    again = copy.deepcopy(choices)
    choices.fix(8)
    assert choices.chosen.tolist() == [0, 0, 1]
    again.fix(5.0)  # of 8, 8 and 4 bits, 6 in the mean, the second group loses 0.1 by going down
    assert again.chosen.tolist() == [0, 1, 1]
    again.fix(0.1)
    assert again.chosen.tolist() == [0, 1, 1], "once"
