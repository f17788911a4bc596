"""Magnitude pruning while training: the smallest weights go, more and more of them, and the others make up for it.

    mask keeps the highest |w|; by: platon keeps the highest I · U with
    I <- 0.85 I + 0.15 |w · dL/dw|        U <- 0.95 U + 0.05 | |w · dL/dw| - I |

Removed weights are set to zero after each step. With magnitude they get no gradient and stay zero; with platon they get
one, and come back when they have become important. With rewind, whenever a mask takes more away, all other weights go
back to what they were at that share of the run: with 0 a lottery ticket, by `refreshes` rounds at most.
Sources: Zhu and Gupta 2017, section 3; See et al. 2016 (how to rank); Gordon et al. 2020 (Compressing BERT); Zhang et
al. 2022 (PLATON), section 3; Zafrir et al. 2021 (Prune once for all) for locked; Frankle and Carbin 2019, section 1,
for rewind. Ours: Zhu and Gupta keep the values behind their masks and may bring them back; with rewind the learning
rate falls over all rounds together, and the share that goes in each follows the cubic schedule.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from lissom.errors import LissomError
from lissom.train.during.base import Acting, During
from lissom.train.during.masks import Plan, Schedule, check_shares, lowest_of
from lissom.train.during.rewind import Rewind
from lissom.train.during.weights import original, trained, untransform

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lissom.anatomy import Anatomy
    from lissom.edits import Editor
    from lissom.train.engine import Engine

_log = logging.getLogger(__name__)
_IMPORTANCE, _UNCERTAINTY = 0.85, 0.95  # beta 1 and beta 2 of PLATON


@dataclasses.dataclass(frozen=True, kw_only=True)
class Magnitude(During):
    """Remove the share `sparsity` of the weights of the linear maps in the blocks, or keep the zeros that are there."""

    name: ClassVar[str] = "magnitude"
    source: ClassVar[str] = "Zhu and Gupta 2017, section 3; See et al. 2016; Zhang et al. 2022, section 3"
    speed: ClassVar[str] = "no faster: no dense engine skips zeros"
    order: ClassVar[int] = 70

    sparsity: Annotated[
        float, Field(ge=0, lt=1, description="share of the weights in the blocks that is removed at the end")
    ] = 0.5
    by: Annotated[
        Literal["magnitude", "platon"],
        Field(description="|w|, or PLATON's importance times its uncertainty, from gradients"),
    ] = "magnitude"
    across: Annotated[
        Literal["matrix", "model", "model-scaled"],
        Field(description="rank within each matrix, over the model, or there in units of each matrix's deviation"),
    ] = "matrix"
    locked: Annotated[bool, Field(description="keep the zeros that are there, and remove nothing else")] = False
    embeddings: Annotated[bool, Field(description="the embedding tables too")] = False
    warmup: Annotated[float, Field(ge=0, le=1, description="share of the run before anything is removed")] = 0.1
    cooldown: Annotated[
        float, Field(ge=0, le=1, description="share of the run at full sparsity; 1: from the start")
    ] = 0.2
    refreshes: Annotated[int, Field(ge=1, description="how often in the run the mask is chosen anew")] = 100
    rewind: Annotated[
        float | None,
        Field(
            ge=0, lt=1, description="share of the run to whose weights the others return with each mask; 0: the start"
        ),
    ] = None

    def check(self, anatomy: Anatomy, teacher: PreTrainedModel | None) -> None:
        """Raises LSM-318 when warmup and cooldown are more than the whole run, or rewind lies after warmup."""
        if self.cooldown < 1:
            check_shares(self.warmup, self.cooldown)
        if self.rewind is not None and self.rewind > self.warmup:
            cause = f"rewind {self.rewind:g} is later than warmup {self.warmup:g}, when the first weights go"
            raise LissomError(318, cause, place="while", remedy="Lower it.")

    def begin(self, editor: Editor, teacher: PreTrainedModel | None) -> Acting:
        """Put a mask before each weight that keeps all of it, or with `locked` all that is not zero."""
        return _Shrinking(editor, self)


class Mask(nn.Module):
    """w -> w · keep. With `importance` the gradient passes to removed weights too."""

    keep: Tensor
    importance: Tensor
    uncertainty: Tensor

    def __init__(self, tensor: Tensor, *, locked: bool, platon: bool) -> None:
        super().__init__()
        self.platon = platon
        keep = tensor.detach() != 0 if locked else torch.ones_like(tensor, dtype=torch.bool)
        self.register_buffer("keep", keep)
        if platon:
            self.register_buffer("importance", torch.zeros_like(tensor, requires_grad=False))
            self.register_buffer("uncertainty", torch.zeros_like(tensor, requires_grad=False))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with zeros where it is not kept."""
        masked = weight * self.keep
        return weight + (masked - weight).detach() if self.platon else masked

    def learn(self, weight: Tensor, gradient: Tensor) -> None:
        """Take in the gradient of a step."""
        now = (weight * gradient).abs()
        self.importance.lerp_(now, 1 - _IMPORTANCE)
        self.uncertainty.lerp_((now - self.importance).abs(), 1 - _UNCERTAINTY)


