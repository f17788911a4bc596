"""Heads and neurons as units that stay or go: where they are, what they cost, and the removal of empty ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from lissom import edits
from lissom.anatomy import Anatomy, Attention, Ffn, Slot, Stack, is_transposed, stored_maps
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.nn import KroneckerLinear, LoraLinear
from lissom.train.during.masks import Along
from lissom.train.during.weights import original


@dataclasses.dataclass(kw_only=True)
class Part:
    """The heads of an attention layer or the neurons of a feed-forward layer: units that stay or go one by one.

    Layers that share their weights are one part, and so are those of a stack that share one position bias (`tied`).

    readers: the maps that read the units (o or down), `size` inputs a unit.  writers: those that write neurons (up and
    gate), layer by layer; empty for heads.
    units: key/value heads (their query heads go with them), or neurons.  cost: parameters a unit, over all its layers.
    """

    heads: bool
    tied: bool
    units: int
    size: int
    cost: int = 0
    readers: list[Slot] = dataclasses.field(default_factory=list)
    writers: list[tuple[Slot, ...]] = dataclasses.field(default_factory=list)


def parts(anatomy: Anatomy) -> list[Part]:
    """All parts of a model, in a fixed order.

    Raises LissomError LSM-451 for Kronecker products, whose rows cannot go alone, LSM-715 for maps with a delta beside.
    """
    product = next((slot for slot in anatomy.linears() if isinstance(slot.module, KroneckerLinear)), None)
    if product is not None:
        cause = "the rows of a Kronecker product cannot go one by one"
        raise LissomError(451, cause, place=product.path, remedy="Cut heads and neurons first, then factorize.")
    odd = next((slot for slot in anatomy.slots() if isinstance(slot.module, LoraLinear)), None)
    if odd is not None:
        cause = "the units of a map with a low-rank delta beside it have two weights each"
        raise LissomError(715, cause, place=odd.path, remedy="Remove units first, then share layers.")
    found: dict[object, Part] = {}
    counted: set[int] = set()
    for stack in anatomy.stacks:
        for cross in (False, True):
            for one in attentions(stack, cross):
                shared = tensor_id(one.o)
                part = found.setdefault(
                    (stack.name, cross) if one.tied else shared,
                    Part(heads=True, tied=one.tied, units=one.kv_heads, size=one.o.in_features // one.kv_heads),
                )
                _add(part, one.o, (), 0 if shared in counted else _head_cost(one))
                counted.add(shared)
        for block in stack.blocks:
            ffn = block.ffn
            shared = tensor_id(ffn.down)
            part = found.setdefault(shared, Part(heads=False, tied=False, units=ffn.width, size=1))
            _add(part, ffn.down, ffn.slots()[:-1], 0 if shared in counted else _neuron_cost(ffn))
            counted.add(shared)
    return list(found.values())


def _add(part: Part, reader: Slot, writers: tuple[Slot, ...], cost: int) -> None:
    part.readers.append(reader)
    if writers:
        part.writers.append(writers)
    part.cost += cost


def attentions(stack: Stack, cross: bool) -> list[Attention]:
    """The attention layers of a stack, to itself or to the encoder."""
    found = [block.cross if cross else block.attention for block in stack.blocks]
    return [one for one in found if one is not None]


def _head_cost(attention: Attention) -> int:
    group = attention.heads // attention.kv_heads
    rows = [(attention.q, group), (attention.k, 1), (attention.v, 1), *((one, group) for one in attention.extra)]
    written = sum(_row(slot) * times for slot, times in rows)
    return (written + _column(attention.o) * group) * attention.head_dim


def _neuron_cost(ffn: Ffn) -> int:
    return sum(map(_row, ffn.slots()[:-1])) + _column(ffn.down)


def _row(slot: Slot) -> int:
    """Parameters of one output."""
    return stored_maps(slot)[-1].in_features + (slot.module.bias is not None)


def _column(slot: Slot) -> int:
    """Parameters of one input."""
    return stored_maps(slot)[0].out_features


# where a unit's weights are


def input_side(slot: Slot) -> nn.Module:
    """The module whose weight has a column for each input of `slot`."""
    return stored_maps(slot)[0].module


def output_side(slot: Slot) -> nn.Module:
    """The module whose weight has a row for each output of `slot`."""
    return stored_maps(slot)[-1].module


def tensor_id(slot: Slot) -> int:
    """Names the tensor that a slot's outputs come from."""
    return id(original(output_side(slot)))


