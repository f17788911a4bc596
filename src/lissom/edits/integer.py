"""The edit that lets an encoder compute with whole numbers alone."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import nn

from lissom.anatomy import Block, Slot, dissect
from lissom.anatomy.dissect import family_of
from lissom.edits.edit import EDIT_MISFIT, Edit
from lissom.edits.linear import device_and_dtype
from lissom.errors import LissomError
from lissom.nn import Int8Embedding, KroneckerLinear, LoraLinear, LowRankLinear
from lissom.nn.integer_layers import (
    Activation,
    IntegerAttention,
    IntegerEmbedding,
    IntegerEmbeddingNorm,
    IntegerIntermediate,
    IntegerOutput,
)

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackInteger(Edit):
    """Put the layers of `lissom.nn.integer_layers` in the place of all blocks of a BERT or RoBERTa, and of its tables.

    tables, norm: paths of the tables that are summed before the first block, and of the layer norm of the sum; none
        and "" where they stay in floating point.
    activation: what stands between the two maps of a feed-forward layer.
    Codes, scales and dyadic numbers come as tensors, by the names of those layers.
    """

    activation: Activation = "gelu"
    tables: tuple[str, ...] = ()
    norm: str = ""

    def apply(self, model: nn.Module) -> None:
        """Replace the modules; no number is filled in yet."""
        for block in integer_blocks(model):
            for path, module in _layers(block, self.activation):
                _put(model, path, module, device_and_dtype(block.attention.q)[1])
        for path in self.tables:
            table = _table(model, path)
            made = IntegerEmbedding(table.num_embeddings, table.embedding_dim, table.padding_idx, table.weight.device)
            _put(model, path, made, table.dtype if isinstance(table, Int8Embedding) else table.weight.dtype)
        if self.norm:
            old = _norm(model, self.norm)
            module = IntegerEmbeddingNorm(len(old.weight), old.weight.device)
            _put(model, self.norm, module, old.weight.dtype)


def integer_blocks(model: nn.Module) -> tuple[Block, ...]:
    """The blocks of a model that can become whole numbers. Raises LissomError LSM-451 for another kind of model."""
    anatomy = dissect(model)
    blocks = anatomy.stacks[0].blocks if len(anatomy.stacks) == 1 else ()
    if not family_of(model).integer or any(block.cross is not None for block in blocks):
        raise LissomError(EDIT_MISFIT, "only encoders like BERT and RoBERTa can compute with whole numbers alone")
    return blocks


def _table(model: nn.Module, path: str) -> nn.Embedding | Int8Embedding:
    table = model.get_submodule(path) if path in dissect(model).embeddings else None
    if type(table) is nn.Embedding or type(table) is Int8Embedding:
        return table
    raise LissomError(EDIT_MISFIT, "no embedding table stands here, plain or of int8", place=path)


def _norm(model: nn.Module, path: str) -> nn.LayerNorm:
    try:
        norm = model.get_submodule(path)
    except AttributeError:
        norm = None
    if type(norm) is not nn.LayerNorm:
        raise LissomError(EDIT_MISFIT, "no layer norm stands here", place=path)
    return norm


def _layers(block: Block, activation: Activation) -> Iterable[tuple[str, nn.Module]]:
    """The path of each layer of a block and an empty one for its place. Maps that are split in two have no such."""
    attention, ffn = block.attention, block.ffn
    parted = LowRankLinear | KroneckerLinear | LoraLinear
    thin = next((slot for slot in block.slots() if isinstance(slot.module, parted)), None)
    if thin is not None:
        raise LissomError(EDIT_MISFIT, "a map in two factors has no form in whole numbers", place=thin.path)
    device, _ = device_and_dtype(attention.q)
    hidden = attention.q.in_features
    yield attention.path, IntegerAttention(hidden, attention.heads, attention.head_dim, device)
    yield _parent(attention.o), IntegerOutput(attention.o.in_features, hidden, device)
    yield _parent(ffn.up), IntegerIntermediate(hidden, ffn.width, activation, device)
    yield _parent(ffn.down), IntegerOutput(ffn.width, hidden, device)


def _parent(slot: Slot) -> str:
    return slot.path.rpartition(".")[0]


def _put(model: nn.Module, path: str, module: nn.Module, dtype: torch.dtype) -> None:
    module.to(dtype=dtype)  # numbers keep theirs; it is what hidden states are answered in
    model.set_submodule(path, module.train(model.get_submodule(path).training))
