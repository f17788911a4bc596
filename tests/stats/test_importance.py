"""Importance by hand on maps of three numbers, and against what removing really does."""

import copy

import pytest
import torch
from torch import nn

from lissom.anatomy import Slot, dissect
from lissom.errors import LissomError
from lissom.stats.importance import (
    attention_mass,
    block_influence,
    first_order,
    fisher,
    gate_slopes,
    head_magnitude,
    neuron_magnitude,
    output_norms,
)
from tests import tiny


class Toy(nn.Module):
    """loss = sum over rows and tokens of 2 * x1 + 3 * x2, where x goes into `map`."""

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(2, 1, bias=False)
        self.map.weight.data = torch.tensor([[2.0, 3.0]])

    def forward(self, input_ids: torch.Tensor, x: torch.Tensor):
        return type("Answer", (), {"loss": self.map(x).sum() / len(input_ids)})


def test_first_order_by_hand():
    model = Toy()
    x = torch.tensor([[[1.0, 2.0], [3.0, -1.0]], [[-1.0, 0.0], [0.0, 1.0]]])  # (rows 2, tokens 2, units 2)
    batch = {"input_ids": torch.zeros(2, 2), "x": x}
    # unit 0: |2*1 + 2*3| + |2*-1| = 10; unit 1: |3*2 - 3*1| + |3*1| = 6; means over two texts
    found = first_order(model, {"map": (Slot(model, "map"), 2)}, [batch])
    assert found["map"].tolist() == [5.0, 3.0]


def test_fisher_by_hand():
    model = Toy()
    x = torch.tensor([[[1.0, 2.0], [3.0, -1.0]], [[-1.0, 0.0], [0.0, 1.0]]])
    batch = {"input_ids": torch.zeros(2, 2), "x": x}
    # the sums of `test_first_order_by_hand`, squared: unit 0: 8² + 2², unit 1: 3² + 3²; means over two texts
    assert fisher(model, {"map": (Slot(model, "map"), 2)}, [batch])["map"].tolist() == [34.0, 9.0]


def test_what_units_add_by_hand():
    model = Toy()
    x = torch.tensor([[[1.0, 2.0], [3.0, -1.0]], [[-1.0, 0.0], [7.0, 7.0]]])  # the last token is padding
    batch = {"input_ids": torch.zeros(2, 2), "attention_mask": torch.tensor([[1, 1], [1, 0]]), "x": x}
    model.forward = lambda input_ids, attention_mask, x: model.map(x)
    found = output_norms(model, {"map": (Slot(model, "map"), 2), "whole": (Slot(model, "map"), 1)}, [batch])
    # unit 0: 2², 6², 2² over three tokens; unit 1: 6², 3², 0; both as one: 8², 3², 2²
    assert found["map"].tolist() == pytest.approx([(44 / 3) ** 0.5, 15**0.5])
    assert found["whole"].tolist() == pytest.approx([(77 / 3) ** 0.5])


def test_the_slope_of_a_gate_is_what_a_small_change_of_it_does():
    model = tiny.model("llama", "AutoModelForSequenceClassification")
    batch = {**tiny.batch(model, rows=3), "labels": torch.tensor([0, 1, 2])}
    attention = dissect(model).stacks[0].blocks[1].attention
    (slopes,) = gate_slopes(model, {"o": (attention.o, 2)}, [batch])
    changed, step = copy.deepcopy(model), 1e-3
    with torch.no_grad():
        dissect(changed).stacks[0].blocks[1].attention.o.weight[:, :16] *= 1 + step
        for row in range(3):
            one = {name: value[row : row + 1] for name, value in batch.items()}
            change = (changed(**one).loss - model(**one).loss) / step
            assert slopes["o"][row, 0].item() == pytest.approx(change.item(), rel=0.05, abs=2e-3)


def test_answers_need_no_labels_and_are_drawn_alike():
    model = tiny.model("bert", "AutoModelForSequenceClassification")
    batch, down = tiny.batch(model), dissect(model).stacks[0].blocks[0].ffn.down
    one, other = (next(gate_slopes(model, {"down": (down, 48)}, [batch], answers=True, seed=3)) for _ in range(2))
    assert one["down"].shape == (2, 48)
    assert torch.equal(one["down"], other["down"])
    with pytest.raises(LissomError, match="LSM-821"):
        next(gate_slopes(model, {"down": (down, 48)}, [batch]))