def columns(slot: Slot, part: Part) -> Along:
    """How one value a unit spreads over the columns of `input_side(slot)`."""
    module = input_side(slot)
    index = torch.arange(part.units).repeat_interleave(part.size)
    return Along(index, 0 if is_transposed(module) else 1, original(module).shape)


def rows(slots: Sequence[Slot], part: Part) -> Iterator[tuple[nn.Module, Along]]:
    """How one value a unit spreads over the rows of `output_side` of each of `slots`; fused ones together."""
    by_module: dict[str, list[Slot]] = {}
    for slot in slots:
        by_module.setdefault(slot.path, []).append(slot)
    for together in by_module.values():
        module = output_side(together[0])
        shape = original(module).shape
        dim = 1 if is_transposed(module) else 0
        index = torch.full((shape[dim],), part.units)
        for slot in together:
            own = torch.arange(shape[dim]) if slot.rows is None else slot.rows
            index[own] = torch.arange(part.units)
        yield module, Along(index, dim, shape)


# removal


def remove_empty(editor: Editor) -> None:
    """Remove, by edits, the heads and neurons that add nothing but a constant; the model answers as before.

    Nothing: no weight of o or down reads the unit. A constant: a head whose values are all its bias, where it can move
    into the bias of o. One head and one neuron stay in every layer, empty or not.
    """
    for stack in editor.anatomy().stacks:
        for cross in (False, True):
            found = attentions(stack, cross)
            if not found:
                continue
            kept = _alive_heads(found)
            if any(len(keep) < one.kv_heads for keep, one in zip(kept, found, strict=True)):
                _move_constants(found, kept)
                editor.apply(edits.KeepHeads(stack=stack.name, heads=kept, cross=cross))
        neurons = tuple(_numbers(_read(block.ffn.down, block.ffn.width)) for block in stack.blocks)
        if any(len(keep) < block.ffn.width for keep, block in zip(neurons, stack.blocks, strict=True)):
            editor.apply(edits.KeepNeurons(stack=stack.name, neurons=neurons))


def _numbers(alive: Tensor) -> tuple[int, ...]:
    return tuple(alive.nonzero().flatten().tolist()) or (0,)


def _read(reader: Slot, units: int) -> Tensor:
    """Whether any weight reads a unit. (units,) bool."""
    weight = reader.weight.detach()
    return (weight != 0).any(dim=0).view(units, -1).any(dim=1)


def _alive_heads(found: Iterable[Attention]) -> tuple[tuple[int, ...], ...]:
    each = [_read(one.o, one.kv_heads) & ~_constant(one) for one in found]
    if next(iter(found)).tied:
        each = [torch.stack(each).any(dim=0)] * len(each)
    return tuple(map(_numbers, each))


def _constant(attention: Attention) -> Tensor:
    """Whether a head's values are constant and the constant has a place to go. (kv_heads,) bool."""
    heads = attention.kv_heads
    constant = (attention.v.weight.detach() == 0).view(heads, -1).all(dim=1)
    if attention.v.bias is not None and attention.o.bias is None:
        constant &= (attention.v.bias.detach() == 0).view(heads, -1).all(dim=1)
    return constant


def _move_constants(found: Iterable[Attention], kept: Iterable[tuple[int, ...]]) -> None:
    """Add what the heads that go add everywhere, o times the bias of v, to the bias of o."""
    moved: set[int] = set()
    for one, keep in zip(found, kept, strict=True):
        bias, values = one.o.bias, one.v.bias
        if bias is None or values is None or id(bias) in moved:
            continue
        moved.add(id(bias))
        gone = torch.ones(one.kv_heads, dtype=torch.bool)
        gone[list(keep)] = False
        with torch.no_grad():
            given = values.view(one.kv_heads, 1, -1) * gone.to(values.device).view(-1, 1, 1)
            given = given.expand(-1, one.heads // one.kv_heads, -1).reshape(-1)
            bias += one.o.weight @ given.to(bias.device)
