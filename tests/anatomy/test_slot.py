"""Slots over every layout: values by hand, and cuts of fused projections equal to cuts of the unfused weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lissom.anatomy import Slot, dissect, is_linear, keep_together
from lissom.errors import LissomError
from lissom.nn import Int8Linear, KroneckerLinear, LoraLinear, LowRankLinear
from lissom.nn.palette import PaletteLinear
from tests import tiny

HEADS, SIZE, HIDDEN = 4, 8, 32


class Holder(nn.Module):
    """A model of one map."""

    def __init__(self, child: nn.Module) -> None:
        super().__init__()
        self.map = child


def conv(outputs: int, inputs: int) -> Conv1D:
    made = Conv1D(outputs, inputs)
    nn.init.normal_(made.bias)
    return made


MAPS = {
    "plain": lambda: nn.Linear(5, 4),
    "without bias": lambda: nn.Linear(5, 4, bias=False),
    "transposed": lambda: conv(4, 5),
    "low rank": lambda: LowRankLinear(5, 4, 3),
    "product": lambda: KroneckerLinear((2, 1), (2, 5)),
    "with a delta": lambda: LoraLinear(conv(4, 5), 5, 4, 3),
    "int8": lambda: Int8Linear.from_weight(torch.randn(4, 5), torch.randn(4)),
}


@pytest.mark.parametrize("name", MAPS)
def test_one_slot_over_every_layout(name: str) -> None:
    torch.manual_seed(0)
    model = Holder(MAPS[name]())
    slot = Slot(model, "map")
    assert is_linear(slot.module)
    assert (slot.out_features, slot.in_features, slot.fused) == (4, 5, False)
    assert slot.weight.shape == (4, 5)
    assert repr(slot) == "Slot('map', 4x5)"
    weight, bias = slot.weight.detach().clone(), slot.bias
    assert (bias is None) == (name == "without bias")
    x = torch.randn(2, 3, 5)
    exact = name != "int8"  # it quantizes its input as well
    torch.testing.assert_close(
        slot.module(x), nn.functional.linear(x, weight, bias), **({} if exact else {"atol": 0.1, "rtol": 0.1})
    )

    if name == "product":  # tests/methods/low_rank says which rows can go
        return
    slot.keep(out=[0, 2, 3], in_=[1, 4])
    assert (slot.out_features, slot.in_features) == (3, 2)
    torch.testing.assert_close(slot.weight, weight[[0, 2, 3]][:, [1, 4]])
    if bias is not None:
        torch.testing.assert_close(slot.bias, bias[[0, 2, 3]])
    assert slot.module(x[..., :2]).shape == (2, 3, 3)


@pytest.mark.parametrize("name", MAPS)
def test_watching_and_stopping(name: str) -> None:
    model = Holder(MAPS[name]())
    seen: list[tuple[Tensor, Tensor]] = []
    handle = Slot(model, "map").watch(lambda x, y: seen.append((x, y)))
    x = torch.randn(2, 5)
    y = model.map(x)
    handle.remove()
    model.map(x)
    assert len(seen) == 1
    assert torch.equal(seen[0][0], x)
    assert torch.equal(seen[0][1], y)


def test_a_fused_slot_sees_only_its_part() -> None:
    model = Holder(nn.Linear(2, 6))
    slot = Slot(model, "map", rows=torch.tensor([1, 4]))
    assert slot.fused
    seen: list[Tensor] = []
    slot.watch(lambda _, y: seen.append(y))
    y = model.map(torch.randn(3, 2))
    assert torch.equal(seen[0], y[:, [1, 4]])
    assert torch.equal(slot.weight, model.map.weight[[1, 4]])
    assert torch.equal(slot.bias, model.map.bias[[1, 4]])


def test_the_weight_of_a_whole_slot_is_the_model_s() -> None:
    for made in (nn.Linear(5, 4), conv(4, 5)):
        slot = Slot(Holder(made), "map")
        with torch.no_grad():
            slot.weight[1, 2] = 7
        assert (made.weight == 7).sum() == 1


def test_swapping() -> None:
    model = Holder(nn.Linear(5, 4))
    other = LowRankLinear(5, 4, 2)
    slot = Slot(model, "map")
    slot.swap(other)
    assert slot.module is model.map is other


def test_nothing_else_is_a_linear_map() -> None:
    assert not any(map(is_linear, (nn.Embedding(2, 2), nn.LayerNorm(2), nn.Conv1d(2, 2, 1), nn.Identity())))


def parts(variant: str, weight: Tensor) -> list[Tensor]:
    """q, k, v of a fused (out, ...) tensor, unfused as the family's forward does it."""
    if variant == "gpt_neox":  # a head's q, k and v lie together
        return [one.flatten(0, 1) for one in weight.unflatten(0, (HEADS, 3, SIZE)).unbind(1)]
    return list(weight.chunk(3))


