"""Rows of blocks as functions of their own: what goes into them on texts, what they give, and how to run them again.

For what trains blocks one row after the other; unlike `lissom.stats.blocks` it keeps what comes out, takes several
blocks at once and runs with gradients. Each row is looked at by running the model up to its end.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lissom.anatomy import Anatomy
from lissom.anatomy.parts import Block
from lissom.stats.blocks import Done, given_again, uncached

_Given = tuple[tuple[Any, ...], dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
    """Blocks that run one after the other.

    again: whether the model runs the block more than once; it is then alone.
    """

    blocks: tuple[Block, ...]
    again: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """One use of a span on one batch.

    hidden, out: what went in and what came out, (rows, length, width).  mask: (rows, length), nonzero for real tokens.
    given: what else each block was given, in order, without caches.
    """

    hidden: Tensor
    out: Tensor
    mask: Tensor | None
    given: tuple[_Given, ...]

    def run(self, model: nn.Module, span: Span, hidden: Tensor) -> Tensor:
        """What the blocks of `model` give for other hidden states, with gradients."""
        for block, (args, kwargs) in zip(span.blocks, self.given, strict=True):
            found = model.get_submodule(block.path)(hidden, *args, **kwargs)
            hidden = found[0] if isinstance(found, tuple) else found
        return hidden

    def error(self, answer: Tensor, wanted: Tensor) -> Tensor:
        """Mean squared difference over the real tokens: ()."""
        if self.mask is not None and self.mask.shape == answer.shape[:-1]:
            real = self.mask.to(answer.device).bool()
            answer, wanted = answer[real], wanted[real]
        return torch.nn.functional.mse_loss(answer, wanted)


def spans(anatomy: Anatomy, blocks: int) -> list[Span]:
    """All blocks in rows of `blocks`, the last of a stack shorter. A block that runs more than once is alone."""
    found: list[Span] = []
    for stack in anatomy.stacks:
        again = list(stack.order) != list(range(len(stack.blocks)))
        size = 1 if again else blocks
        rows = (stack.blocks[start : start + size] for start in range(0, len(stack.blocks), size))
        found += [Span(blocks=row, again=again) for row in rows]
    return found


def calls(model: nn.Module, span: Span, batches: Sequence[Mapping[str, Tensor]]) -> list[Call]:
    """Every use of the span by `model`, as it is now, on the batches; without gradients, in the mode that it is in."""
    modules = [model.get_submodule(block.path) for block in span.blocks]
    found: list[Call] = []
    entered: list[tuple[Tensor, _Given]] = []
    mask: Tensor | None = None

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = given_again(kwargs)
        hidden = cast("Tensor", args[0] if args else named.pop("hidden_states"))
        entered.append((hidden, (args[1:], named)))

    def leave(_module: nn.Module, _args: Any, answer: Any) -> None:
        out = cast("Tensor", answer[0] if isinstance(answer, tuple) else answer)
        given = tuple(one for _, one in entered)
        found.append(Call(hidden=entered[0][0], out=out, mask=mask, given=given))
        entered.clear()
        if not span.again:
            raise Done

    hooks = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in modules]
    hooks.append(modules[-1].register_forward_hook(leave))
    try:
        for batch in batches:
            mask = batch.get("attention_mask")
            entered.clear()
            with uncached(model), torch.no_grad(), contextlib.suppress(Done):
                model(**batch)
    finally:
        for one in hooks:
            one.remove()
    return found