@pytest.mark.parametrize("variant", ["bert", "llama", "bart"])
def test_where_heads_look(variant: str):
    """A head whose queries are zero looks everywhere alike; with grouped queries two of them count."""
    model = tiny.model(variant)
    batch = tiny.batch(model, rows=1, length=8)
    if variant == "bart":
        batch["decoder_input_ids"] = batch["input_ids"]
    anatomy = dissect(model)
    block = anatomy.stacks[0].blocks[0].attention
    size = block.q.out_features // block.kv_heads
    with torch.no_grad():
        block.q.weight[:size] = 0
        if block.q.bias is not None:
            block.q.bias[:size] = 0
    kind = model.config._attn_implementation
    found = attention_mass(model, anatomy.stacks, [batch])
    alike = sum(1 / n for n in range(1, 9)) / 8 if variant == "llama" else 1 / 8
    assert found[block.path][0].item() == pytest.approx(alike, rel=1e-4)
    assert bool((found[block.path][1:] > alike).all())
    assert len(found) == sum(1 + (one.cross is not None) for stack in anatomy.stacks for one in stack.blocks)
    assert model.config._attn_implementation == kind


def test_first_order_stops_at_a_loss_that_is_not_finite():
    model = Toy()
    batch = {"input_ids": torch.zeros(1, 1), "x": torch.tensor([[[torch.nan, 0.0]]])}
    with pytest.raises(LissomError, match=r"LSM-902 the loss is nan on calibration batch 1"):
        first_order(model, {"map": (Slot(model, "map"), 2)}, [batch])


def test_first_order_predicts_the_loss_change_of_a_small_cut():
    model = tiny.model("bert", "AutoModelForSequenceClassification")
    batch = {**tiny.batch(model, rows=1), "labels": torch.tensor([1])}
    ffn = dissect(model).stacks[0].blocks[0].ffn
    score = first_order(model, {"ffn": (ffn.down, ffn.width)}, [batch])["ffn"]
    shrunk, step, unit = copy.deepcopy(model), 1e-3, int(score.argmax())
    with torch.no_grad():
        dissect(shrunk).stacks[0].blocks[0].ffn.down.weight[:, unit] *= 1 - step
        change = (shrunk(**batch).loss - model(**batch).loss).abs() / step
    assert change.item() == pytest.approx(score[unit].item(), rel=0.05)


def test_magnitude_by_hand():
    model = tiny.model("bert")
    block = dissect(model).stacks[0].blocks[0]
    with torch.no_grad():
        for slot in block.slots():
            slot.weight.zero_()
        block.ffn.up.weight[2, 0], block.ffn.down.weight[5, 2] = 3.0, 4.0
        block.attention.q.weight[8, 0], block.attention.o.weight[0, 15] = 6.0, 8.0  # rows 8 to 15 are head 1
    assert neuron_magnitude(block.ffn).nonzero().tolist() == [[2]]
    assert neuron_magnitude(block.ffn)[2].item() == pytest.approx(5.0)
    assert head_magnitude(block.attention).tolist() == pytest.approx([0.0, 10.0, 0.0, 0.0])


def test_a_layer_that_changes_nothing_has_no_influence():
    model = tiny.model("bert")
    stack = dissect(model).stacks[0]
    model.encoder.layer[1] = Passing()
    influence = block_influence(model, stack, [tiny.batch(model)])
    assert influence[1].item() == pytest.approx(0.0, abs=1e-6)
    assert influence[0] > 0.01


class Passing(nn.Module):
    def forward(self, hidden: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        return hidden


def test_a_layer_that_runs_several_times_counts_as_one_part():
    model = tiny.model("albert", "AutoModelForSequenceClassification")
    attention = dissect(model).stacks[0].blocks[0].attention
    batch = tiny.batch(model) | {"labels": torch.tensor([0, 1])}
    passes = []
    handle = attention.o.module.register_forward_pre_hook(lambda _, args: passes.append(args[0]))
    gradients = torch.autograd.grad(model(**batch).loss, passes)
    handle.remove()
    shares = sum((x * g).reshape(2, -1, 4, 8).sum(dim=(1, 3)) for x, g in zip(passes, gradients, strict=True))
    found = first_order(model, {"heads": (attention.o, attention.kv_heads)}, [batch])["heads"]
    assert torch.allclose(found, shares.abs().sum(dim=0), atol=1e-5)
