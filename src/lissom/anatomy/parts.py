"""The parts of a model, found: stacks of blocks, their attention and feed-forward slots, and what lies outside."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from torch import nn

from lissom.anatomy.slot import Slot
from lissom.errors import LissomError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attention:
    """One attention layer. Weights: q (heads * head_dim, hidden), k and v (kv_heads * head_dim, hidden), o back.

    path: the module that holds the head counts.
    heads, kv_heads: query heads and key/value heads; with grouped queries, heads is a multiple of kv_heads.
    extra: further slots whose outputs are laid out by head (DeBERTa's position projections).
    head_bias: path of an embedding with one column a head, shared by all blocks of the stack; "" if there is none.
    tied: all blocks of the stack must keep the same heads, because they share one position bias.
    """

    path: str
    q: Slot
    k: Slot
    v: Slot
    o: Slot
    heads: int
    kv_heads: int
    head_dim: int
    extra: tuple[Slot, ...] = ()
    head_bias: str = ""
    tied: bool = False

    def slots(self) -> tuple[Slot, ...]:
        """All slots, in a fixed order."""
        return (self.q, self.k, self.v, self.o, *self.extra)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ffn:
    """One feed-forward layer: down(act(up(x))), or down(act(gate(x)) * up(x)). up and gate: (width, hidden)."""

    up: Slot
    down: Slot
    width: int
    gate: Slot | None = None

    def slots(self) -> tuple[Slot, ...]:
        """All slots, in a fixed order."""
        return (self.up, self.down) if self.gate is None else (self.up, self.gate, self.down)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """One transformer layer of a stack."""

    index: int
    path: str
    attention: Attention
    ffn: Ffn
    cross: Attention | None = None
    norms: tuple[str, ...] = ()

    def slots(self) -> tuple[Slot, ...]:
        """All slots, in a fixed order."""
        cross = () if self.cross is None else self.cross.slots()
        return (*self.attention.slots(), *cross, *self.ffn.slots())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stack:
    """The blocks of an encoder or decoder.

    blocks: every block once.  order: block numbers in the order of execution (ALBERT runs one block many times).
    depth_key: the name in the model's config that counts the executed blocks.
    """

    name: str
    path: str
    blocks: tuple[Block, ...]
    order: tuple[int, ...]
    depth_key: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Where the parts of a model are.

    embeddings: paths of the tables that are looked up by token, position or type.
    head: the linear maps outside the blocks (pooler, classifier, ...).
    """

    family: str
    model: nn.Module
    stacks: tuple[Stack, ...]
    embeddings: tuple[str, ...]
    head: tuple[Slot, ...]

    def stack(self, name: str) -> Stack:
        """The stack called `name` ("encoder" or "decoder"); "" means the only one.

        Raises LissomError LSM-712 if there is no such stack.
        """
        if not name and len(self.stacks) == 1:
            return self.stacks[0]
        for stack in self.stacks:
            if stack.name == name:
                return stack
        if not self.stacks:
            raise LissomError(712, f"{self.family} has no layers", remedy="Work on the model that it learns from.")
        known = ", ".join(one.name for one in self.stacks)
        raise LissomError(712, f'{self.family} has no stack "{name}"', remedy=f"Name one of: {known}.")

    def slots(self) -> Iterator[Slot]:
        """Every slot in the blocks, in a fixed order. Fused projections appear as several slots."""
        for stack in self.stacks:
            for block in stack.blocks:
                yield from block.slots()

    def linears(self) -> Iterator[Slot]:
        """Every linear module in the blocks once, as a whole: what factorization and quantization replace."""
        seen: set[str] = set()
        for slot in self.slots():
            if slot.path not in seen:
                seen.add(slot.path)
                yield Slot(self.model, slot.path)
