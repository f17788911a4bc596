"""One model that works at several widths: its best heads and neurons are trained to answer without the others.

    L = L(whole model) + mean over `widths` of L(the share w of the heads and intermediate neurons of each layer)

First, for the share `rank` of the run, heads and neurons are ranked by E |sum x · dL/dx| over what they give. From then
on every batch is also answered by the narrower models, which learn the same objectives. At the end the model is cut to
the width `keep`.
Source: Hou et al. 2020, "DynaBERT", sections 2.1 and 2.2 (stage 1, adaptive width). Differs: the ranking is taken from
the first steps of the training itself; the weights stay where they are and a mask does what the paper's rewiring does;
one width is kept at the end, and depth is not adaptive (`keep_layers` before it makes a shallower model).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from lissom.train import processes
from lissom.train.during.base import Acting, During
from lissom.train.during.masks import Along, Plan, lowest
from lissom.train.during.units import Part, columns, input_side, parts, remove_empty
from lissom.train.during.weights import untransform

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lissom.edits import Editor
    from lissom.train.engine import Engine

_Width = Annotated[float, Field(gt=0, le=1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubNetworks(During):
    """Train the best heads and neurons to do without the others, at several widths at once."""

    name: ClassVar[str] = "sub_networks"
    source: ClassVar[str] = "Hou et al. 2020 (DynaBERT), sections 2.1 and 2.2"
    speed: ClassVar[str] = "faster in every runtime, by the heads and neurons that `keep` cuts away"
    order: ClassVar[int] = 30
    again: ClassVar[bool] = True

    widths: Annotated[
        tuple[_Width, ...],
        Field(min_length=1, description="shares of heads and neurons that are trained beside the whole"),
    ] = (0.75, 0.5, 0.25)
    keep: Annotated[float, Field(gt=0, le=1, description="the width that the model is cut to at the end")] = 0.5
    rank: Annotated[float, Field(gt=0, lt=1, description="share of the run in which heads and neurons are ranked")] = (
        0.1
    )

    def begin(self, editor: Editor, teacher: PreTrainedModel | None) -> Acting:
        """Put a mask, open at first, before every head and neuron."""
        return _Nesting(editor, self)


class Nested(nn.Module):
    """w -> w with the columns of all units but the best ones set to zero.

    scores: (units,), importance, higher is better.  fresh: (units,), what this process found since they were added up.
    width: share of the units that is open in training; in eval mode it is `final`.
    """

    scores: Tensor
    fresh: Tensor

    def __init__(self, part: Part, along: Along, final: float, device: torch.device) -> None:
        super().__init__()
        self.along, self.width, self.final = along, 1.0, final
        self.register_buffer("scores", torch.zeros(part.units, device=device))
        self.register_buffer("fresh", torch.zeros(part.units, device=device), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight without what is closed."""
        width = self.width if self.training else self.final
        if width == 1.0:
            return weight
        closed = len(self.scores) - max(1, int(width * len(self.scores) + 0.5))
        kept: Tensor = self.along((~lowest(self.scores, closed / len(self.scores))).to(weight.dtype))
        return weight * kept


class _Nesting(Acting):
    def __init__(self, editor: Editor, options: SubNetworks) -> None:
        self.model, self.options = editor.model, options
        self.ranking = True
        self.engine: Engine | None = None
        plan = Plan()
        device = next(self.model.parameters()).device
        self.handles = []
        for part in parts(editor.anatomy()):
            masks: list[Nested] = []
            for reader in part.readers:
                make = functools.partial(_nested, part, columns(reader, part), options.keep, device, masks)
                plan.add(input_side(reader), "weight", make)
                hook = reader.module.register_forward_pre_hook(self._note(part, masks))
                self.handles.append(hook)
        self.made = plan.carry_out()

    def _note(self, part: Part, masks: list[Nested]) -> Callable[..., None]:
        """Adds |sum x · dL/dx| of each text and unit to the scores, while the ranking lasts."""

        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0]
            if not (self.ranking and module.training and x.requires_grad):
                return

            def add(gradient: Tensor) -> None:
                share = (x.detach() * gradient).float().reshape(len(x), -1, part.units, part.size)
                for one in masks:
                    one.fresh += share.sum(dim=(1, 3)).abs().sum(dim=0)

            x.register_hook(add)

        return hook

    def at(self, progress: float) -> None:
        if self.ranking:  # after each step: a checkpoint takes the scores of the first process for all
            for one in cast("list[Nested]", self.made):
                one.scores += processes.summed(one.fresh)
                one.fresh.zero_()
        self.ranking = progress < self.options.rank

    @property
    def settled(self) -> bool:
        return not self.ranking

    def before(self, engine: Engine, inputs: Mapping[str, Tensor]) -> None:
        self.engine = engine

    def penalty(self) -> Tensor | None:
        if self.ranking or self.engine is None:
            return None
        losses = []
        for width in self.options.widths:
            self._open(width)
            losses.append(self.engine.again())
        self._open(1.0)
        return torch.stack(losses).mean()

    def _open(self, width: float) -> None:
        for one in self.made:
            one.width = width  # type: ignore[assignment]

    def bake(self) -> None:
        self._open(self.options.keep)
        self._out(bake=True)

    def end(self, editor: Editor) -> None:
        remove_empty(editor)

    def remove(self) -> None:
        self._out(bake=False)

    def _out(self, *, bake: bool) -> None:
        for handle in self.handles:
            handle.remove()
        untransform(self.model, self.made, bake=bake)


def _nested(
    part: Part, along: Along, final: float, device: torch.device, masks: list[Nested], _tensor: Tensor
) -> nn.Module:
    masks.append(Nested(part, along, final, device))
    return masks[-1]
