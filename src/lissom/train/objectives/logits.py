"""The teacher's answers: soft targets.

    L = mean over rows of D(t, s)

with logits t of the teacher and s of the student. D is a divergence between their softened distributions (kl, reverse,
js, skew, skew_reverse: formulas and sources in `lissom.train.divergence`), or

    mse     max(0, mean over classes, or real tokens, of (s - φ · t)² - m)
    rank    for each pair i, j of the batch: KL( σ((t_i - t_j) / T) ‖ σ((s_i - s_j) / T) ) of the two outcomes

Sources: kl: Hinton, Vinyals, Dean 2015, section 2.  mse: Ba and Caruana 2014, eq. 1; it is, up to a factor and the mean
of the logits, the limit of kl for high T (Hinton et al., section 2.1).  scale φ: Jafari et al. 2021 (Annealing KD),
section 3, where φ rises from 1 / T_max to 1.  margin m: Jafari et al. 2022 (Continuation KD), whose m falls to 0.
rank: Burges et al. 2005 (RankNet), section 3, with the teacher's numbers for the targets, less the entropy of the
targets, so that agreement costs nothing.
Several teachers. mean: the mean of their softened probabilities (Liu et al. 2019, MT-DNN with distillation, section 3),
for mse and rank of their logits.  confidence: L = mean over teachers k and rows of D(t_k, s) / (1 + CE_k), with the
teacher's own cross-entropy with the label (Wu et al. 2021, MT-BERT, section 3); MT-BERT sums over the teachers.
examples: Li et al. 2021 (Dynamic KD), section 3.2, by the entropy of the student; first: sure with a rising share is a
curriculum from easy to hard (Bengio et al. 2009), by the entropy of the teacher.
Differs: φ and m move with every step, not with every epoch; the margin is taken from a mean over classes, not from a
sum.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, cast

from pydantic import Field

from lissom.errors import LissomError
from lissom.train.divergence import MIXING, Divergence, blended, divergence
from lissom.train.objectives.base import PADDED, Answers, Objective
from lissom.train.ramp import NotNegative, Part, Positive, Temperature, at

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lissom.anatomy import Anatomy

_PLACE = "logits"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logits(Objective):
    """Learns the teacher's scores of the classes; for regression the teacher's numbers, by squared error or order."""

    name: ClassVar[str] = "logits"
    answers: ClassVar[bool] = True
    source: ClassVar[str] = (
        "Hinton et al. 2015, section 2; GKD, MiniLLM and DistiLLM (2024); Annealing and Continuation KD (2021, 2022); "
        "RankNet (2005); MT-DNN (2019); MT-BERT (2021); Dynamic KD (2021)"
    )

    temperature: Annotated[
        Temperature,
        Field(description="Softens the scores of both, but not in mse: higher shows more of small scores."),
    ] = 2.0
    loss: Annotated[
        Literal["kl", "reverse", "js", "skew", "skew_reverse", "mse", "rank"],
        Field(description="A divergence of the distributions, mse between the logits, or rank: who comes before whom."),
    ] = "kl"
    mix: Annotated[
        float | None,
        Field(gt=0, lt=1, description="Share of the teacher in js (0.5), of the first side in skew (0.1)."),
    ] = None
    scale: Annotated[
        Positive,
        Field(description="In mse: factor of the teacher's logits; annealed by {start: 0.1, end: 1.0}."),
    ] = 1.0
    margin: Annotated[
        NotNegative,
        Field(description="In mse: a row's error up to which it counts nothing."),
    ] = 0.0
    teachers: Annotated[
        Literal["mean", "confidence"],
        Field(description="Of several: their mean, or each weighted row by row by how right or sure it is."),
    ] = "mean"
    examples: Annotated[
        Part,
        Field(description="Share of the batch that counts, or a ramp of it: {start: 0.3, end: 1.0}."),
    ] = 1.0
    first: Annotated[
        Literal["unsure", "sure"],
        Field(description="Which examples: where the student is least sure, or the teacher surest (a curriculum)."),
    ] = "unsure"
    tokens: Annotated[
        Literal["labelled", "all"],
        Field(description="Of the tokens of a text: those that have a label where some have one, or all."),
    ] = "labelled"

    def check(
        self, anatomy: Anatomy, tokenizer: PreTrainedTokenizerBase | None, teachers: Sequence[PreTrainedModel]
    ) -> None:
        """Raises LSM-319 for options that mean nothing together."""
        if self.mix is not None and self.loss not in MIXING:
            _refuse(f"mix belongs to {', '.join(MIXING)}, and the loss is {self.loss}", "Leave mix out.")
        if self.loss != "mse" and (self.scale != 1.0 or self.margin != 0.0):
            _refuse(f"scale and margin belong to mse, and the loss is {self.loss}", 'Write "loss: mse".')
        if self.first != "unsure" and self.examples == 1.0:
            _refuse("first chooses among examples, and all of them count", "Write a share or a ramp for examples.")
        if self.loss == "rank" and (self.teachers != "mean" or self.examples != 1.0):
            _refuse("rank compares pairs of rows; it weights and chooses no single ones", "Leave the option out.")

    def begin(self, answers: Answers) -> nn.Module:
        """Nothing to train.

        Raises LSM-319 when student and teacher answer with different numbers of classes, or when the options cannot
        work with what they answer.
        """
        student = answers.scores(answers.student)
        for teacher in map(answers.scores, answers.teachers):
            if student.shape != teacher.shape:
                cause = f"the student answers with {student.shape[-1]} values, the teacher with {teacher.shape[-1]}"
                _refuse(cause, "Use a teacher of the same task and vocabulary.")
        numbers = _numbers(answers, student)
        if self.loss == "rank" and student.shape[-1] != 1:
            _refuse(f"rank compares one number a text, and there are {student.shape[-1]}", "Use kl.")
        if numbers and self.loss not in ("kl", "mse", "rank"):
            _refuse(f"{self.loss} compares distributions, and the model answers with a number", "Use mse or rank.")
        if numbers and self.examples != 1.0:
            _refuse("a number does not tell how sure the student is", "Leave examples out.")
        if numbers and self.teachers == "confidence" and answers.labels is None:
            _refuse("a number does not tell how sure a teacher is, and there are no labels", "Use mean.")
        return super().begin(answers)

    def value(self, answers: Answers, beside: nn.Module) -> Tensor:
        """Mean over the rows of `Answers.scores` that count, or over pairs of them."""
        import torch

        answers = self._seen(answers)
        student = answers.scores(answers.student)
        teachers = [answers.scores(one) for one in answers.teachers]
        if not len(student):  # no labelled token in the batch; the mean of nothing would be NaN
            return student.sum()
        temperature = at(self.temperature, answers.progress)
        numbers = self.loss in ("mse", "rank") or _numbers(answers, student)
        target = torch.stack(teachers).mean(dim=0) if numbers else blended(teachers, temperature)
        if self.loss == "rank":
            return ranked(student[:, 0], target[:, 0], temperature)
        if self.teachers == "confidence":
            each = [self._distances(student, one, answers) * _trust(one, answers) for one in teachers]
            rows = torch.stack(each).mean(dim=0)
        else:
            rows = self._distances(student, target, answers)
        if (share := at(self.examples, answers.progress)) < 1:
            rows = rows[_most(_entropy(student) if self.first == "unsure" else -_entropy(target), share)]
        return rows.mean()

    def _seen(self, answers: Answers) -> Answers:
        """`answers`, without the labels of tokens where all tokens count."""
        labels = answers.inputs.get("labels")
        if self.tokens == "labelled" or labels is None or labels.dim() == 1:
            return answers
        inputs = {name: one for name, one in answers.inputs.items() if name != "labels"}
        return dataclasses.replace(answers, inputs=inputs)

    def _distances(self, student: Tensor, teacher: Tensor, answers: Answers) -> Tensor:
        """(n,)"""
        if self.loss in ("mse", "rank") or _numbers(answers, student):
            counted = teacher > PADDED  # positions that are no answer to a question
            error = (student - at(self.scale, answers.progress) * teacher).masked_fill(~counted, 0.0).square()
            error = error.sum(dim=-1) / counted.sum(dim=-1).clamp_min(1)
            return (error - at(self.margin, answers.progress)).clamp_min(0)
        kind = cast("Divergence", self.loss)
        return divergence(student, teacher, kind, at(self.temperature, answers.progress), self.mix)


def ranked(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """RankNet's loss of numbers (n,), a mean over pairs; 0 where all differences are equal, or for one number."""
    import torch
    from torch.nn import functional

    one, other = torch.triu_indices(len(student), len(student), offset=1, device=student.device)
    if not len(one):
        return student.sum() * 0
    mine, wanted = ((x[one] - x[other]) / temperature for x in (student, teacher))
    probability = wanted.sigmoid()
    crossed = functional.binary_cross_entropy_with_logits(mine, probability)
    return crossed - functional.binary_cross_entropy_with_logits(wanted, probability)


