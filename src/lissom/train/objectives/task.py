"""The task itself: the labels, by the loss that the model's own class defines."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from lissom.errors import LissomError
from lissom.train.objectives.base import Answers, Objective

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(Objective):
    """Cross-entropy with the labels (classes, tags, spans, next tokens), squared error for regression."""

    name: ClassVar[str] = "task"
    answers: ClassVar[bool] = True
    teacher: ClassVar[bool] = False
    labels: ClassVar[bool] = True
    source: ClassVar[str] = "the loss of the model's class in transformers"

    def begin(self, answers: Answers) -> nn.Module:
        """Nothing to train. Raises LSM-319 when the model has no loss for these rows."""
        if answers.student.get("loss") is None:
            cause = "the model computes no loss: the rows have no labels, or the model has no head for this task"
            raise LissomError(319, cause, place="task", remedy="Give labels, or learn only from a teacher.")
        return super().begin(answers)

    def value(self, answers: Answers, beside: nn.Module) -> Tensor:
        """The student's own loss, a mean over texts or labelled tokens."""
        loss: Tensor = answers.student["loss"]
        return loss.float()
