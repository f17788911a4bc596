"""From a model to its anatomy: the family's record, resolved on this very model (edited or not, empty or full)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from lissom.anatomy.families import FAMILIES, OURS, AttentionRecord, Family, FfnRecord, StackRecord
from lissom.anatomy.parts import Anatomy, Attention, Block, Ffn, Stack
from lissom.anatomy.slot import Slot, is_linear
from lissom.errors import UnsupportedFamily, nearest
from lissom.nn import Int8Embedding

_PART = re.compile(r"^(?P<path>[^\[]+)(\[(?P<i>\d)(?P<layout>[/%])(?P<n>\d)\])?$")


def family_of(model: nn.Module) -> Family:
    """The record of a model's family.

    Raises UnsupportedFamily LSM-701 if there is none; the message names the nearest known model_type.
    """
    model_type = str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
    family = FAMILIES.get(model_type) or OURS.get(model_type)
    if family is None:
        raise UnsupportedFamily(701, f'no anatomy for model_type "{model_type}"', remedy=nearest(model_type, FAMILIES))
    return family


def dissect(model: nn.Module) -> Anatomy:
    """Find the parts of a transformers model. Reads shapes and names only, so it works on an empty (meta) model too.

    Raises UnsupportedFamily (LSM-701) for an unknown architecture.
    """
    family = family_of(model)
    base = _base_path(model)
    stacks = tuple(stack for record in family.stacks if (stack := _stack(model, base, record)) is not None)
    inside = tuple(f"{block.path}." for stack in stacks for block in stack.blocks)
    outside = [(name, module) for name, module in _modules(model) if not name.startswith(inside)]
    ignored = tuple(ending for ending, _ in family.ignored)
    return Anatomy(
        family=family.name,
        model=model,
        stacks=stacks,
        embeddings=tuple(name for name, module in outside if _is_embedding(module) and not name.endswith(ignored)),
        head=tuple(Slot(model, name) for name, module in outside if is_linear(module)),
    )


def _modules(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """All modules with their paths, not looking into a linear map (a low-rank one has two inside)."""
    for name, child in model.named_children():
        yield prefix + name, child
        if not is_linear(child):
            yield from _modules(child, f"{prefix}{name}.")


def stack_record(model: nn.Module, name: str) -> StackRecord:
    """The record of the stack called `name`, for edits that rewrite attributes."""
    return next(one for one in family_of(model).stacks if one.name == name)


def _is_embedding(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding | Int8Embedding)


def _base_path(model: nn.Module) -> str:
    """Path of the bare model inside a model with a head: "bert." in BertForSequenceClassification, "" in BertModel."""
    base = getattr(model, "base_model", model)
    return next((f"{name}." for name, module in model.named_modules() if module is base and name), "")


def _has(model: nn.Module, path: str) -> bool:
    try:
        return model.get_submodule(path) is not None
    except AttributeError:
        return False


def _lists(model: nn.Module, path: str) -> list[str]:
    """Every module list that a path with `*` stands for, in order; empty if the model has no such stack."""
    if "*" not in path:
        return [path] if _has(model, path) else []
    head, tail = path.split(".*.", 1)
    if not _has(model, head):
        return []
    return [f"{head}.{i}.{tail}" for i, _ in enumerate(cast("nn.ModuleList", model.get_submodule(head)))]


def _stack(model: nn.Module, base: str, record: StackRecord) -> Stack | None:
    lists = _lists(model, base + record.blocks)
    if not lists:
        return None
    paths = [f"{one}.{i}" for one in lists for i, _ in enumerate(cast("nn.ModuleList", model.get_submodule(one)))]
    blocks = tuple(_block(model, base, path, index, record) for index, path in enumerate(paths))
    order = tuple(range(len(blocks)))
    if record.repeats:
        depth = int(getattr(model.config, record.depth_key))
        inner = len(blocks) // len(lists)
        groups = [int(i / (depth / len(lists))) for i in range(depth)]
        order = tuple(group * inner + i for group in groups for i in range(inner))
    return Stack(name=record.name, path=base + record.blocks, blocks=blocks, order=order, depth_key=record.depth_key)


def _block(model: nn.Module, base: str, path: str, index: int, record: StackRecord) -> Block:
    module = model.get_submodule(path)
    cross = record.cross
    if cross is not None and not _has(module, cross.path):
        cross = None
    return Block(
        index=index,
        path=path,
        attention=_attention(model, base, path, record.attention),
        cross=None if cross is None else _attention(model, base, path, cross),
        ffn=_ffn(model, path, record.ffn),
        norms=tuple(f"{path}.{name}" for name, one in module.named_modules() if "norm" in type(one).__name__.lower()),
    )


def _attention(model: nn.Module, base: str, block: str, record: AttentionRecord) -> Attention:
    path = f"{block}.{record.path}"
    head_dim = int(getattr(model.get_submodule(path), record.head_dim))
    q, k, v = (_slot(model, f"{path}.{name}", head_dim) for name in (record.q, record.k, record.v))
    extra = tuple(Slot(model, f"{path}.{name}") for name in record.extra if _has(model, f"{path}.{name}"))
    return Attention(
        path=path,
        q=q,
        k=k,
        v=v,
        o=Slot(model, f"{block}.{record.o}"),
        heads=q.out_features // head_dim,
        kv_heads=k.out_features // head_dim,
        head_dim=head_dim,
        extra=extra,
        head_bias=base + record.head_bias if record.head_bias else "",
        tied=record.tied,
    )


def _ffn(model: nn.Module, block: str, records: tuple[FfnRecord, ...]) -> Ffn:
    record = next(
        one for one in records if all(_has(model, f"{block}.{p.split('[')[0]}") for p in (one.up, one.gate or one.up))
    )
    up = _slot(model, f"{block}.{record.up}", 1)
    gate = _slot(model, f"{block}.{record.gate}", 1) if record.gate else None
    return Ffn(up=up, gate=gate, down=_slot(model, f"{block}.{record.down}", 1), width=up.out_features)


def _slot(model: nn.Module, spec: str, head_dim: int) -> Slot:
    """A slot from its name in a record; `head_dim` rows go together where the parts of a projection alternate."""
    match = _PART.match(spec)
    if match is None or match["i"] is None:
        return Slot(model, spec)
    part, parts = int(match["i"]), int(match["n"])
    total = Slot(model, match["path"]).out_features
    return Slot(model, match["path"], rows=_rows(total, part, parts, head_dim if match["layout"] == "%" else 0))


def _rows(total: int, part: int, parts: int, head_dim: int) -> Tensor:
    """Row numbers of one part of a fused projection with `total` rows."""
    rows = torch.arange(total, device="cpu")
    if head_dim:
        return rows.view(-1, parts, head_dim)[:, part].flatten()
    return rows.view(parts, -1)[part]
