"""Walk the blocks of a model one by one, each on what its changed predecessors give it.

Source: Frantar et al. 2022, "GPTQ", section 4: a block is quantized on the outputs of the quantized ones before it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from lissom.anatomy import Anatomy
from lissom.anatomy.parts import Block


class Done(Exception):
    """The last block that was asked for was reached: the rest of the model need not run."""


class Case(NamedTuple):
    """One batch at one block: its arguments, its attention mask (rows, length) if any, and what it should give.

    clean: the arguments that it has in the unchanged model; `args` where the model is run whole.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    mask: Tensor | None
    target: Tensor
    clean: tuple[Any, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One block. run: run it on every batch as it is now; gives the attention mask (rows, length) before each.

    cases: a case for each batch; where `walk` was not asked for `targets`, none.
    """

    block: Block
    run: Callable[[Callable[[Tensor | None], None]], None]
    cases: Sequence[Case] = ()


def walk(anatomy: Anatomy, batches: Sequence[Mapping[str, Tensor]], *, targets: bool = False) -> Iterator[Step]:
    """Every block in order. Change a block before asking for the next, which then sees what the changed one gives.

    Holds the inputs of one block for all batches. A model of several stacks, or of blocks that run more than once, is
    run whole for each block instead, which takes time in the square of the depth. The model is left in eval mode.
    targets: also `cases`, with what the block gives in the unchanged model; where the model is run whole, what it gives
        before it is changed.
    """
    model = anatomy.model.eval()
    stack = anatomy.stacks[0]
    if len(anatomy.stacks) > 1 or list(stack.order) != list(range(len(stack.blocks))):
        for block in (block for one in anatomy.stacks for block in one.blocks):
            cases = _seen(model, model.get_submodule(block.path), batches) if targets else ()
            yield Step(block=block, run=lambda tell: _whole(model, batches, tell), cases=cases)
        return
    modules = [model.get_submodule(block.path) for block in stack.blocks]
    held = _held(model, modules, batches)
    masks = [batch.get("attention_mask") for batch in batches]
    hidden = [calls[0][0][0] for calls in held]
    clean = list(hidden)
    for index, block in enumerate(stack.blocks):

        def run(tell: Callable[[Tensor | None], None], index: int = index) -> None:
            for number, mask in enumerate(masks):
                tell(mask)
                _once(modules[index], held[number][index], hidden[number])

        before = clean
        if targets:
            clean = [_once(modules[index], held[number][index], one) for number, one in enumerate(before)]
        cases = [
            Case((hidden[number], *more), held[number][index][1], masks[number], clean[number], (before[number], *more))
            for number, more in enumerate(held[n][index][0][1:] for n in range(len(masks)))
            if targets
        ]
        yield Step(block=block, run=run, cases=cases)
        for number in range(len(held) if index + 1 < len(modules) else 0):
            hidden[number] = _once(modules[index], held[number][index], hidden[number])


def _whole(model: nn.Module, batches: Sequence[Mapping[str, Tensor]], tell: Callable[[Tensor | None], None]) -> None:
    with torch.no_grad():
        for batch in batches:
            tell(batch.get("attention_mask"))
            model(**batch)


def _seen(model: nn.Module, module: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> list[Case]:
    """Every use of a block while the whole model runs."""
    cases: list[Case] = []
    now: list[Tensor | None] = [None]

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        named = given_again(kwargs)
        cases.append(Case(args, named, now[0], out[0] if isinstance(out, tuple) else out, args))

    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        _whole(model, batches, lambda mask: now.__setitem__(0, mask))
    finally:
        handle.remove()
    return cases


def _once(module: nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]], hidden: Tensor) -> Tensor:
    with torch.no_grad():
        out = module(hidden, *call[0][1:], **call[1])
    return cast("Tensor", out[0] if isinstance(out, tuple) else out)


def _held(
    model: nn.Module, modules: Sequence[nn.Module], batches: Sequence[Mapping[str, Tensor]]
) -> list[list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """For each batch the arguments of each block. Only the first batch runs through blocks that give one tensor."""
    plain = [True] * len(modules)

    def note(index: int) -> Callable[..., None]:
        return lambda _module, _args, out: plain.__setitem__(index, isinstance(out, Tensor))

    hooks = [module.register_forward_hook(note(index)) for index, module in enumerate(modules)]
    try:
        first = [_caught(model, modules, batch) for batch in batches[:1]]
    finally:
        for one in hooks:
            one.remove()
    own = [vars(module).get("forward") for module in modules]
    try:
        if all(plain):  # what comes after depends on the arguments alone, so the blocks may hand on what they get
            for module in modules:
                module.forward = lambda hidden_states, *_args, **_named: hidden_states
        return first + [_caught(model, modules, batch) for batch in batches[1:]]
    finally:
        for module, forward in zip(modules, own, strict=True):
            vars(module).pop("forward", None)
            if forward is not None:
                module.forward = forward


def _caught(
    model: nn.Module, modules: Sequence[nn.Module], batch: Mapping[str, Tensor]
) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments of each block; of the hidden states only those of the first, the others are None."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = given_again(kwargs)
        first = named.pop("hidden_states", None) if not args else args[0]
        calls.append(((first if not calls else None, *args[1:]), named))
        if module is modules[-1]:
            raise Done

    hooks = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in modules]
    try:
        with uncached(model), torch.no_grad(), contextlib.suppress(Done):
            model(**batch)
    finally:
        for one in hooks:
            one.remove()
    return calls


def given_again(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a block for another call: without its cache, which the first one has filled."""
    return {name: None if name.startswith("past_key_value") else one for name, one in kwargs.items()}


@contextlib.contextmanager
def uncached(model: nn.Module) -> Iterator[None]:
    """Let `model` keep nothing of earlier tokens."""
    config = cast("Any", model.config)
    cached = getattr(config, "use_cache", None)
    try:
        if cached is not None:
            config.use_cache = False
        yield
    finally:
        if cached is not None:
            config.use_cache = cached
