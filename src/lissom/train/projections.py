"""What a model's attention layers hand to the product of queries and keys: their projections, layer by layer."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from lissom.anatomy import dissect
from lissom.errors import LissomError

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Projections:
    """Queries, keys and values of one self-attention layer, before rotary positions if the family has them.

    q: (batch, seq, heads · head_dim).  k, v: (batch, seq, kv_heads · head_dim).
    causal: no query sees later keys.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    heads: int
    kv_heads: int
    head_dim: int
    causal: bool = False


class Watch(contextlib.ExitStack):
    """Records the projections of the first stack of `model`, as long as it is open.

    start: record the next forward.  take: what it recorded, in the order of execution.
    Raises LissomError LSM-715 for a model without layers.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._on = False
        self._calls: list[Tensor] = []
        self._layers: list[tuple[int, int, int]] = []
        anatomy = dissect(model)
        if not anatomy.stacks:
            raise LissomError(715, f"{anatomy.family} has no attention to learn from", remedy="Learn from logits.")
        stack = anatomy.stacks[0]
        self._causal = stack.name == "decoder"
        for block in stack.blocks:
            attention = block.attention
            layer = (attention.heads, attention.kv_heads, attention.head_dim)
            for slot in (attention.q, attention.k, attention.v):
                self.callback(slot.watch(self._note(layer if slot is attention.q else None)).remove)

    def _note(self, layer: tuple[int, int, int] | None) -> Callable[[Tensor, Tensor], None]:
        def fn(_x: Tensor, y: Tensor) -> None:
            if not self._on:
                return
            if layer is not None:
                self._layers.append(layer)
            self._calls.append(y)

        return fn

    def start(self) -> None:
        """Forget what was recorded, and record from here on."""
        self._calls.clear()
        self._layers.clear()
        self._on = True

    def take(self) -> tuple[Projections, ...]:
        """The projections of each executed layer; recording stops."""
        calls, layers = list(self._calls), list(self._layers)
        self.start()
        self._on = False
        return tuple(
            Projections(q=q, k=k, v=v, heads=heads, kv_heads=kv_heads, head_dim=head_dim, causal=self._causal)
            for (heads, kv_heads, head_dim), q, k, v in zip(layers, calls[::3], calls[1::3], calls[2::3], strict=True)
        )
