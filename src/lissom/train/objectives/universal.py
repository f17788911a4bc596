"""The teacher's layers, compared where all layers speak alike: in the answers that a head would give from them.

    L = mean over student layers m of KL( t_m ‖ s_m ) + mean over teacher layers n of KL( t ‖ t_n )
    t_m = sum over n of a_mn · t_n,  a_mn = softmax over n of < z_m^S, z_n^T >

with t the teacher's own answer, z the scores that a trained linear head gives from a layer's states, s and t with an
index their softmax. The second part trains the teacher's heads and nothing else; no gradient flows into t_m.
Source: Wu et al. 2021 (Universal-KD), section 3. Differs: the teacher's heads are trained at the same time, from its
own answers, where the paper trains them beforehand; all of its layers are attended to.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from lissom.train.objectives.base import PADDED, Answers, Objective, Read
from lissom.train.objectives.layers import states
from lissom.train.objectives.positions import gather

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers.utils.generic import ModelOutput


@dataclasses.dataclass(frozen=True, kw_only=True)
class Universal(Objective):
    """Learns what each of the teacher's layers would answer."""

    name: ClassVar[str] = "universal"
    reads: ClassVar[frozenset[Read]] = frozenset({"hidden_states"})
    source: ClassVar[str] = "Wu et al. 2021 (Universal-KD), section 3"

    at: Annotated[
        Literal["first", "mean"],
        Field(description="What a text's heads read of a layer: its first token or the mean; tokens have their own."),
    ] = "mean"

    def begin(self, answers: Answers) -> nn.Module:
        """A head for each layer of both. Raises LSM-715 for a model without a single row of hidden states."""
        from torch import nn

        taught = answers.taught
        count = 2 if "start_logits" in taught else taught["logits"].shape[-1]
        beside = nn.Module()
        for name, output in (("student", answers.student), ("teacher", taught)):
            widths = [one.shape[-1] for one in states(output, self.name)[1:]]
            setattr(beside, name, nn.ModuleList(nn.Linear(width, count) for width in widths))
        return beside

    def value(self, answers: Answers, beside: nn.Module) -> Tensor:
        """Mean over layers and over the rows of `Answers.scores`; for a regression squared errors of the numbers."""
        import torch

        made: Any = beside
        ours = self._said(answers, answers.student, made.student)  # (layers, rows, classes)
        theirs = self._said(answers, answers.taught, made.teacher)
        if not ours.shape[1]:  # no labelled token in the batch; the mean of nothing would be NaN
            return ours.sum()
        final = answers.scores(answers.taught)
        kept = final > PADDED  # padding of questions says nothing about which layer is meant
        near = torch.einsum("mrc,nrc->mnr", ours * kept, theirs.detach() * kept).softmax(dim=1)
        target = torch.einsum("mnr,nrc->mrc", near, _answer(theirs.detach(), answers)).detach()
        return _gap(ours, target, answers) + _gap(theirs, _answer(final, answers).expand_as(theirs), answers)

    def _said(self, answers: Answers, output: ModelOutput, heads: nn.ModuleList) -> Tensor:
        import torch

        layers = states(output, self.name)[1:]
        return torch.stack([self._scores(answers, head, one) for head, one in zip(heads, layers, strict=True)])

    def _scores(self, answers: Answers, head: nn.Module, layer: Tensor) -> Tensor:
        """What the head says of a layer's states (batch, seq, width), in the form of the teacher's answer."""
        from transformers.modeling_outputs import QuestionAnsweringModelOutput, TokenClassifierOutput

        if "start_logits" in answers.taught:
            start, end = head(layer).unbind(dim=-1)
            return answers.scores(QuestionAnsweringModelOutput(start_logits=start, end_logits=end))
        texts = answers.taught["logits"].dim() == 2
        read = gather(layer, answers.mask, self.at) if texts else layer
        return answers.scores(TokenClassifierOutput(logits=head(read)))


def _answer(scores: Tensor, answers: Answers) -> Tensor:
    return scores if answers.regression else scores.softmax(dim=-1)


def _gap(mine: Tensor, wanted: Tensor, answers: Answers) -> Tensor:
    """Mean over layers and rows, both (layers, rows, classes)."""
    from torch.nn import functional

    if answers.regression:
        return functional.mse_loss(mine, wanted)
    mine, wanted = mine.flatten(end_dim=1), wanted.flatten(end_dim=1)
    return functional.kl_div(mine.log_softmax(dim=-1), wanted, reduction="batchmean")
