"""What acts on a student while it is trained: frozen options, and what one of them does in one run."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from lissom.train.objectives.base import Read

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from lissom.anatomy import Anatomy
    from lissom.edits import Editor
    from lissom.train.engine import Engine


class Acting:
    """One `During` at work in one run: it holds the hooks and whatever is trained beside the weights.

    Everything trained or remembered lies in modules inside the student, so that checkpoints and the best weights hold
    it; what cannot lie there goes through `state` and `load`. Apart from that it depends on `at` alone, so that a
    resumed run goes on as if nothing had happened.

    Order of calls: at(start); for every batch before and penalty; after every step at; then bake of all, end of all in
    the order of `During.order`; remove instead of bake when the run failed.
    """

    def at(self, progress: float) -> None:
        """The share `progress` (0 to 1) of the run is done: move schedules there."""

    @property
    def settled(self) -> bool:
        """Whether what it does has reached its final strength: only then weights may become the best ones."""
        return True

    @property
    def teacher(self) -> PreTrainedModel | None:
        """A model to ask in the place of the first teacher, which is never changed; None to ask that one."""
        return None

    def before(self, engine: Engine, inputs: Mapping[str, Tensor]) -> None:
        """Called with each training batch before student and teacher are asked."""

    def penalty(self) -> Tensor | None:
        """A loss to add to those of the objectives, a scalar that already has its weight; None for none."""
        return None

    def groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer of parameters in the student that are trained with options of their own (`lr`,
        `weight_decay`, `maximize`); all other parameters follow the step's learning rate."""
        return []

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold beside the student's own tensors."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""

    def bake(self) -> None:
        """Write what it does into the weights, and take its hooks out: the student is an ordinary model again."""
        self.remove()

    def end(self, editor: Editor) -> None:
        """Make it real by edits, after all have baked: fewer heads, packed weights, fewer layers."""

    def remove(self) -> None:
        """Take everything out of the student without a trace; its weights stay as they are. May be called twice."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class During(ABC):
    """Something that acts on the student while it is trained. Its fields are its options, as those of a method."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}

    name: ClassVar[str]  # as in `while`; the module has the same name
    source: ClassVar[str]
    speed: ClassVar[str]  # one sentence: what makes the result faster, or that it does not
    order: ClassVar[int]  # of `Acting.end`, the number of the stage that it stands for: 20 depth ... 80 bits
    teacher: ClassVar[bool] = False  # works with the teacher itself, not only with its answers
    again: ClassVar[bool] = False  # has the objectives answer the same batch several times
    differentiable: ClassVar[bool] = True  # what it puts into the student has a forward derivative
    differentiates: ClassVar[bool] = False  # needs that of the student
    labels: ClassVar[bool] = False  # looks at the loss of labels, whatever the objectives learn from
    alone: ClassVar[bool] = False  # nothing else may act beside it
    hides: ClassVar[frozenset[Read]] = frozenset()  # what the student's answers lack while it acts

    @property
    def packs(self) -> bool:
        """Whether its end packs weights, after which nothing can be trained."""
        return False

    @property
    def unpacked(self) -> bool:
        """Whether it rounds weights while they are trained, and leaves them in floating point at the end."""
        return False

    @property
    def held(self) -> float:
        """Share of the training rows that is kept back from training, for its own use: `Engine.held`."""
        return 0.0

    def check(self, anatomy: Anatomy, teacher: PreTrainedModel | None) -> None:
        """Raise `LissomError` when it cannot act on this student; nothing is computed."""

    @abstractmethod
    def begin(self, editor: Editor, teacher: PreTrainedModel | None) -> Acting:
        """Put it into the model of `editor`, in place.

        teacher: the model that the student learns from, never changed; None where there is none.
        """
