"""Every family's record, on every layout: all weights are reached, and what is reached is what the forward uses."""

from __future__ import annotations

import copy
import types

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from lissom.anatomy import FAMILIES, Anatomy, Attention, Block, Slot, Stack, dissect
from lissom.anatomy.dissect import family_of
from lissom.edits import Editor, KeepHeads, KeepLayers, KeepNeurons
from lissom.errors import UnsupportedFamily
from tests import tiny
from tests.contracts.cases import BARE, CASES, Case

Seen = dict[tuple[str, int], list[tuple[Tensor, Tensor]]]


def key(slot: Slot) -> tuple[str, int]:
    return slot.path, 0 if slot.rows is None else int(slot.rows[0])


def dense(module: nn.Module) -> Tensor:
    """The weight as (out, in), from the module's own layout: `Conv1D` stores it transposed."""
    return module.weight.t() if type(module).__name__ == "Conv1D" else module.weight


def run(model: PreTrainedModel, inputs: dict[str, Tensor], slots: list[Slot]) -> tuple[Seen, Tensor]:
    """What goes in and out of each slot at each use, and the model's answer."""
    seen: Seen = {key(slot): [] for slot in slots}
    handles = [slot.watch(lambda x, y, at=key(slot): seen[at].append((x, y.clone()))) for slot in slots]  # noqa: B008
    answer = tiny.outputs(model, inputs)
    for handle in handles:
        handle.remove()
    return seen, answer


def pairs(case: Case) -> list[tuple[Stack, bool]]:
    """Each stack with its self-attention, and with its attention to an encoder if it has one."""
    stacks = dissect(case.model()).stacks
    return [(stack, cross) for stack in stacks for cross in (False, True) if not cross or stack.blocks[0].cross]


def attention_of(block: Block, cross: bool) -> Attention:
    found = block.cross if cross else block.attention
    assert found is not None
    return found


