"""Layers of indices into a table: bytes by hand, the same numbers as float layers, and everything a module survives."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lissom.nn.low_bit import unpack, weights_held
from lissom.nn.palette import BITS, PaletteEmbedding, PaletteLinear, pack_indices, unpack_indices

torch.set_num_threads(1)

BY_HAND = [
    (2, [0, 1, 2, 3, 1], [0b11_10_01_00, 0b01]),
    (3, [1, 2, 3, 4], [209, 8]),
    (3, [7, 0, 7, 0, 7, 0, 7, 0, 5], [0b11_000_111, 0b0_111_000_1, 0b000_111_00, 0b101]),
    (4, [15, 0, 9], [0x0F, 0x09]),
]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def indices(bits: int, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 2**bits, (rows, columns), generator=torch.Generator().manual_seed(seed))


def fill(made: nn.Module, bits: int, rows: int, columns: int) -> None:
    made.weight = pack_indices(indices(bits, rows, columns), bits)
    made.weight_table = random(2**bits).sort().values
    made.weight_positions = torch.tensor([0, columns + 2, rows * columns - 1], dtype=torch.int32)
    made.weight_outliers = torch.tensor([9.0, -8.0, 7.0])


def layer(bits: int = 3, rows: int = 6, columns: int = 13, bias: bool = True) -> PaletteLinear:
    made = PaletteLinear(columns, rows, bits=bits, outliers=3, bias=bias)
    fill(made, bits, rows, columns)
    made.bias = random(rows, seed=1) if bias else None
    return made


def table(bits: int = 3) -> PaletteEmbedding:
    made = PaletteEmbedding(7, 12, bits=bits, outliers=3, padding_idx=3)
    fill(made, bits, 7, 12)
    return made


@pytest.mark.parametrize(("bits", "row", "expected"), BY_HAND)
def test_bytes_by_hand(bits: int, row: list[int], expected: list[int]) -> None:
    packed = pack_indices(torch.tensor([row]), bits)
    assert packed.dtype == torch.int8
    assert packed.view(torch.uint8).tolist() == [expected]
    assert unpack_indices(packed, len(row), bits).tolist() == [row]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("columns", [1, 7, 8, 9, 64])
def test_packing_and_back(bits: int, columns: int) -> None:
    made = indices(bits, 5, columns)
    packed = pack_indices(made, bits)
    assert packed.shape == (5, -(-columns * bits // 8))
    assert torch.equal(unpack_indices(packed, columns, bits), made)


def test_the_weight_by_hand() -> None:
    made = PaletteLinear(3, 2, bits=2, outliers=2, bias=False)
    made.weight = pack_indices(torch.tensor([[0, 1, 2], [3, 0, 1]]), 2)
    made.weight_table = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    made.weight_positions, made.weight_outliers = torch.tensor([4, -1], dtype=torch.int32), torch.tensor([50.0, 99.0])
    assert made.dense().tolist() == [[-1, 0, 1], [2, 50, 0]]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_computes_in_float(bits: int, dtype: torch.dtype) -> None:
    made, x = layer(bits).to(dtype), random(2, 3, 13).to(dtype)
    assert made.weight_table.dtype == made.weight_outliers.dtype == made.bias.dtype == torch.float32
    expected = F.linear(x, made.dense().to(dtype), made.bias.to(dtype))
    assert torch.equal(made(x), expected)
    plain = made.unpacked()
    assert type(plain) is nn.Linear
    assert torch.equal(plain(x), expected)
    assert made(x[:0]).shape == (0, 3, 6)


def test_cuts_move_outliers_and_never_change_their_number() -> None:
    made, x = layer(), random(4, 13)
    made(x)
    whole = made.dense()
    rows, columns = torch.tensor([5, 1]), torch.tensor([12, 2, 7, 3])
    made.keep(out=rows, in_=columns)
    assert (made.in_features, made.out_features, tuple(made.weight.shape)) == (4, 2, (2, 2))
    assert made.weight_positions.tolist() == [-1, 5, 0]  # of (0, 0), (1, 2), (5, 12)
    assert torch.equal(made.dense(), whole[rows][:, columns])
    torch.testing.assert_close(made(x[:, columns]), F.linear(x[:, columns], made.dense(), made.bias))


def test_state_copies_and_empty_skeleton() -> None:
    made, x = layer(), random(2, 13)
    expected = made(x)
    kinds = {"weight": torch.int8, "weight_positions": torch.int32}
    names = ["weight", "bias", "weight_table", "weight_outliers", "weight_positions"]
    assert {name: value.dtype for name, value in made.state_dict().items()} == {
        name: kinds.get(name, torch.float32) for name in names
    }
    empty = PaletteLinear(13, 6, bits=3, outliers=3, device="meta")
    assert empty.dense().shape == (6, 13)
    empty.load_state_dict(made.state_dict(), assign=True)
    assert torch.equal(empty(x), expected)
    assert torch.equal(copy.deepcopy(made)(x), expected)
    assert not list(made.parameters())
    with pytest.raises(RuntimeError, match="have no gradient"):
        made(random(2, 13).requires_grad_()).sum().backward()


@pytest.mark.parametrize("bits", BITS)
def test_a_table_decodes_the_rows_that_are_asked_for(bits: int) -> None:
    made = table(bits)
    for ids in (torch.tensor([[1, 6], [0, 1]]), torch.tensor([3]), torch.arange(7), torch.zeros(2, 0).long()):
        assert torch.equal(made(ids), made.dense()[ids])
    ids = torch.tensor([[1, 6], [0, 1]])
    assert torch.equal(made.linear().dense(), made.dense())
    assert torch.equal(made.unpacked()(ids), made(ids))
    assert copy.deepcopy(made).to(torch.bfloat16)(ids).dtype == torch.bfloat16
    dense = made.dense()
    made.keep(torch.tensor([6, 3]))
    assert torch.equal(made.dense(), dense[[6, 3]])
    assert made.padding_idx == 1


@pytest.mark.parametrize("wrong", [-2, 78, 2**31 - 1])
def test_an_outlier_outside_is_refused_wherever_it_is_used(wrong: int) -> None:
    made = layer()
    made.weight_positions[1] = wrong
    with pytest.raises(ValueError, match=f"an outlier stands at position {wrong} of a matrix of 78 weights"):
        made(random(2, 13))
    lookup = table()
    lookup.weight_positions[1] = wrong if wrong != 78 else 84
    with pytest.raises(ValueError, match="of a matrix of 84 weights"):
        lookup(torch.tensor([0]))


def test_weights_are_counted_and_positions_are_not() -> None:
    model = nn.ModuleDict({"one": layer(), "table": table()})
    held = weights_held(model)
    assert held == {
        id(model["one"].weight): 6 * 13,
        id(model["one"].weight_positions): 0,
        id(model["table"].weight): 7 * 12,
        id(model["table"].weight_positions): 0,
    }
    unpack(model)
    assert (type(model["one"]), type(model["table"])) == (nn.Linear, nn.Embedding)


def test_vectors_by_hand() -> None:
    made = PaletteLinear(4, 2, bits=8, vector=2, outliers=1, bias=False)
    made.weight = pack_indices(torch.tensor([[255, 0], [1, 255]]), 8)
    assert made.weight.view(torch.uint8).tolist() == [[255, 0], [1, 255]]
    made.weight_table = torch.zeros(256, 2)
    made.weight_table[[0, 1, 255]] = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    made.weight_positions, made.weight_outliers = torch.tensor([6], dtype=torch.int32), torch.tensor([9.0])
    assert made.dense().tolist() == [[5, 6, 1, 2], [3, 4, 9, 6]]
    x = random(3, 4)
    torch.testing.assert_close(made(x), F.linear(x, made.dense()))
    made.keep(out=torch.tensor([1]), in_=torch.tensor([2, 3, 0, 1]))
    assert made.dense().tolist() == [[9, 6, 3, 4]]
    with pytest.raises(ValueError, match="columns that are stored as vectors of 2 cannot be cut apart"):
        made.keep(in_=torch.tensor([0, 2]))


def test_a_table_of_vectors() -> None:
    made = PaletteEmbedding(7, 12, bits=8, vector=4)
    made.weight, made.weight_table = pack_indices(indices(8, 7, 3), 8), random(256, 4)
    ids = torch.tensor([[1, 6], [0, 1]])
    assert torch.equal(made(ids), made.dense()[ids])
    assert torch.equal(made.linear().dense(), made.dense())
    assert weights_held(nn.ModuleDict({"one": made}))[id(made.weight)] == 7 * 12
