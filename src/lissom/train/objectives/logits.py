"""The teacher's answers: soft targets.

    L = T² · KL( softmax(t / T) ‖ softmax(s / T) )

with logits t of the teacher and s of the student. The gradients of soft targets shrink as 1 / T², hence the factor.
Source: Hinton, Vinyals, Dean 2015, section 2. The squared error between logits (Ba and Caruana 2014, eq. 1) is, up to a
factor and the mean of the logits, its limit for high T (Hinton et al., section 2.1).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from lissom.errors import LissomError
from lissom.train.objectives.base import Answers, Objective

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logits(Objective):
    """Learns the teacher's scores of the classes; for regression the teacher's numbers, by squared error."""

    name: ClassVar[str] = "logits"
    source: ClassVar[str] = "Hinton et al. 2015, section 2"

    temperature: Annotated[
        float, Field(gt=0, le=100, description="Softens the scores of both in kl: higher shows more of small scores.")
    ] = 2.0
    loss: Annotated[
        Literal["kl", "mse"], Field(description="kl between the distributions, or mse between the logits.")
    ] = "kl"

    def begin(self, answers: Answers) -> nn.Module:
        """Nothing to train. Raises LSM-319 when student and teacher answer with different numbers of classes."""
        student, teacher = answers.scores(answers.student), answers.scores(answers.taught)
        if student.shape != teacher.shape:
            cause = f"the student answers with {student.shape[-1]} values, the teacher with {teacher.shape[-1]}"
            raise LissomError(319, cause, place="logits", remedy="Use a teacher of the same task and vocabulary.")
        return super().begin(answers)

    def value(self, answers: Answers, beside: nn.Module) -> Tensor:
        """Mean over the rows of `Answers.scores`; mse is a mean over classes as well."""
        from torch.nn import functional

        student, teacher = answers.scores(answers.student), answers.scores(answers.taught)
        if not len(student):  # no labelled token in the batch; the mean of nothing would be NaN
            return student.sum()
        if self.loss == "mse" or answers.regression:
            return functional.mse_loss(student, teacher)
        soft = functional.log_softmax(teacher / self.temperature, dim=-1)
        mine = functional.log_softmax(student / self.temperature, dim=-1)
        return functional.kl_div(mine, soft, reduction="batchmean", log_target=True) * self.temperature**2