def test_every_supported_type_has_a_tiny_model() -> None:
    assert {model_type for model_type, _ in tiny.CONFIGS.values()} == set(FAMILIES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_matrix_is_reached_once(case: Case) -> None:
    model = case.model()
    anatomy = dissect(model)
    reached = {slot.path for slot in anatomy.linears()} | {slot.path for slot in anatomy.head} | {*anatomy.embeddings}
    ignored = tuple(ending for ending, reason in family_of(model).ignored if reason)
    matrices = {
        path
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.dim() == 2 and not (path := name.rpartition(".")[0]).endswith(ignored)
    }
    assert matrices == reached

    rows: dict[str, list[int]] = {}
    for slot in anatomy.slots():
        numbers = range(slot.out_features) if slot.rows is None else slot.rows.tolist()
        rows.setdefault(slot.path, []).extend(numbers)
    for path, numbers in rows.items():
        module = model.get_submodule(path)
        assert sorted(numbers) == list(range(dense(module).shape[0])), f"{path} is not covered row by row"


@torch.inference_mode()
def check_products(anatomy: Anatomy, seen: Seen) -> None:
    """Every slot that ran answered with x W^T + b."""
    slots = list(anatomy.slots())
    for slot in [*slots, *anatomy.head]:
        assert slot.weight.shape == (slot.out_features, slot.in_features)
        assert seen[key(slot)] or slot not in slots, f"{slot} is never used"
        for x, y in seen[key(slot)]:
            expected = nn.functional.linear(x, slot.weight, slot.bias)
            torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_forward_computes_what_the_slots_say(case: Case) -> None:
    model = case.model()
    anatomy = dissect(model)
    seen, _ = run(model, case.inputs(model), [*anatomy.slots(), *anatomy.head])
    check_products(anatomy, seen)

    names = ("hidden_act", "hidden_activation", "activation", "activation_function", "dense_act_fn")
    activation = ACT2FN[next(getattr(model.config, name) for name in names if hasattr(model.config, name))]
    for stack in anatomy.stacks:
        for block in stack.blocks:
            ffn = block.ffn
            up, into = seen[key(ffn.up)][0][1], seen[key(ffn.down)][0][0]
            middle = activation(up) if ffn.gate is None else activation(seen[key(ffn.gate)][0][1]) * up
            torch.testing.assert_close(into, middle, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("case", BARE, ids=str)
def test_a_row_of_a_slot_moves_its_output_and_no_other(case: Case) -> None:
    model = case.model()
    inputs = case.inputs(model)
    slots = list(dissect(model).slots())
    before, answer = run(model, inputs, slots)
    for slot in slots:
        row = slot.out_features // 2
        whole = dense(slot.module)
        number = row if slot.rows is None else int(slot.rows[row])
        kept = whole.detach()[number].clone()
        with torch.no_grad():
            whole[number] += 1
        after, changed = run(model, inputs, slots)
        with torch.no_grad():
            whole[number] = kept
        assert not torch.equal(answer, changed), f"{slot} does not matter"
        for other in (one for one in slots if one.path == slot.path):
            moved = (before[key(other)][0][1] - after[key(other)][0][1]).abs().flatten(0, -2).amax(0)
            assert moved.nonzero().flatten().tolist() == ([row] if other is slot else [])


@pytest.mark.parametrize("case", BARE, ids=str)
def test_a_head_of_v_feeds_the_same_columns_of_o(case: Case) -> None:
    for stack, cross in pairs(case):
        model = case.model()
        block = dissect(model).stack(stack.name).blocks[0]
        attention = attention_of(block, cross)
        group, size, head = attention.heads // attention.kv_heads, attention.head_dim, attention.kv_heads - 1
        numbers = torch.arange(attention.v.out_features) if attention.v.rows is None else attention.v.rows
        gone = numbers[head * size : (head + 1) * size]
        module = attention.v.module
        with torch.no_grad():
            dense(module)[gone] = 0
            if module.bias is not None:
                module.bias[gone] = 0
        seen, _ = run(model, case.inputs(model), [attention.o])
        used = seen[key(attention.o)][0][0].abs().flatten(0, -2).amax(0) > 0
        start, stop = head * group * size, (head + 1) * group * size
        assert used.logical_not().nonzero().flatten().tolist() == list(range(start, stop))


def uneven(count: int, blocks: int, tied: bool) -> tuple[tuple[int, ...], ...]:
    """For each block other units of `count` to keep, and other numbers of them."""
    choices = [
        tuple(i for i in range(count) if i != 1),
        tuple(i for i in range(count) if i % 2),
        tuple(range(count)),
    ]
    return tuple(choices[0 if tied else i % 3] for i in range(blocks))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_removing_heads_equals_zeroing_their_output(case: Case) -> None:
    for stack, cross in pairs(case):
        first = attention_of(stack.blocks[0], cross)
        keep = uneven(first.kv_heads, len(stack.blocks), first.tied)
        model, zeroed = case.model(), case.model()
        inputs = case.inputs(model)
        whole = tiny.outputs(model, inputs)
        span = first.head_dim * first.heads // first.kv_heads
        for block, kept in zip(dissect(zeroed).stack(stack.name).blocks, keep, strict=True):
            o = attention_of(block, cross).o
            with torch.no_grad():
                for head in set(range(first.kv_heads)) - set(kept):
                    o.weight[:, head * span : (head + 1) * span] = 0
        expected = tiny.outputs(zeroed, inputs)
        Editor(model).apply(KeepHeads(stack=stack.name, heads=keep, cross=cross))
        torch.testing.assert_close(tiny.outputs(model, inputs), expected, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(expected, whole, atol=1e-4), "the heads did not matter"
        found = [attention_of(block, cross).kv_heads for block in dissect(model).stack(stack.name).blocks]
        assert found == [len(kept) for kept in keep]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_removing_neurons_equals_zeroing_them(case: Case) -> None:
    for stack in dissect(case.model()).stacks:
        keep = uneven(stack.blocks[0].ffn.width, len(stack.blocks), tied=False)
        model, zeroed = case.model(), case.model()
        inputs = case.inputs(model)
        for block, kept in zip(dissect(zeroed).stack(stack.name).blocks, keep, strict=True):
            gone = sorted(set(range(block.ffn.width)) - set(kept))
            with torch.no_grad():
                block.ffn.down.weight[:, gone] = 0
        expected = tiny.outputs(zeroed, inputs)
        Editor(model).apply(KeepNeurons(stack=stack.name, neurons=keep))
        torch.testing.assert_close(tiny.outputs(model, inputs), expected, atol=1e-4, rtol=1e-4)
        assert [block.ffn.width for block in dissect(model).stack(stack.name).blocks] == [len(one) for one in keep]


def skip(module: nn.Module) -> None:
    """Let a block hand on what it gets, in the form in which it answers."""

    def hook(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: object) -> object:
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    module.register_forward_hook(hook, with_kwargs=True)


@pytest.mark.parametrize("case", [case for case in CASES if case.variant != "albert"], ids=str)
def test_removing_layers_equals_passing_them_by(case: Case) -> None:
    for stack in dissect(case.model()).stacks:
        model, passing = case.model(), case.model()
        inputs = case.inputs(model)
        by_number = ("scale_attn_by_inverse_layer_idx", True) in case.changes
        keep = (0, 1) if by_number else tuple(range(1, len(stack.blocks)))
        gone = set(range(len(stack.blocks))) - set(keep)
        for index in gone:
            skip(passing.get_submodule(stack.blocks[index].path))
        Editor(model).apply(KeepLayers(stack=stack.name, keep=keep))
        expected = tiny.outputs(passing, inputs)
        torch.testing.assert_close(tiny.outputs(model, inputs), expected, atol=1e-5, rtol=1e-5)
        assert not torch.equal(expected, tiny.outputs(case.model(), inputs))
        assert len(dissect(model).stack(stack.name).blocks) == getattr(model.config, stack.depth_key) == len(keep)


def test_fewer_repeats() -> None:
    model = tiny.model("albert")
    inputs = tiny.batch(model)
    shorter = tiny.model("albert", num_hidden_layers=2)
    Editor(model).apply(KeepLayers(keep=(0, 2)))
    assert dissect(model).stacks[0].order == (0, 0)
    assert torch.equal(tiny.outputs(model, inputs), tiny.outputs(shorter, inputs))


@pytest.mark.parametrize(
    ("changes", "order"),
    [({"num_hidden_groups": 2, "num_hidden_layers": 5}, (0, 0, 0, 1, 1)), ({"inner_group_num": 2}, (0, 1) * 3)],
)
def test_order_of_shared_blocks(changes: dict[str, int], order: tuple[int, ...]) -> None:
    model = tiny.model("albert", **changes)
    stack = dissect(model).stacks[0]
    ran: list[int] = []
    for block in stack.blocks:
        model.get_submodule(block.path).register_forward_hook(lambda *_, i=block.index: ran.append(i))
    tiny.outputs(model, tiny.batch(model))
    assert tuple(ran) == stack.order == order


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_empty_model_has_the_same_anatomy(case: Case) -> None:
    model = case.model()
    with torch.device("meta"):
        empty = type(model)(copy.deepcopy(model.config))
    full_slots, empty_slots = ([*dissect(one).slots(), *dissect(one).head] for one in (model, empty))
    assert [repr(slot) for slot in empty_slots] == [repr(slot) for slot in full_slots]
    assert dissect(empty).embeddings == dissect(model).embeddings


@pytest.mark.parametrize(
    ("model_type", "remedy"),
    [("modern_bert", 'Did you mean "modernbert"'), ("qwen4", '"qwen3"'), ("xlstm", "Known: albert, ")],
)
def test_an_unknown_family_names_the_nearest(model_type: str, remedy: str) -> None:
    model = nn.Linear(2, 2)
    model.config = types.SimpleNamespace(model_type=model_type)  # type: ignore[assignment]
    with pytest.raises(UnsupportedFamily) as caught:
        dissect(model)
    assert caught.value.code == "LSM-701"
    assert caught.value.cause == f'no anatomy for model_type "{model_type}"'
    assert remedy in caught.value.remedy


def test_a_module_that_is_no_model() -> None:
    with pytest.raises(UnsupportedFamily, match='no anatomy for model_type "Linear"'):
        dissect(nn.Linear(2, 2))
