"""Levels with trained scales before linear maps: what binary models do with the inputs of their maps."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from lissom.nn.fake_levels import LearnedLevels
from lissom.train import processes
from lissom.train.during.weights import original

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lissom.anatomy import Anatomy


class InputLevels:
    """Puts the inputs of `modules` on levels, until `remove`; modules that share a weight share them.

    They are part of the student: `MODULE.levels`.  positive: those modules whose inputs have levels from 0 on.
    """

    def __init__(self, modules: Iterable[nn.Module], bits: int, positive: Collection[nn.Module] = ()) -> None:
        self.of: dict[nn.Module, LearnedLevels] = {}
        made: dict[int, LearnedLevels] = {}
        for module in modules:
            weight = original(module)
            if id(weight) not in made:
                made[id(weight)] = LearnedLevels(
                    bits, positive=module in positive, agreed=processes.mean, device=weight.device
                )
            self.of[module] = made[id(weight)]
            module.add_module("levels", made[id(weight)])
        self.all = list(made.values())
        self.handles = [one.register_forward_pre_hook(levels.before) for one, levels in self.of.items()]

    def remove(self) -> None:
        """Take them out of the modules; `of` still has them."""
        for handle in self.handles:
            handle.remove()
        for module in self.of:
            module._modules.pop("levels", None)

    def stored(self, path: str, module: nn.Module) -> dict[str, Tensor]:
        """The tensors of the packed map at `path`."""
        return {f"{path}.levels.{name}": one for name, one in self.of[module].stored().items()}


def positive_inputs(anatomy: Anatomy) -> set[nn.Module]:
    """The maps whose inputs are not negative, or hardly: what an activation that is no gate gives to the second map."""
    blocks = [block for stack in anatomy.stacks for block in stack.blocks]
    return {block.ffn.down.module for block in blocks if block.ffn.gate is None}