def _numbers(answers: Answers, scores: Tensor) -> bool:
    """Whether the answers are numbers: a distribution over one class says nothing."""
    return answers.regression or scores.shape[-1] == 1


def _trust(teacher: Tensor, answers: Answers) -> Tensor:
    """1 / (1 + error) of each row, (n,): against the labels, or against the class that the teacher holds likeliest."""
    from torch.nn import functional

    labels = answers.labels
    if _numbers(answers, teacher) and labels is not None:
        error = (teacher - labels.to(teacher).reshape(teacher.shape)).square().mean(dim=-1)
    elif labels is not None:
        error = functional.cross_entropy(teacher, labels, reduction="none")
    else:
        error = -functional.log_softmax(teacher, dim=-1).amax(dim=-1)
    return 1 / (1 + error)


def _entropy(scores: Tensor) -> Tensor:
    """How unsure each row is, (n,), in nats; scores: (n, classes), logits or log-probabilities."""
    import torch
    from torch.nn import functional

    with torch.no_grad():
        likely = functional.log_softmax(scores, dim=-1)
        return -(likely.exp() * likely).sum(dim=-1)


def _most(scores: Tensor, share: float) -> Tensor:
    """The numbers of the `share` of `scores` (n,) that are the highest, at least one."""
    return scores.topk(max(1, math.ceil(share * len(scores)))).indices


def _refuse(cause: str, remedy: str) -> None:
    raise LissomError(319, cause, place=_PLACE, remedy=remedy)
