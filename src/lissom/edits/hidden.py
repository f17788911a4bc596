"""The edit of the hidden width: which channels the residual stream of a model has."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from torch import Tensor, nn

from lissom.anatomy import Residual, Slot, dissect, keep_together, residual
from lissom.anatomy.dissect import stack_record
from lissom.edits.cut import Cut
from lissom.edits.depth import check_ascending
from lissom.edits.edit import EDIT_MISFIT, Edit
from lissom.errors import LissomError

_OWN = ("model_dim",)  # attributes of modules that say the width and are read while they run


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeepHidden(Edit):
    """Keep only these channels of the residual stream, in the whole model at once.

    Columns of all tables, inputs of what reads the stream, outputs of what writes into it, norms, and the head. Heads
    keep their size, which configs then say apart where they can. Norms take their mean and variance over the channels
    that are left, so answers change even where the dropped ones were zero.

    channels: ascending, at least one; a multiple of the attention heads, so that a config may say it.
    """

    channels: tuple[int, ...]

    def shape(self) -> KeepHidden:
        """As many channels, the first ones."""
        return dataclasses.replace(self, channels=tuple(range(len(self.channels))))

    def apply(self, model: nn.Module) -> None:
        """Remove the other channels everywhere."""
        found = residual(model)
        check_ascending(self.channels, found.width, "channels of the residual stream")
        self._check_heads(model)
        if len(self.channels) == found.width:
            return
        _say_apart(model)
        cut = Cut(torch.as_tensor(self.channels, dtype=torch.int64))
        for path in found.tables:
            _cut_table(cast("nn.Embedding", model.get_submodule(path)), path, cut)
        _cut_maps(found, list(self.channels), cut)
        for path in found.norms:
            _cut_norm(model.get_submodule(path), found.width, cut)
        config = cast("Any", model.config)
        for module in model.modules():
            own = getattr(module, "config", None)
            for one in (config, own) if own is not None and own is not config else (config,):
                for key in found.config:
                    setattr(one, key, len(self.channels))
            for name in _OWN:
                if getattr(module, name, None) == found.width:
                    setattr(module, name, len(self.channels))

    def _check_heads(self, model: nn.Module) -> None:
        """A config whose heads do not divide the width is refused by those who read it."""
        for stack in dissect(model).stacks:
            heads = int(getattr(model.config, stack_record(model, stack.name).heads_key, 1))
            if len(self.channels) % heads:
                cause = f"{len(self.channels)} channels are no multiple of the {heads} attention heads in the config"
                raise LissomError(EDIT_MISFIT, cause, place=stack.path)


def _say_apart(model: nn.Module) -> None:
    """Write into the config what it would otherwise derive from the hidden width: the size of a head, and n_inner."""
    config = cast("Any", model.config)
    for stack in dissect(model).stacks:
        record, block = stack_record(model, stack.name), stack.blocks[0]
        if hasattr(config, "head_dim") or hasattr(config, "rope_parameters"):  # rotations are as wide as a head
            config.head_dim = block.attention.head_dim
        if getattr(config, record.width_key, 0) is None:
            setattr(config, record.width_key, block.ffn.width)


def _cut_table(table: nn.Embedding, path: str, cut: Cut) -> None:
    if type(getattr(table, "weight", None)) is not nn.Parameter:
        cause = "channels cannot be cut out of the form in which this is stored"
        raise LissomError(EDIT_MISFIT, cause, place=path, remedy="Cut the hidden width first, then store it so.")
    table.weight = cast("nn.Parameter", cut(table.weight, 1))
    table.embedding_dim = len(cut.kept)


def _cut_maps(found: Residual, channels: list[int], cut: Cut) -> None:
    """Inputs of what reads, outputs of what writes. A map that shares its weight with a table goes on sharing it."""
    shared = {slot.path for slot in found.reads if _shares(slot, cut)}
    for slot in found.reads:
        if slot.path in shared:
            module = cast("nn.Linear", slot.module)
            module.weight = cast("nn.Parameter", cut(module.weight, 1))
            module.in_features = len(channels)
    keep_together((slot, None, channels) for slot in found.reads if slot.path not in shared)
    keep_together((slot, channels, None) for slot in found.writes)


def _shares(slot: Slot, cut: Cut) -> bool:
    return type(slot.module) is nn.Linear and cut.knows(slot.module.weight)


def _cut_norm(norm: nn.Module, width: int, cut: Cut) -> None:
    for name in ("weight", "bias"):
        value = getattr(norm, name, None)
        if isinstance(value, Tensor) and value.shape == (width,):
            setattr(norm, name, cut(value, 0))
    if hasattr(norm, "normalized_shape"):
        cast("Any", norm).normalized_shape = (len(cut.kept),)
