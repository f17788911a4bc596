"""Edits of linear maps and tables: two thin maps for one, whole numbers for floating point."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from lissom.anatomy import Slot, dissect, is_linear
from lissom.edits.edit import EDIT_MISFIT, Edit
from lissom.errors import LissomError
from lissom.nn import Int8Embedding, Int8Linear, LowBitEmbedding, LowBitLinear, LowRankLinear
from lissom.nn.static import StaticInt8Linear


def linear_at(model: nn.Module, path: str) -> Slot:
    """The linear map at `path`. Raises LissomError LSM-451 when there is none."""
    try:
        module = model.get_submodule(path)
    except AttributeError:
        module = None
    if module is None or not is_linear(module):
        raise LissomError(EDIT_MISFIT, "no linear map stands here", place=path)
    return Slot(model, path)


def device_and_dtype(slot: Slot) -> tuple[torch.device, torch.dtype]:
    """Where a linear map is and in which floating dtype it answers; a packed one has buffers only."""
    tensor = next(itertools.chain(slot.module.parameters(), slot.module.buffers()))
    packed = (one.dtype for one in slot.module.modules() if isinstance(one, Int8Linear))
    return tensor.device, next(packed, tensor.dtype)


def carry_bias(bias: Tensor | None, into: Tensor | None) -> None:
    """Copy a bias into that of the map that takes over, where both are there and hold numbers."""
    if bias is not None and into is not None and not bias.is_meta:
        into.data.copy_(bias.detach())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Factorize(Edit):
    """Put a `LowRankLinear` in the place of linear maps.

    ranks: path of a linear map -> rank. The factors come as tensors `PATH.down.weight` (rank, in) and
    `PATH.up.weight` (out, rank); the bias is carried over.
    """

    ranks: dict[str, int]

    def apply(self, model: nn.Module) -> None:
        """Replace the maps; the factors are not filled in yet."""
        for path, rank in self.ranks.items():
            slot = linear_at(model, path)
            if not 1 <= rank <= min(slot.in_features, slot.out_features):
                limit = min(slot.in_features, slot.out_features)
                raise LissomError(EDIT_MISFIT, f"rank {rank} is outside 1 to {limit}", place=path)
            device, dtype = device_and_dtype(slot)
            bias = slot.bias
            module = LowRankLinear(
                slot.in_features, slot.out_features, rank, bias=bias is not None, device=device, dtype=dtype
            )
            carry_bias(bias, module.bias)
            slot.swap(module.train(slot.module.training))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiplyOut(Edit):
    """Put a plain linear map in the place of one that is stored otherwise, as two thin ones are.

    linears: module paths. The weights come as tensors `PATH.weight` (out, in); the bias is carried over.
    """

    linears: tuple[str, ...]

    def apply(self, model: nn.Module) -> None:
        """Replace the maps; the weights are not filled in yet."""
        for path in self.linears:
            slot = linear_at(model, path)
            device, dtype = device_and_dtype(slot)
            bias = slot.bias
            module = nn.Linear(slot.in_features, slot.out_features, bias is not None, device=device, dtype=dtype)
            carry_bias(bias, module.bias)
            slot.swap(module.train(slot.module.training))


def table_at(model: nn.Module, path: str) -> nn.Embedding:
    """The plain embedding table at `path`. Raises LissomError LSM-451 when there is none."""
    table = model.get_submodule(path) if path in dissect(model).embeddings else None
    if type(table) is not nn.Embedding:  # a subclass computes something more
        raise LissomError(EDIT_MISFIT, "no plain embedding table stands here", place=path)
    return table


def store_linear(model: nn.Module, path: str, make: Callable[..., Int8Linear]) -> None:
    """Put a packed layer in the place of a linear map. make: called with its shape, `bias` and `device`."""
    slot = linear_at(model, path)
    device, dtype = device_and_dtype(slot)
    bias = slot.bias
    module = make(slot.in_features, slot.out_features, bias=bias is not None, device=device)
    module.dtype = dtype
    carry_bias(bias, module.bias)
    slot.swap(module.train(slot.module.training))


def store_table(model: nn.Module, path: str, make: Callable[..., Int8Embedding]) -> None:
    """Put a packed table in the place of a plain one. make: called with its shape, `padding_idx` and `device`."""
    table = table_at(model, path)
    module = make(table.num_embeddings, table.embedding_dim, padding_idx=table.padding_idx, device=table.weight.device)
    module.dtype = table.weight.dtype
    model.set_submodule(path, module.train(table.training))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pack(Edit):
    """Store linear maps and embedding tables as int8 with one scale a row, and compute with them as such.

    linears, embeddings: module paths. The numbers come as tensors `PATH.weight` (int8) and
        `PATH.weight_scale` (float32, one a row).
    static: whether the maps round their inputs with one fixed scale, which comes as `PATH.input_scale` (float32, ())
        and `PATH.input_zero` (uint8, ()); else with the range that inputs have while it runs.
    per_token: whether that is the range of each token, else of the whole tensor.
    """

    linears: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()
    static: bool = False
    per_token: bool = False

    def apply(self, model: nn.Module) -> None:
        """Replace the modules; codes and scales are not filled in yet."""
        if self.static and self.per_token:
            raise LissomError(EDIT_MISFIT, "inputs with a fixed scale have none a token", place="Pack")
        for path in self.linears:
            made = StaticInt8Linear if self.static else functools.partial(Int8Linear, per_token=self.per_token)
            store_linear(model, path, made)
        for path in self.embeddings:
            store_table(model, path, Int8Embedding)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackBits(Edit):
    """Store linear maps and embedding tables in `bits` bits a weight with one scale a row.

    linears, embeddings: module paths. The numbers come as tensors `PATH.weight` (int8, the bytes of
        `lissom.nn.low_bit.pack_codes`) and `PATH.weight_scale` (float32, one a row).
    rounds: whether the maps round their inputs to 8 bits and compute as int8, else in float.
    per_token: whether they do so with one scale a token, else one for the whole tensor.
    """

    bits: Literal[1, 2, 4, 8]
    linears: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()
    rounds: bool = True
    per_token: bool = False

    def apply(self, model: nn.Module) -> None:
        """Replace the modules; codes and scales are not filled in yet."""
        make = functools.partial(LowBitLinear, bits=self.bits, rounds=self.rounds, per_token=self.per_token)
        for path in self.linears:
            store_linear(model, path, make)
        for path in self.embeddings:
            store_table(model, path, functools.partial(LowBitEmbedding, bits=self.bits))
