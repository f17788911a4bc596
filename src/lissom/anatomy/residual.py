"""The residual stream of a model: how wide it is, and every tensor that reads it or writes into it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, cast

from torch import nn

from lissom.anatomy.dissect import dissect, family_of
from lissom.anatomy.parts import Anatomy, Attention, Block
from lissom.anatomy.slot import Slot
from lissom.anatomy.vocabulary import vocabulary
from lissom.errors import LissomError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Residual:
    """What has one value, row or column a channel of the residual stream.

    width: its channels.
    tables: paths of the embeddings whose columns they are.
    reads, writes: the slots whose inputs, and whose outputs, they are; fused slots each, a head's maps both.
    norms: paths of the norms over them.
    config: entries of the config that say the width.
    """

    model: nn.Module
    width: int
    tables: tuple[str, ...]
    reads: tuple[Slot, ...]
    writes: tuple[Slot, ...]
    norms: tuple[str, ...]
    config: tuple[str, ...]


def residual(model: nn.Module) -> Residual:
    """Find the residual stream of `model`, edited or not, empty or full.

    In the blocks it is known which maps read and write it. Outside, whatever is as wide is taken for a part of it: a
    pooler loses the outputs of the same numbers, and what reads the pooler the inputs.
    Raises LissomError LSM-715 for a model without layers, or with as many labels as channels.
    """
    anatomy = dissect(model)
    config = cast("Any", model.config)
    if not anatomy.stacks:
        raise LissomError(715, f"{anatomy.family} has no layers, and no stream of hidden states between them")
    width = int(config.hidden_size)
    if getattr(config, "num_labels", 0) == width:
        raise LissomError(715, f"labels cannot be told from channels where there are {width} of each")
    blocks = [block for stack in anatomy.stacks for block in stack.blocks]
    outputs = vocabulary(model).outputs  # type: ignore[arg-type]
    outside = [(name, one) for name, one in model.named_modules() if not _inside(name, blocks)]
    heads = [slot for slot in anatomy.head if slot.path not in outputs]
    last = [Slot(model, path) for path in outputs]
    as_wide = tuple(one for one in (*family_of(model).as_wide, "word_embed_proj_dim") if _says(config, one, width))
    return Residual(
        model=model,
        width=width,
        tables=tuple(name for name, one in outside if getattr(one, "embedding_dim", None) == width),
        reads=(*_reads(anatomy), *(one for one in (*heads, *last) if one.in_features == width)),
        writes=(*_written(blocks), *(one for one in heads if one.out_features == width)),
        norms=tuple(name for name in (*_inner_norms(blocks, width), *_norms(outside)) if _size(model, name) == width),
        config=("hidden_size", *as_wide),
    )


def _inside(name: str, blocks: list[Block]) -> bool:
    return any(name == block.path or name.startswith(f"{block.path}.") for block in blocks)


def _says(config: object, key: str, width: int) -> bool:
    return getattr(config, key, None) == width


def _reads(anatomy: Anatomy) -> Iterator[Slot]:
    """The slots in the blocks whose inputs are channels.

    Keys and values of attention to an encoder are among them where the model has the encoder itself.
    """
    for stack in anatomy.stacks:
        for block in stack.blocks:
            yield from _into(block.attention)
            if block.cross is not None:
                yield block.cross.q
                if len(anatomy.stacks) > 1:
                    yield from (block.cross.k, block.cross.v)
            yield block.ffn.up
            if block.ffn.gate is not None:
                yield block.ffn.gate


def _into(attention: Attention) -> tuple[Slot, ...]:
    return (attention.q, attention.k, attention.v, *attention.extra)


def _written(blocks: list[Block]) -> Iterator[Slot]:
    for block in blocks:
        yield from (block.attention.o, block.ffn.down)
        if block.cross is not None:
            yield block.cross.o


def _inner_norms(blocks: list[Block], width: int) -> Iterator[str]:
    """Norms in the blocks; not those of queries and keys where a head is as wide as the stream."""
    for block in blocks:
        found = [one for one in (block.attention, block.cross) if one is not None]
        parts = [one.path for one in found if one.head_dim == width]
        yield from (name for name in block.norms if not any(name.startswith(f"{one}.") for one in parts))


def _norms(outside: list[tuple[str, nn.Module]]) -> Iterator[str]:
    return (name for name, one in outside if "norm" in type(one).__name__.lower())


def _size(model: nn.Module, name: str) -> int:
    weight = getattr(model.get_submodule(name), "weight", None)
    return 0 if weight is None else int(weight.shape[-1])
