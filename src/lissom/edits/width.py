"""Edits of width: fewer attention heads, fewer intermediate neurons. Shapes shrink, nothing is masked."""

from __future__ import annotations

import dataclasses
from typing import cast

import torch
from torch import nn

from lissom.anatomy import Attention, Slot, Stack, dissect, keep_together
from lissom.anatomy.dissect import stack_record
from lissom.anatomy.families import AttentionRecord
from lissom.edits.depth import check_ascending
from lissom.edits.edit import EDIT_MISFIT, Edit
from lissom.errors import LissomError

Cut = tuple[Slot, list[int] | None, list[int] | None]


def _one_each(stack: Stack, choices: tuple[tuple[int, ...], ...], what: str) -> None:
    if len(choices) != len(stack.blocks):
        raise LissomError(
            EDIT_MISFIT, f"{len(choices)} choices of {what} for {len(stack.blocks)} blocks", place=stack.path
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeepHeads(Edit):
    """Keep only these attention heads, block by block.

    heads: for each block the key/value heads to keep, ascending, at least one. With grouped queries, the query heads
        of a key/value head stay or go with it.
    cross: cut the attention to the encoder instead of the self-attention.
    """

    stack: str = ""
    heads: tuple[tuple[int, ...], ...]
    cross: bool = False

    def shape(self) -> KeepHeads:
        """The same counts, with the first heads."""
        return dataclasses.replace(self, heads=tuple(tuple(range(len(one))) for one in self.heads))

    def apply(self, model: nn.Module) -> None:
        """Remove the other heads' rows of q, k, v and columns of o."""
        stack = dissect(model).stack(self.stack)
        _one_each(stack, self.heads, "heads")
        record = stack_record(model, stack.name)
        found = [block.cross if self.cross else block.attention for block in stack.blocks]
        attention_record = record.cross if self.cross else record.attention
        if attention_record is None or None in found:
            raise LissomError(EDIT_MISFIT, "there is no attention to an encoder here", place=stack.path)
        attentions = cast("list[Attention]", found)
        if attentions[0].tied and len(set(self.heads)) > 1:
            raise LissomError(
                EDIT_MISFIT,
                "all blocks share one position bias and must keep the same heads",
                place=stack.path,
            )
        for attention, keep in zip(attentions, self.heads, strict=True):
            _keep_heads(model, attention, attention_record, keep)
        if attentions[0].head_bias:
            _keep_columns(cast("nn.Embedding", model.get_submodule(attentions[0].head_bias)), self.heads[0])


def _keep_heads(model: nn.Module, attention: Attention, record: AttentionRecord, keep: tuple[int, ...]) -> None:
    check_ascending(keep, attention.kv_heads, f"heads of {attention.path}")
    if len(keep) == attention.kv_heads:
        return
    group = attention.heads // attention.kv_heads
    kv = _rows(keep, attention.head_dim)
    q = _rows(keep, attention.head_dim * group)
    cuts: list[Cut] = [(attention.q, q, None), (attention.k, kv, None), (attention.v, kv, None), (attention.o, None, q)]
    keep_together(cuts + [(slot, q, None) for slot in attention.extra])
    module = model.get_submodule(attention.path)
    _rewrite(module, record.heads, len(keep) * group)
    _rewrite(module, record.kv_heads, len(keep))
    _rewrite(module, record.width, len(keep) * group * attention.head_dim)


def _rows(units: tuple[int, ...], size: int) -> list[int]:
    return [unit * size + i for unit in units for i in range(size)]


def _rewrite(module: nn.Module, names: tuple[str, ...], value: int) -> None:
    for name in names:
        setattr(module, name, value)


def _keep_columns(embedding: nn.Embedding, keep: tuple[int, ...]) -> None:
    weight = embedding.weight
    columns = torch.as_tensor(keep, device=weight.device)
    embedding.weight = nn.Parameter(weight.detach().index_select(1, columns), weight.requires_grad)
    embedding.embedding_dim = len(keep)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeepNeurons(Edit):
    """Keep only these intermediate neurons of the feed-forward layers.

    neurons: for each block the neurons to keep, ascending, at least one.
    """

    stack: str = ""
    neurons: tuple[tuple[int, ...], ...]

    def shape(self) -> KeepNeurons:
        """The same counts, with the first neurons."""
        return dataclasses.replace(self, neurons=tuple(tuple(range(len(one))) for one in self.neurons))

    def apply(self, model: nn.Module) -> None:
        """Remove the other neurons' rows of up (and gate) and columns of down."""
        stack = dissect(model).stack(self.stack)
        _one_each(stack, self.neurons, "neurons")
        record = stack_record(model, stack.name)
        for block, keep in zip(stack.blocks, self.neurons, strict=True):
            ffn = block.ffn
            check_ascending(keep, ffn.width, f"neurons of {block.path}")
            if len(keep) == ffn.width:
                continue
            chosen = list(keep)
            cuts: list[Cut] = [(ffn.up, chosen, None), (ffn.down, None, chosen)]
            if ffn.gate is not None:
                cuts.append((ffn.gate, chosen, None))
            keep_together(cuts)
            for path in record.ffn_width:
                parent, _, name = path.rpartition(".")
                _rewrite(model.get_submodule(f"{block.path}.{parent}"), (name,), len(keep))
