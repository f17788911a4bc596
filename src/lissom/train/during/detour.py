"""Let something else run in the place of a layer while a model trains, and take it out again.

A detour stands on the instance of a block, before its `forward`: it adds no module, so no name of the state changes,
and whoever watches the block sees what the detour gives. In eval mode, but for a detour that says otherwise, and where
the block fills a cache of keys and values (the model generates), the block runs as ever.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import Cache

Detour = Callable[..., Any]
"""Called in the place of a block with the block's own forward and its arguments; gives what the block would."""


class _Forward:
    """The forward of one block with its detours; the last one that came is asked first."""

    def __init__(self, block: nn.Module) -> None:
        self.block, self.plain = block, block.forward
        self.detours: list[Detour] = []
        self.always: list[Detour] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call: Callable[..., Any] = self.plain
        if not any(isinstance(one, Cache) for one in (*args, *kwargs.values())):
            for detour in self.detours if self.block.training else self.always:
                call = functools.partial(detour, call)
        return call(*args, **kwargs)


def add(block: nn.Module, detour: Detour, *, always: bool = False) -> None:
    """Let `detour` run in the place of `block`, and of the detours that are there already. always: in eval mode too."""
    if not isinstance(block.forward, _Forward):
        block.forward = _Forward(block)
    block.forward.detours.append(detour)
    if always:
        block.forward.always.append(detour)


def take_out(block: nn.Module, detour: Detour) -> None:
    """Take `detour` out of `block`; nothing happens when it is not there."""
    there = block.forward
    if not isinstance(there, _Forward):
        return
    for found in (there.detours, there.always):
        found[:] = [one for one in found if one is not detour]
    if not there.detours:
        del block.forward
        if block.forward != there.plain:  # somebody else's, which stood on the instance before
            block.forward = there.plain


def bind(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.BoundArguments:
    """The arguments of a call of `block` by name; the hidden states are the first."""
    return inspect.signature(functools.partial(type(block).forward, block)).bind(*args, **kwargs)


def states(output: Any) -> Tensor:
    """The hidden states (batch, seq, width) in what a block gave."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found
