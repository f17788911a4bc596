"""Edits of depth: which layers there are, and which of them share their weights."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, cast

from torch import nn

from lissom.anatomy import Stack, dissect
from lissom.anatomy.dissect import stack_record
from lissom.anatomy.parts import Block
from lissom.edits.edit import EDIT_MISFIT, Edit
from lissom.errors import LissomError
from lissom.nn import LoraLinear


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeepLayers(Edit):
    """Keep only these layers of a stack, in their order. The config then counts them, so no runtime notices.

    stack: "encoder" or "decoder"; "" means the only one.  keep: numbers of the executed layers, ascending.
    """

    stack: str = ""
    keep: tuple[int, ...]

    def apply(self, model: nn.Module) -> None:
        """Drop the other layers."""
        stack = dissect(model).stack(self.stack)
        check_depth(model, stack, self.keep)
        record = stack_record(model, stack.name)
        if record.repeats:
            setattr(model.config, stack.depth_key, len(self.keep))
            return
        owner = model.get_submodule(stack.path.rpartition(".")[0]) if "." in stack.path else model
        blocks = cast("nn.ModuleList", model.get_submodule(stack.path))
        kept = [blocks[i] for i in self.keep]
        if record.first_only is not None:
            _move(blocks[0], kept[0], *record.first_only)
        for index, block in enumerate(kept):
            for module in block.modules():
                if isinstance(getattr(module, "layer_idx", None), int):
                    cast(Any, module).layer_idx = index
        layers = nn.ModuleList(kept)
        layers.training = blocks.training
        model.set_submodule(stack.path, layers)
        _set_depth(model.config, record.depth_key, self.keep)
        own = getattr(owner, "config", model.config)
        if record.own_depth_key and own is not model.config:
            _set_depth(own, record.own_depth_key, self.keep)


def how_many(keep: float, layers: int) -> int:
    """How many of `layers` layers stay: `keep` itself, or that share of them (a float), rounded, at least one."""
    return keep if isinstance(keep, int) else max(1, round(keep * layers))


def chosen(by: Literal["first", "last", "every-other"], count: int, layers: int) -> tuple[int, ...]:
    """The numbers of `count` of `layers` layers, ascending. every-other: at equal distances, the first among them."""
    return {
        "first": tuple(range(count)),
        "last": tuple(range(layers - count, layers)),
        "every-other": tuple(i * layers // count for i in range(count)),
    }[by]


def _set_depth(config: Any, key: str, keep: tuple[int, ...]) -> None:
    layer_types = getattr(config, "layer_types", None)
    setattr(config, key, len(keep))
    if layer_types is not None:
        config.layer_types = [layer_types[i] for i in keep]


def _move(old: nn.Module, new: nn.Module, path: str, flag: str) -> None:
    """Carry a module that only the first block has over to the block that is first now."""
    if old is new:
        return
    parent, _, name = path.rpartition(".")
    target = new.get_submodule(parent)
    setattr(target, name, old.get_submodule(path))
    setattr(target, flag, True)


def check_depth(model: nn.Module, stack: Stack, keep: tuple[int, ...]) -> None:
    """Raise LSM-451 unless `model` can do with the layers `keep` of `stack` alone."""
    check_ascending(keep, len(stack.order), f"layers of {stack.path}")
    if hasattr(model, "exits"):
        cause = "texts leave this model after certain layers, so none can be dropped"
        raise LissomError(EDIT_MISFIT, cause, place=stack.path, remedy="Drop layers first, then add exits.")
    record = stack_record(model, stack.name)
    if record.repeats and len(stack.blocks) != 1:
        raise LissomError(
            EDIT_MISFIT,
            f"{len(stack.blocks)} shared blocks run in turn; layers can be dropped only where one block is repeated",
            place=stack.path,
        )
    prefix = keep == tuple(range(len(keep)))
    if record.depth_scaled and getattr(model.config, record.depth_scaled, False) and not prefix:
        raise LissomError(
            EDIT_MISFIT,
            f"with {record.depth_scaled} a layer depends on its number, so only the first ones can be kept",
            place=stack.path,
            remedy="Use by: first.",
        )


def check_ascending(numbers: tuple[int, ...], below: int, what: str) -> None:
    """Raise LSM-451 unless `numbers` are distinct, ascending, at least one, and all in [0, below)."""
    fits = bool(numbers) and list(numbers) == sorted(set(numbers)) and numbers[0] >= 0 and numbers[-1] < below
    if not fits:
        shown = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
        raise LissomError(
            EDIT_MISFIT, f"{what}: [{shown}] is not an ascending choice of at least one of 0 to {below - 1}"
        )


Parts = Literal["all", "attention", "ffn"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShareLayers(Edit):
    """Let layers of a stack use the very same tensors. Stored once, counted once, executed as often as before.

    source: for each block the number of the block whose weights it uses; a source points at itself. A tensor that
        the source has not got (the first block of some families lacks a norm) stays the layer's own.
    parts: "all" of a layer; or only the linear maps of its attention layers, or of its feed-forward layer: norms and
        whatever else stay the layer's own.
    """

    stack: str = ""
    source: tuple[int, ...]
    parts: Parts = "all"

    def apply(self, model: nn.Module) -> None:
        """Tie the tensors; the weights of a source are the ones that stay."""
        stack = dissect(model).stack(self.stack)
        count = len(stack.blocks)
        rooted = all(0 <= one < count and self.source[one] == one for one in self.source)
        if len(self.source) != count or not rooted:
            raise LissomError(
                EDIT_MISFIT,
                f"source {list(self.source)} does not name, for each of the {count} blocks, one that keeps its weights",
                place=stack.path,
            )
        self.settle(model)

    def settle(self, model: nn.Module, later: tuple[Edit, ...] = ()) -> None:
        """Point every sharing block at the tensors of its source, or of the first sharer where the source is gone."""
        anatomy = dissect(model)
        stack = anatomy.stack(self.stack)
        sources = self.source
        for edit in later:
            if isinstance(edit, KeepLayers) and anatomy.stack(edit.stack) is stack and len(sources) > 1:
                roots = [sources[i] for i in edit.keep]
                sources = tuple(map(roots.index, roots))
        for block, source in zip(stack.blocks, sources, strict=True):
            if block.index != source:
                pairs = zip(
                    shared_paths(stack.blocks[source], self.parts), shared_paths(block, self.parts), strict=True
                )
                for theirs, own in pairs:
                    share(model.get_submodule(theirs), model.get_submodule(own), own)


def shared_paths(block: Block, parts: Parts) -> tuple[str, ...]:
    """The modules of `block` that layers share with these `parts`; those of two alike blocks in the same order."""
    if parts == "all":
        return (block.path,)
    cross = () if block.cross is None else block.cross.slots()
    slots = block.ffn.slots() if parts == "ffn" else (*block.attention.slots(), *cross)
    return tuple(dict.fromkeys(slot.path for slot in slots))


def share(source: nn.Module, target: nn.Module, place: str) -> None:
    """Make every parameter and buffer of `target` the one of the same name in `source`, where it has one.

    The low-rank delta of a map stays its own.
    """
    twins = dict(source.named_modules())
    deltas = [one for each in target.modules() if isinstance(each, LoraLinear) for one in (each.down, each.up)]
    own = {id(part) for delta in deltas for part in delta.modules()}
    for name, module in target.named_modules():
        if id(module) in own:
            continue
        twin = twins.get(name, nn.Module())
        for tensors, others in ((module._parameters, twin._parameters), (module._buffers, twin._buffers)):
            for key, old in tensors.items():
                new = others.get(key)
                if old is None or new is None:
                    continue
                if old.shape != new.shape:
                    raise LissomError(
                        EDIT_MISFIT,
                        "the layer that shares and its source differ in shape",
                        place=".".join(filter(None, (place, name, key))),
                        remedy="Share layers after heads and neurons are cut alike in them.",
                    )
                cast("dict[str, Any]", tensors)[key] = new
