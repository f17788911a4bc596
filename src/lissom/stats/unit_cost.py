"""What a head and a neuron cost: floating-point operations of the blocks for one text of a given length.

As `lissom.measure.flops` counts them: 2 m k n for a product of (m, k) and (k, n), in linear maps and in attention over
whole squares. The encoder's text is taken as long as the decoder's.
"""

from __future__ import annotations

import dataclasses

from torch import nn

from lissom.anatomy import Anatomy, Slot, stored_maps
from lissom.anatomy.parts import Attention, Block, Ffn


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitFlops:
    """units: path of each reader (o or down) -> operations of one of its units.  total: of all blocks."""

    units: dict[str, int]
    total: int


def unit_flops(anatomy: Anatomy, tokens: int) -> UnitFlops:
    """Operations for one text of `tokens` tokens, every run of a block counted."""
    units: dict[str, int] = {}
    total = 0
    for stack in anatomy.stacks:
        for block in stack.blocks:
            times = stack.order.count(block.index)
            for attention in (block.attention, block.cross):
                if attention is not None:
                    units[attention.o.path] = times * _head(attention, tokens)
                    total += 4 * times * tokens**2 * attention.heads * attention.head_dim
            units[block.ffn.down.path] = times * _neuron(block.ffn, tokens)
            total += times * 2 * tokens * _weights(anatomy.model, block)
    return UnitFlops(units=units, total=total)


def _weights(model: nn.Module, block: Block) -> int:
    """Weights that the maps of a block multiply with; a fused map counts once."""
    paths = dict.fromkeys(slot.path for slot in block.slots())
    stored = (one for path in paths for one in stored_maps(Slot(model, path)))
    return sum(one.in_features * one.out_features for one in stored)


def _head(attention: Attention, tokens: int) -> int:
    """A key/value head and its query heads."""
    group, size = attention.heads // attention.kv_heads, attention.head_dim
    rows = [(attention.q, group), (attention.k, 1), (attention.v, 1), *((one, group) for one in attention.extra)]
    linear = sum(_row(slot) * times * size for slot, times in rows) + _column(attention.o) * group * size
    return 2 * tokens * linear + 4 * tokens**2 * group * size


def _neuron(ffn: Ffn, tokens: int) -> int:
    return 2 * tokens * (sum(map(_row, ffn.slots()[:-1])) + _column(ffn.down))


def _row(slot: Slot) -> int:
    """Products of one output."""
    return stored_maps(slot)[-1].in_features


def _column(slot: Slot) -> int:
    """Products of one input."""
    return stored_maps(slot)[0].out_features


__all__ = ["UnitFlops", "unit_flops"]
