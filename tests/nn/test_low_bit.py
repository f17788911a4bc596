"""Low-bit layers: bytes by hand, the same numbers as int8 and float layers, and everything a module must survive."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lissom.nn import Int8Embedding, Int8Linear, LowBitEmbedding, LowBitLinear
from lissom.nn.low_bit import BITS, pack_codes, unpack, unpack_codes, weights_held

torch.set_num_threads(1)
LARGEST = {1: 1, 2: 1, 4: 7, 8: 127}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def codes(bits: int, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if bits == 1:
        return (2 * torch.randint(0, 2, (rows, columns), generator=generator) - 1).to(torch.int8)
    top = LARGEST[bits]
    return torch.randint(-top, top + 1, (rows, columns), generator=generator).to(torch.int8)


def layer(bits: int, rounds: bool = True, rows: int = 6, columns: int = 13, bias: bool = True) -> LowBitLinear:
    made = LowBitLinear(columns, rows, bits=bits, rounds=rounds, bias=bias)
    made.weight, made.weight_scale = pack_codes(codes(bits, rows, columns), bits), random(rows).abs() / 10
    made.bias = random(rows, seed=1) if bias else None
    return made


BY_HAND = [
    (1, [-1, 1, 1, -1, -1, -1, -1, 1, 1], [0b10000110, 0b1]),
    (2, [-1, 0, 1, 1, 0], [0b11_11_10_01, 0b10]),
    (4, [-7, 7, 0], [0xF1, 0x08]),
    (8, [-127, 127], [1, 255]),
]


@pytest.mark.parametrize(("bits", "row", "expected"), BY_HAND)
def test_bytes_by_hand(bits: int, row: list[int], expected: list[int]) -> None:
    packed = pack_codes(torch.tensor([row]), bits)
    assert packed.dtype == torch.int8
    assert packed.view(torch.uint8).tolist() == [expected]
    assert unpack_codes(packed, len(row), bits).tolist() == [row]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("columns", [1, 7, 8, 9, 64])
def test_packing_and_back(bits: int, columns: int) -> None:
    made = codes(bits, 5, columns)
    packed = pack_codes(made, bits)
    assert packed.shape == (5, -(-columns * bits // 8))
    assert torch.equal(unpack_codes(packed, columns, bits), made)
    assert pack_codes(made.to("meta"), bits).shape == packed.shape
    assert unpack_codes(packed.to("meta"), columns, bits).shape == made.shape


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("bias", [True, False])
def test_it_computes_what_int8_computes(bits: int, bias: bool) -> None:
    low, x = layer(bits, bias=bias), random(2, 3, 13)
    same = Int8Linear(13, 6, bias=bias)
    same.weight, same.weight_scale, same.bias = low.codes(), low.weight_scale, low.bias
    assert torch.equal(low(x), same(x))
    assert torch.equal(low.unpacked()(x), same(x))
    assert (low.in_features, low.out_features) == (13, 6)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_rounding_it_computes_in_float(bits: int, dtype: torch.dtype) -> None:
    low, x = layer(bits, rounds=False).to(dtype), random(2, 3, 13).to(dtype)
    expected = F.linear(x, low.dense().to(dtype), low.bias.to(dtype))
    assert low.bias.dtype == low.weight_scale.dtype == torch.float32
    assert torch.equal(low(x), expected)
    plain = low.unpacked()
    assert type(plain) is nn.Linear
    assert torch.equal(plain(x), expected)


def test_new_weights_and_cuts_are_noticed() -> None:
    for rounds in (True, False):
        low, other, x = layer(2, rounds), layer(2, rounds), random(3, 13)
        low(x)
        other.weight = pack_codes(codes(2, 6, 13, seed=5), 2)
        low.load_state_dict(other.state_dict())
        assert torch.equal(low(x), other(x))
        rows, columns = torch.tensor([4, 0]), torch.tensor([12, 1, 2, 7, 3])
        dense = low.dense()
        low.keep(out=rows, in_=columns)
        assert (low.in_features, low.out_features, tuple(low.weight.shape)) == (5, 2, (2, 2))
        assert torch.equal(low.dense(), dense[rows][:, columns])
        assert low(x[:, columns]).shape == (3, 2)


def test_state_copies_and_empty_skeleton() -> None:
    low, x = layer(4), random(2, 13)
    expected = low(x)
    kinds = {"weight": torch.int8, "weight_scale": torch.float32, "bias": torch.float32}
    assert {name: value.dtype for name, value in low.state_dict().items()} == kinds
    empty = LowBitLinear(13, 6, bits=4, device="meta")
    empty.load_state_dict(low.state_dict(), assign=True)
    assert torch.equal(empty(x), expected)
    assert torch.equal(copy.deepcopy(low)(x), expected)
    assert not list(low.parameters())


def test_backward_is_refused() -> None:
    for rounds in (True, False):
        y = layer(2, rounds)(random(2, 13).requires_grad_())
        with pytest.raises(RuntimeError, match="have no gradient"):
            y.sum().backward()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_table_unpacks_the_rows_that_are_asked_for(bits: int) -> None:
    table = LowBitEmbedding(7, 12, bits=bits, padding_idx=3)
    table.weight, table.weight_scale = pack_codes(codes(bits, 7, 12), bits), random(7).abs()
    ids = torch.tensor([[1, 6], [0, 1]])
    assert torch.equal(table(ids), table.dense()[ids])
    assert (table.num_embeddings, table.embedding_dim) == (7, 12)
    assert type(table.unpacked()) is Int8Embedding
    assert torch.equal(table.unpacked()(ids), table(ids))
    assert torch.equal(table.linear().dense(), table.dense())
    assert table.to(torch.bfloat16)(ids).dtype == torch.bfloat16
    dense = table.dense()
    table.keep(torch.tensor([5, 3]))
    assert torch.equal(table.dense(), dense[[5, 3]])
    assert table.padding_idx == 1


def test_weights_are_counted_and_unpacked_once() -> None:
    one, other = layer(1), layer(1)
    other.weight = one.weight
    model = nn.ModuleDict({"one": one, "same": one, "shared": other, "table": LowBitEmbedding(7, 12, bits=2)})
    assert weights_held(model) == {id(one.weight): 6 * 13, id(model["table"].weight): 7 * 12}
    unpack(model)
    assert type(model["one"]) is Int8Linear
    assert model["one"] is model["same"]
    assert type(model["table"]) is Int8Embedding
    assert weights_held(model) == {}
