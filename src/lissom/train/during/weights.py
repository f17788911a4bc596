"""Put something between a stored weight and its use (a mask, a quantizer), and take it out again.

This is `torch.nn.utils.parametrize`, which chains several on one weight in the order in which they came: the modules
are part of the student, so their parameters are trained, saved and restored with it. A weight that several modules
share is transformed by one module, at each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lissom.anatomy import Anatomy, Slot, stored_maps


def trained(anatomy: Anatomy) -> Iterator[Slot]:
    """Every linear map in the blocks that has a weight of its own to train; of a low-rank one its two factors."""
    for slot in anatomy.linears():
        yield from stored_maps(slot)


def original(module: nn.Module, name: str = "weight") -> Tensor:
    """The stored tensor `name` of `module`, before anything that transforms it."""
    if parametrize.is_parametrized(module, name):
        return _chain(module, name).original
    return cast("Tensor", getattr(module, name))


def _chain(module: nn.Module, name: str) -> parametrize.ParametrizationList:
    return cast("Any", module).parametrizations[name]  # type: ignore[no-any-return]


def transform(
    modules: Iterable[nn.Module], make: Callable[[nn.Module, Tensor], nn.Module], name: str = "weight"
) -> list[nn.Module]:
    """Let a module that `make` gives stand between the tensor `name` of each of `modules` and its use.

    make: called with a module and its stored tensor, once for each distinct tensor; what it gives maps the tensor to
    one of the same shape.  Returns the modules made, for `untransform`.
    """
    made: dict[int, nn.Module] = {}
    for module in modules:
        tensor = original(module, name)
        if id(tensor) not in made:
            made[id(tensor)] = make(module, tensor).to(tensor.device)
        parametrize.register_parametrization(module, name, made[id(tensor)], unsafe=True)
    return list(made.values())


def untransform(model: nn.Module, made: Iterable[nn.Module], *, bake: bool, name: str = "weight") -> None:
    """Take the modules `made` out again. bake: write into each stored tensor what its module made of it.

    Of a chain, bake the first ones first.
    """
    gone = {id(one) for one in made}
    baked: set[int] = set()
    for module in [one for one in model.modules() if parametrize.is_parametrized(one, name)]:
        chain = _chain(module, name)
        for index in reversed([i for i, one in enumerate(chain) if id(one) in gone]):
            stored = chain.original
            if bake and id(stored) not in baked:
                with torch.no_grad():
                    stored.copy_(chain[index](stored))
                baked.add(id(stored))
            del chain[index]
        if not len(chain):
            parametrize.remove_parametrizations(module, name, leave_parametrized=False)
