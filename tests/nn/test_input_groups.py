"""Int8 layers with one input scale a group of columns: by hand, as a sum of layers, and what a module survives."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lissom.nn.input_groups import InputGroupsLinear
from lissom.nn.int8 import quantize_rows
from lissom.nn.low_bit import pack_codes, unpack
from lissom.nn.static import StaticInt8Linear

torch.set_num_threads(1)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(rows: int = 6, width: int = 13, groups: int = 3, bias: bool = True) -> InputGroupsLinear:
    made = InputGroupsLinear(width, rows, groups=groups, bias=bias)
    codes, made.weight_scale = quantize_rows(random(rows, width))
    made.weight = pack_codes(codes, 8)
    made.bias = random(rows, seed=1) if bias else None
    made.input_scale = torch.tensor([0.02, 0.03, 4.0])[:groups]
    made.input_zero = torch.tensor([128, 100, 127], dtype=torch.uint8)[:groups]
    made.input_group = (torch.arange(width) % groups).to(torch.uint8)
    return made


def test_one_token_by_hand() -> None:
    made = InputGroupsLinear(3, 1, groups=2, bias=False)
    made.weight = pack_codes(torch.tensor([[127, 10, -64]], dtype=torch.int8), 8)
    made.weight_scale = torch.tensor([0.01])
    made.input_scale = torch.tensor([0.1, 10.0])
    made.input_zero, made.input_group = torch.tensor([100, 0], dtype=torch.uint8), torch.tensor([0, 1, 0]).byte()
    # codes less their zero points: 12 of 1.23, clipped 155 of 99, and 6 of 64 in units of ten
    assert made(torch.tensor([1.23, 64.0, 99.0])).tolist() == pytest.approx(
        [0.01 * (0.1 * (12 * 127 - 155 * 64) + 10 * 6 * 10)]
    )


@pytest.mark.parametrize("bias", [True, False])
def test_it_unpacks_to_a_sum_of_layers(bias: bool) -> None:
    made, x = layer(bias=bias), random(2, 5, 13, seed=2)
    model = nn.ModuleDict({"one": made})
    before = made(x)
    unpack(model)
    parts = [one for one in model.modules() if isinstance(one, StaticInt8Linear)]
    assert [one.in_features for one in parts] == [5, 4, 4]
    torch.testing.assert_close(model["one"](x), before, rtol=1e-5, atol=1e-5)


def test_one_group_is_the_static_layer() -> None:
    made, x = layer(groups=1), random(4, 13, seed=2)
    other = StaticInt8Linear(13, 6)
    other.weight, other.weight_scale, other.bias = made.codes(), made.weight_scale, made.bias
    other.input_scale, other.input_zero = made.input_scale[0], made.input_zero[0]
    torch.testing.assert_close(made(x), other(x), rtol=1e-5, atol=1e-5)


def test_a_large_channel_costs_the_others_nothing() -> None:
    made, x, weight = layer(bias=False), random(5, 13, seed=2), random(6, 13)
    x[:, 2::3] *= 100  # of the third group
    rest = x.clone()
    rest[:, 2::3] = 0
    assert (made(rest) - F.linear(rest, weight)).abs().max() < 0.15


def test_cuts_copies_and_empty_skeletons() -> None:
    made, x = layer(), random(4, 13, seed=2)
    rows, columns = torch.tensor([5, 1]), torch.tensor([12, 9, 7])
    cut = copy.deepcopy(made)
    cut.keep(out=rows, in_=columns)
    assert cut.input_group.tolist() == [0, 0, 1]
    rest = torch.zeros_like(x)
    rest[:, columns] = x[:, columns]
    torch.testing.assert_close(cut(x[:, columns]), made(rest)[:, rows], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cut.unpacked()(x[:, columns]), cut(x[:, columns]), rtol=1e-5, atol=1e-5)
    empty = InputGroupsLinear(13, 6, groups=3, device="meta")
    empty.load_state_dict(made.state_dict(), assign=True)
    assert torch.equal(empty(x), made(x))
    made.input_group[0] = 3
    with pytest.raises(ValueError, match="a column is of group 3, of 3 groups"):
        copy.deepcopy(made)(x)
