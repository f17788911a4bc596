"""LayerDrop: in training each layer is left out with a probability, so that the model bears the loss of layers.

    x_(l+1) = x_l with probability p, else layer_l(x_l)

drawn anew for each layer and each forward; evaluation runs all layers, or those that `keep` leaves, so that the best
weights are the best ones of the model that is left. Afterwards a shallower model can be cut out of the trained one
without further tuning.
Source: Fan, Grave, Joulin 2020 (LayerDrop), section 3.1 for training, 3.2 for the layers that stay ("every other",
which it finds best); p = 1 - kept share where one depth is aimed at. As there, nothing is rescaled: neither states in
training nor layers at inference. Differs: layers that stay are at equal distances for any count, where the paper drops
each d with d ≡ 0 mod ⌊1 / p⌋. In families whose first layer computes the position bias of the whole stack that layer
still runs when it is dropped, and only its states are thrown away.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from lissom import edits
from lissom.anatomy.dissect import stack_record
from lissom.errors import LissomError
from lissom.train.during import detour
from lissom.train.during.base import Acting, During
from lissom.train.objectives.base import Read
from lissom.train.ramp import Probability, at

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from lissom.anatomy import Anatomy, Stack
    from lissom.edits import Editor


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerDrop(During):
    """Leaves layers out at random while it trains; at the end keeps all of them or `keep`."""

    name: ClassVar[str] = "layer_drop"
    source: ClassVar[str] = "Fan et al. 2020 (LayerDrop), sections 3.1 and 3.2"
    speed: ClassVar[str] = "with keep faster in every runtime, in proportion to the layers dropped; else no faster"
    order: ClassVar[int] = 20
    hides: ClassVar[frozenset[Read]] = frozenset({"attentions", "projections"})

    probability: Annotated[
        Probability,
        Field(description="of leaving a layer out, drawn in each forward; or a ramp over the run."),
    ] = 0.2
    keep: Annotated[
        Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] | None,
        Field(description="how many layers of each stack stay at the end, or which share of them; null: all."),
    ] = None
    by: Annotated[Literal["every-other", "first", "last"], Field(description="which layers stay.")] = "every-other"
    stack: Annotated[str, Field(description="encoder or decoder; left out: every stack.")] = ""

    def check(self, anatomy: Anatomy, teacher: PreTrainedModel | None) -> None:
        """Raises LSM-318 when these layers cannot be kept, LSM-712 for a stack that is not there."""
        for stack in self._stacks(anatomy):
            layers = len(stack.order)
            if self.keep is None:
                continue
            count = edits.how_many(self.keep, layers)
            if count > layers:
                cause = f"keep {self.keep} of the {layers} layers of {stack.path}"
                raise LissomError(318, cause, place="layer_drop.keep", remedy=f"Keep at most {layers}.")
            try:
                edits.check_depth(anatomy.model, stack, edits.chosen(self.by, count, layers))
            except LissomError as error:
                raise LissomError(318, error.cause, place="layer_drop.keep", remedy=error.remedy) from error

    def begin(self, editor: Editor, teacher: PreTrainedModel | None) -> Acting:
        """Put a detour on each layer. Raises as `check` does where a step before this one changed what can be kept."""
        self.check(editor.anatomy(), teacher)
        return _Dropping(editor.model, self._stacks(editor.anatomy()), self)

    def _stacks(self, anatomy: Anatomy) -> tuple[Stack, ...]:
        return anatomy.stacks if anatomy.stacks and not self.stack else (anatomy.stack(self.stack),)


class _Dropping(Acting):
    def __init__(self, model: PreTrainedModel, stacks: tuple[Stack, ...], options: LayerDrop) -> None:
        self.options = options
        self.kept = {stack.name: self._kept(len(stack.order)) for stack in stacks}
        self.probability = at(options.probability, 0.0)
        self.detours: list[tuple[nn.Module, detour.Detour]] = []
        for stack in stacks:
            gives = stack_record(model, stack.name).gives
            for block in stack.blocks:
                module = model.get_submodule(block.path)
                stays = [i in self.kept[stack.name] for i, one in enumerate(stack.order) if one == block.index]
                around = self._around(module, gives, stays, runs=block.index == 0 and any(gives or ()))
                detour.add(module, around, always=not all(stays))
                self.detours.append((module, around))

    def _kept(self, layers: int) -> tuple[int, ...]:
        """The numbers of the layers that stay."""
        keep = self.options.keep
        return edits.chosen(self.options.by, layers if keep is None else edits.how_many(keep, layers), layers)

    def _around(
        self, block: nn.Module, gives: tuple[str, ...] | None, stays: Sequence[bool], *, runs: bool
    ) -> detour.Detour:
        """stays: whether the block runs in evaluation, each time that it is asked in a forward.
        runs: what the block gives beside its states is needed by the layers after it."""
        turns = itertools.cycle(stays)

        def around(forward: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            if torch.rand((), device="cpu") >= self.probability if block.training else next(turns):
                return forward(*args, **kwargs)
            states: Tensor = args[0]
            if runs:
                return (states, *forward(*args, **kwargs)[1:])
            if gives is None:
                return states
            given = detour.bind(block, args, kwargs).arguments
            return (states, *(given.get(name) for name in gives))

        return around

    def at(self, progress: float) -> None:
        self.probability = at(self.options.probability, progress)

    def remove(self) -> None:
        for block, around in self.detours:
            detour.take_out(block, around)
        self.detours.clear()

    def end(self, editor: Editor) -> None:
        """Drop the layers that are not kept."""
        for name, kept in self.kept.items():
            if len(kept) < len(editor.anatomy().stack(name).order):
                editor.apply(edits.KeepLayers(stack=name, keep=kept))