def fuse(variant: str, tensors: list[Tensor], heads: int) -> Tensor:
    if variant == "gpt_neox":
        return torch.stack([one.unflatten(0, (heads, SIZE)) for one in tensors], 1).flatten(0, 2)
    return torch.cat(tensors)


def stored(module: nn.Module) -> Tensor:
    weight = module.weight.detach()
    return weight.t() if isinstance(module, Conv1D) else weight


FUSED = ["gpt2", "gpt_neox", "modernbert"]


@settings(max_examples=40, deadline=None)
@given(variant=st.sampled_from(FUSED), kept=st.sets(st.integers(0, HEADS - 1), min_size=1), seed=st.integers(0, 9))
def test_cutting_heads_of_a_fused_projection(variant: str, kept: set[int], seed: int) -> None:
    changes = {"attention_bias": True} if variant == "modernbert" else {}
    attention = dissect(tiny.model(variant, seed=seed, **changes)).stacks[0].blocks[1].attention
    module = attention.q.module
    slots = [attention.q, attention.k, attention.v]
    rows = [head * SIZE + i for head in sorted(kept) for i in range(SIZE)]
    for slot, unfused in zip(slots, parts(variant, stored(module)), strict=True):
        assert torch.equal(slot.weight, unfused)
    expected = [
        fuse(variant, [one.index_select(0, torch.tensor(rows)) for one in parts(variant, tensor)], len(kept))
        for tensor in (stored(module).clone(), module.bias.detach().clone())
    ]
    keep_together([(slot, rows, None) for slot in slots])
    assert torch.equal(stored(module), expected[0])
    assert torch.equal(module.bias, expected[1])
    assert stored(module).shape == (3 * SIZE * len(kept), HIDDEN)


@settings(max_examples=20, deadline=None)
@given(kept=st.sets(st.integers(0, 47), min_size=1))
def test_cutting_neurons_of_a_fused_gate(kept: set[int]) -> None:
    """ModernBERT: the first half of `Wi` goes through the activation, the second multiplies."""
    ffn = dissect(tiny.model("modernbert", mlp_bias=True)).stacks[0].blocks[0].ffn
    rows = sorted(kept)
    whole, bias = ffn.up.module.weight.detach().clone(), ffn.up.module.bias.detach().clone()
    gate, up = whole.chunk(2)
    assert ffn.gate is not None
    assert torch.equal(ffn.gate.weight, gate)
    assert torch.equal(ffn.up.weight, up)
    keep_together([(ffn.up, rows, None), (ffn.gate, rows, None)])
    assert torch.equal(ffn.up.module.weight, torch.cat([gate[rows], up[rows]]))
    assert torch.equal(ffn.up.module.bias, bias[[*rows, *(48 + i for i in rows)]])


def test_columns_that_are_stored_as_vectors_are_not_cut_apart() -> None:
    slot = Slot(Holder(PaletteLinear(8, 3, bits=2, vector=4)), "map")
    slot.keep(in_=[4, 5, 6, 7])
    said = "LSM-451 map: columns that are stored as vectors of 4 cannot be cut apart. Cut the model first"
    with pytest.raises(LissomError, match=said):
        slot.keep(in_=[0, 2])
