"""Walk the blocks of a model one by one, each on what its changed predecessors give it.

Source: Frantar et al. 2022, "GPTQ", section 4: a block is quantized on the outputs of the quantized ones before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lissom.anatomy import Anatomy
from lissom.anatomy.parts import Block


class _Done(Exception):
    """The last block was reached: the rest of the model need not run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One block. run: run it on every batch as it is now; gives the attention mask (rows, length) before each."""

    block: Block
    run: Callable[[Callable[[Tensor | None], None]], None]


def walk(anatomy: Anatomy, batches: Sequence[Mapping[str, Tensor]]) -> Iterator[Step]:
    """Every block in order. Change a block before asking for the next, which then sees what the changed one gives.

    Holds the inputs of one block for all batches. A model of several stacks, or of blocks that run more than once, is
    run whole for each block instead, which takes time in the square of the depth. The model is left in eval mode.
    """
    model = anatomy.model.eval()
    stack = anatomy.stacks[0]
    if len(anatomy.stacks) > 1 or list(stack.order) != list(range(len(stack.blocks))):
        for block in (block for one in anatomy.stacks for block in one.blocks):
            yield Step(block=block, run=lambda tell: _whole(model, batches, tell))
        return
    modules = [model.get_submodule(block.path) for block in stack.blocks]
    held = [_caught(model, modules, batch) for batch in batches]
    masks = [batch.get("attention_mask") for batch in batches]
    hidden = [calls[0][0][0] for calls in held]
    for index, block in enumerate(stack.blocks):

        def run(tell: Callable[[Tensor | None], None], index: int = index) -> None:
            for number, mask in enumerate(masks):
                tell(mask)
                _once(modules[index], held[number][index], hidden[number])

        yield Step(block=block, run=run)
        for number in range(len(held)):
            hidden[number] = _once(modules[index], held[number][index], hidden[number])


def _whole(model: nn.Module, batches: Sequence[Mapping[str, Tensor]], tell: Callable[[Tensor | None], None]) -> None:
    with torch.no_grad():
        for batch in batches:
            tell(batch.get("attention_mask"))
            model(**batch)


def _once(module: nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]], hidden: Tensor) -> Tensor:
    with torch.no_grad():
        out = module(hidden, *call[0][1:], **call[1])
    return cast("Tensor", out[0] if isinstance(out, tuple) else out)


def _caught(
    model: nn.Module, modules: Sequence[nn.Module], batch: Mapping[str, Tensor]
) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments of each block; of the hidden states only those of the first, the others are None."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = {name: None if name.startswith("past_key_value") else one for name, one in kwargs.items()}
        first = named.pop("hidden_states", None) if not args else args[0]
        calls.append(((first if not calls else None, *args[1:]), named))
        if module is modules[-1]:
            raise _Done

    config = cast("Any", model.config)
    cached = getattr(config, "use_cache", None)
    hooks = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in modules]
    try:
        if cached is not None:
            config.use_cache = False
        with torch.no_grad():
            model(**batch)
    except _Done:
        pass
    finally:
        if cached is not None:
            config.use_cache = cached
        for one in hooks:
            one.remove()
    return calls
