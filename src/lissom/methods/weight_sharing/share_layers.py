"""Let the layers of a stack use `unique` sets of weights: fewer parameters, the same number of executed layers.

Sources: Takase and Kiyono 2021, "Lessons on parameter sharing across layers", section 3 (sequence, cycle,
cycle-reversed); Lan et al. 2020, "ALBERT" (one set for all).
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lissom import edits
from lissom.anatomy import Anatomy, Stack
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Stage


def sets(layers: int, unique: int, order: str) -> tuple[int, ...]:
    """The set of weights, 0 to unique - 1, that each layer uses."""
    if order == "sequence":
        return tuple(i * unique // layers for i in range(layers))
    if order == "cycle":
        return tuple(i % unique for i in range(layers))
    turn = layers - unique  # the last `unique` layers run the sets backwards
    return tuple(i % unique if i < turn else layers - 1 - i for i in range(layers))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShareLayers(Method):
    """Share weights between layers so that `unique` sets are left."""

    name: ClassVar[str] = "share_layers"
    stage: ClassVar[Stage] = Stage.SHARE
    speed: ClassVar[str] = "not faster: every layer is still executed; smaller on disk and in memory"
    source: ClassVar[str] = "Takase and Kiyono 2021, section 3; Lan et al. 2020"

    unique: Annotated[int, Field(ge=1, description="sets of weights that are left")] = 2
    order: Annotated[
        Literal["sequence", "cycle", "cycle-reversed"], Field(description="which layers use the same set")
    ] = "cycle"
    start: Annotated[
        Literal["first", "average"], Field(description="values of a set: those of its first layer, or their mean")
    ] = "first"
    stack: Annotated[str, Field(description="encoder or decoder; may be left out where there is only one")] = ""

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-318 when there are fewer layers than sets."""
        layers = len(anatomy.stack(self.stack).blocks)
        if self.unique > layers:
            raise LissomError(318, f"{self.unique} sets of weights for {layers} layers")

    def apply(self, editor: Editor, given: Given) -> None:
        """Choose the values of each set, then tie the layers."""
        stack = editor.anatomy().stack(self.stack)
        used = sets(len(stack.blocks), self.unique, self.order)
        source = tuple(used.index(one) for one in used)
        if source == tuple(range(len(source))):
            return
        tensors = _means(editor, stack, source) if self.start == "average" else {}
        editor.apply(edits.ShareLayers(stack=stack.name, source=source), tensors)


def _means(editor: Editor, stack: Stack, source: tuple[int, ...]) -> dict[str, Tensor]:
    """Full name in each source layer -> mean over the layers that will use it."""
    states = [editor.model.get_submodule(block.path).state_dict() for block in stack.blocks]
    means: dict[str, Tensor] = {}
    for root in sorted(set(source)):
        group = [states[i] for i, one in enumerate(source) if one == root]
        for name, value in states[root].items():
            others = [one[name] for one in group if name in one]
            if value.is_floating_point():
                means[f"{stack.blocks[root].path}.{name}"] = torch.stack(others).mean(dim=0)
    return means
