"""Groups by hand, and what more bits and smaller groups must bring."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lissom.nn.grouped import GroupedLinear, grid, restore, round_to
from lissom.nn.palette import pack_indices


def test_grid_and_codes_by_hand():
    weight = torch.tensor([[-1.0, 0.0, 2.0, 0.25, 0.5]])  # groups (-1, 0, 2) and (0.25, 0.5), two bits
    scale, zero = grid(weight, bits=2, group=3)
    assert scale[0, 0].item() == 1.0
    assert scale[0, 1].item() == pytest.approx(0.5 / 3, rel=1e-3)
    assert zero.tolist() == [[1, 0]]
    codes = round_to(weight, scale, zero, bits=2, group=3)
    assert codes.tolist() == [[0, 1, 3, 2, 3]]  # 0.25 / 0.1667 = 1.5, rounded half to even
    assert restore(codes, scale, zero, group=3)[0].tolist() == pytest.approx([-1, 0, 2, 0.3333, 0.5], rel=1e-3)


def test_symmetric_by_hand():
    scale, zero = grid(torch.tensor([[-7.0, 3.5]]), bits=4, group=2, symmetric=True)
    assert (scale.item(), zero.item()) == (1.0, 8.0)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_layer_computes_what_its_codes_stand_for(bits):
    weight, x = torch.randn(6, 20), torch.randn(3, 20)
    layer = GroupedLinear(20, 6, bits=bits, group=8)
    scale, zero = grid(weight, bits=bits, group=8)
    codes = round_to(weight, scale, zero, bits=bits, group=8)
    layer.weight, layer.weight_scale, layer.weight_zero = pack_indices(codes, bits), scale.half(), zero.half()
    assert layer.weight.shape == (6, -(-20 * bits // 8))
    assert torch.equal(layer.codes(), codes)
    assert torch.equal(layer.dense(), restore(codes, scale, zero, group=8))  # float16 held the grid exactly
    torch.testing.assert_close(layer(x), x @ layer.dense().T)


@given(st.integers(0, 2**31), st.sampled_from([2, 3, 4, 8]), st.sampled_from([8, 16, 33]))
def test_no_weight_is_further_off_than_half_a_step(seed, bits, group):
    weight = torch.randn(4, 33, generator=torch.Generator().manual_seed(seed))
    scale, zero = grid(weight, bits=bits, group=group)
    codes = round_to(weight, scale, zero, bits=bits, group=group)
    error = (restore(codes, scale, zero, group=group) - weight).abs()
    half = 0.5 + (2**bits - 1) * 2.0**-11 + 1e-3  # and what float16 takes off the scale, at the far end of the grid
    assert bool((error <= half * scale.repeat_interleave(group, 1)[:, :33]).all())
    assert int(codes.min()) >= 0
    assert int(codes.max()) < 2**bits


def test_more_bits_and_smaller_groups_bring_it_nearer():
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(0))

    def error(bits, group):
        scale, zero = grid(weight, bits=bits, group=group)
        codes = round_to(weight, scale, zero, bits=bits, group=group)
        return (restore(codes, scale, zero, group=group) - weight).square().mean().item()

    assert error(2, 32) > error(3, 32) > error(4, 32) > error(8, 32)
    assert error(4, 128) > error(4, 64) > error(4, 16)


def test_three_bits_by_hand():
    layer = GroupedLinear(4, 1, bits=3, group=2, bias=False)
    layer.weight = torch.tensor([[209, 8]], dtype=torch.uint8).view(torch.int8)  # 1 + 2·8 + 3·64 + 4·512
    layer.weight_scale, layer.weight_zero = torch.tensor([[0.5, 2.0]]).half(), torch.tensor([[1.0, 3.5]]).half()
    assert layer.codes().tolist() == [[1, 2, 3, 4]]
    assert layer.dense().tolist() == [[0.0, 0.5, -1.0, 1.0]]


def test_cutting_columns_keeps_the_weights():
    weight = torch.randn(4, 10)
    layer = GroupedLinear(10, 4, bits=4, group=4)
    scale, zero = grid(weight, bits=4, group=4)
    layer.weight = pack_indices(round_to(weight, scale, zero, bits=4, group=4), 4)
    layer.weight_scale, layer.weight_zero = scale.half(), zero.half()
    before, columns, rows = layer.dense(), torch.tensor([9, 0, 5]), torch.tensor([2, 0])
    layer.keep(out=rows, in_=columns)
    assert torch.equal(layer.dense(), before[rows][:, columns])


def test_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="the weight holds NaN or infinity and cannot be quantized"):
        grid(torch.tensor([[1.0, torch.inf]]), bits=4, group=2)
