"""The answers of exits: labels, or what the last layer answers.

    L = sum over exits i of w_i · l_i / sum of w    l_i = (1 - s) · CE(y, z_i) + s · T² · KL( p(z_N / T) ‖ p(z_i / T) )

with logits z_i of exit i and z_N of the last layer, which no gradient enters by the second term; squared errors for
regression. With `last` the last layer is one of the exits, and has w_N · CE(y, z_N). uniform: w_i = 1; depth: w_i = i,
the layers below it.

A judge, if the exits have one, learns to tell whether an answer is right: the squared distance of its u_i to 1 where
argmax z_i = y, else 0; for regression to 1 - tanh|y - z_i|; no gradient enters the states by it.

Sources: uniform with last: Teerapittayanon et al. 2016 (BranchyNet), eq. 3, with equal weights. depth: Zhou et al. 2020
(PABEE), eq. 7. backbone: frozen: Xin et al. 2020 (DeeBERT), section 3, the second stage. distil s = 1, frozen: Liu et
al. 2020 (FastBERT), section 3.3. distil with labels: Geng et al. 2021 (RomeBERT), without its projection of gradients.
alternate, judge: Xin et al. 2021 (BERxiT), sections 4.1 and 4.2; there the judge's loss is summed with the others, and
its gradient enters the states.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, cast

from pydantic import Field

from lissom.edits import exits_of
from lissom.errors import LissomError
from lissom.train.objectives.base import Answers, Objective

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lissom.anatomy import Anatomy
    from lissom.nn.exits import Exits


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExitAnswers(Objective):
    """What each exit of a model answers, learnt from the labels or from its own last layer."""

    name: ClassVar[str] = "exits"
    teacher: ClassVar[bool] = False
    answers: ClassVar[bool] = True
    source: ClassVar[str] = (
        "BranchyNet (2016), eq. 3; PABEE (2020), eq. 7; DeeBERT (2020), section 3; FastBERT (2020), section 3.3; "
        "BERxiT (2021), section 4; RomeBERT (2021)"
    )

    weights: Annotated[
        Literal["uniform", "depth"],
        Field(description="How the exits are weighted against each other: alike, or by the layers below them."),
    ] = "depth"
    last: Annotated[bool, Field(description="Whether the last layer's loss on the labels is one of the sum.")] = True
    backbone: Annotated[
        Literal["train", "frozen"],
        Field(description="Whether the losses of exits train the layers too, or the heads alone."),
    ] = "train"
    distil: Annotated[
        float, Field(ge=0, le=1, description="Share that an exit learns from the last layer; the rest from labels.")
    ] = 0.0
    temperature: Annotated[float, Field(gt=0, le=100, description="Softens both sides of that share.")] = 1.0
    alternate: Annotated[bool, Field(description="Every other batch, from the first, trains the last layer alone.")] = (
        False
    )

    def check(
        self, anatomy: Anatomy, tokenizer: PreTrainedTokenizerBase | None, teachers: Sequence[PreTrainedModel]
    ) -> None:
        """Raises LSM-319 where nothing would be trained by every other batch."""
        if self.alternate and (not self.last or self.backbone == "frozen"):
            cause = "alternate trains the last layer by every other batch, and last or backbone leave it out"
            raise LissomError(319, cause, place="exits", remedy="Use last: true and backbone: train.")

    def begin(self, answers: Answers) -> nn.Module:
        """Counts batches where they alternate. Raises LSM-319 without exits, or labels where they are learnt."""
        import torch
        from torch import nn

        if answers.model is None or exits_of(answers.model) is None:
            raise LissomError(319, "the model has no exits", place="exits", remedy="Put `add_exits` before `tune`.")
        if answers.labels is None and (self.distil < 1 or self._last):
            cause = "exits learn from labels, and the rows have none"
            raise LissomError(319, cause, place="exits", remedy="Use distil: 1.0 and last: false, or give labels.")
        made = nn.Module()
        if self.alternate:
            made.register_buffer("batches", torch.zeros((), dtype=torch.int64, device=answers.mask.device))
        return made

    @property
    def _last(self) -> bool:
        """Whether the last layer learns."""
        return self.last and self.backbone == "train"

    def value(self, answers: Answers, beside: nn.Module) -> Tensor:
        """The weighted mean over exits, and what the judge has to learn, a mean over texts."""
        import torch

        exits = cast("Exits", exits_of(cast("nn.Module", answers.model)))
        states: list[Tensor] = answers.student["exit_states"]
        last = answers.student["logits"].float()
        if self.alternate:
            batches = beside.get_buffer("batches")
            batches += 1
            if int(batches) % 2:
                return _error(last, answers)
        if self.backbone == "frozen":
            states, last = [one.detach() for one in states], last.detach()
        found = [exits.answer(number, state).float() for number, state in enumerate(states)]
        weights = [1.0 if self.weights == "uniform" else float(one) for one in (*exits.layers, exits.depth)]
        losses = [self._loss(one, last, answers) for one in found] + ([_error(last, answers)] if self._last else [])
        weights = weights[: len(losses)]
        total = torch.stack([w * one for w, one in zip(weights, losses, strict=True)]).sum() / sum(weights)
        judged = [exits.judged(state.detach()) for state in states]
        if answers.labels is None or judged[0] is None:
            return total
        right = [_right(one.detach(), answers) for one in found]
        pairs = zip(cast("list[Tensor]", judged), right, strict=True)
        return total + torch.stack([(one.float() - wanted).square().mean() for one, wanted in pairs]).mean()

    def _loss(self, logits: Tensor, last: Tensor, answers: Answers) -> Tensor:
        """What one exit has to learn."""
        from torch.nn import functional as F

        loss = (1 - self.distil) * _error(logits, answers) if self.distil < 1 else 0.0 * logits.sum()
        if not self.distil:
            return loss
        target = last.detach()
        if logits.shape[-1] == 1:
            return loss + self.distil * (logits - target).square().mean()
        soft, wanted = (logits / self.temperature).log_softmax(-1), (target / self.temperature).log_softmax(-1)
        apart = F.kl_div(soft, wanted, log_target=True, reduction="batchmean")
        return loss + self.distil * self.temperature**2 * apart


def _error(logits: Tensor, answers: Answers) -> Tensor:
    """Cross-entropy with the labels; squared error for regression."""
    from torch.nn import functional as F

    labels = cast("Tensor", answers.labels)
    if logits.shape[-1] == 1:
        return F.mse_loss(logits[:, 0], labels.float())
    return F.cross_entropy(logits, labels)


def _right(logits: Tensor, answers: Answers) -> Tensor:
    """(texts,): 1 where the class is right, else 0; for a number 1 - tanh of its error."""
    labels = cast("Tensor", answers.labels)
    if logits.shape[-1] == 1:
        return 1 - (logits[:, 0] - labels.float()).abs().tanh()
    return (logits.argmax(-1) == labels).float()