class _Shrinking(Acting):
    def __init__(self, editor: Editor, options: Magnitude) -> None:
        self.model, self.options = editor.model, options
        self.platon = options.by == "platon" and not options.locked
        self.schedule = Schedule(options.sparsity, options.warmup, options.cooldown, options.refreshes)
        self.masks: list[Mask] = []
        self.stored: list[Tensor] = []
        plan = Plan()
        for module in _modules(editor.anatomy(), options.embeddings):
            plan.add(module, "weight", self._mask)
        self.made = plan.carry_out()
        if options.locked and all(bool(one.keep.all()) for one in self.masks):
            _log.warning("magnitude is locked to the zeros that are there, and no weight is zero")
        self.rewind = None if options.rewind is None or options.locked else Rewind(self.model, options.rewind)
        self.gone = 0.0  # share that the last mask took away
        self.gradients: dict[int, Tensor] = {}
        hooks = enumerate(self.stored) if self.platon else ()
        self.hooks = [cast("Any", one).register_post_accumulate_grad_hook(self._note(i)) for i, one in hooks]

    def _mask(self, tensor: Tensor) -> nn.Module:
        self.stored.append(tensor)
        self.masks.append(Mask(tensor, locked=self.options.locked, platon=self.platon))
        return self.masks[-1]

    def _note(self, index: int) -> Any:
        def hook(tensor: Tensor) -> None:
            if tensor.grad is not None:
                self.gradients[index] = tensor.grad  # the same tensor is clipped before the step

        return hook

    @torch.no_grad()
    def at(self, progress: float) -> None:
        due = self.schedule.move(progress)
        if self.rewind is not None:
            self.rewind.at(progress)
        for index, gradient in self.gradients.items():
            self.masks[index].learn(self.stored[index], gradient)
        self.gradients.clear()
        if due and not self.options.locked:
            together = self.options.across != "matrix"
            gone = lowest_of(self._scores(), self.schedule.share, together=together)
            for mask, lost in zip(self.masks, gone, strict=True):
                mask.keep.copy_(~lost)
            if self.rewind is not None and self.schedule.share > self.gone:
                self.rewind.back()
            self.gone = self.schedule.share
        for mask, tensor in zip(self.masks, self.stored, strict=True):
            tensor.mul_(mask.keep)

    def before(self, engine: Engine, inputs: Mapping[str, Tensor]) -> None:
        if self.rewind is not None:
            self.rewind.before(engine)

    def _scores(self) -> list[Tensor]:
        if self.platon:
            found = [one.importance * one.uncertainty for one in self.masks]
        else:
            found = [one.detach().abs() for one in self.stored]
        if self.options.across == "model-scaled":
            found = [one / one[mask.keep].std().clamp_min(1e-12) for one, mask in zip(found, self.masks, strict=True)]
        return found

    @property
    def settled(self) -> bool:
        return self.options.locked or self.schedule.settled

    def state(self) -> dict[str, Tensor]:
        gone = {"gone": torch.tensor(self.gone, dtype=torch.float64)}
        return self.schedule.state() | (gone | self.rewind.state() if self.rewind is not None else {})

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.schedule.load(state)
        if self.rewind is not None:
            self.gone = float(state["gone"])
            self.rewind.load(state)

    def bake(self) -> None:
        self._unhook()
        untransform(self.model, self.made, bake=True)

    def remove(self) -> None:
        self._unhook()
        untransform(self.model, self.made, bake=False)

    def _unhook(self) -> None:
        for one in self.hooks:
            one.remove()
        self.gradients.clear()


def _modules(anatomy: Anatomy, embeddings: bool) -> list[nn.Module]:
    """Everything whose weight is masked; with an embedding table also whoever shares it."""
    found = [slot.module for slot in trained(anatomy)]
    if embeddings:
        tables = [anatomy.model.get_submodule(path) for path in anatomy.embeddings]
        tensors = {id(original(one)) for one in tables if isinstance(one, nn.Embedding)}
        owners = [one for one in anatomy.model.modules() if isinstance(getattr(one, "weight", None), Tensor)]
        found += [one for one in owners if id(original(one)) in tensors]
    return found
