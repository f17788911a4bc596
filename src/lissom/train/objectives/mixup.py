"""Mixed texts: what lies between two texts of the batch, where the teacher is asked as well.

    x = λ · e_i + (1 - λ) · e_j      λ drawn for each text from Beta(a, a), j from a permutation of the batch
    L = D(t(x), s(x)) + hard · ( λ · CE(s(x), y_i) + (1 - λ) · CE(s(x), y_j) )

with e the word embeddings of a text, each model's own; of numbers the squared error with λ · y_i + (1 - λ) · y_j.
Source: Liang et al. 2021 (MixKD), section 3.2, a = 0.4; it learns from the texts themselves as well, which task and
logits beside it do. Cross-entropy with the mixed label is what Zhang et al. 2018 (mixup) have.
Differs: attention sees a position where either text has a token; types of tokens (first or second text) are those of i,
or of j behind its end.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, cast

from pydantic import Field

from lissom.errors import LissomError
from lissom.train.objectives.base import Answers, Objective
from lissom.train.objectives.logits import Logits
from lissom.train.ramp import Temperature

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lissom.anatomy import Anatomy
    from lissom.train.objectives.base import Ask


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixup(Objective):
    """Learns what the teacher says between two texts; for encoders that answer once a text."""

    name: ClassVar[str] = "mixup"
    answers: ClassVar[bool] = True
    asks: ClassVar[bool] = True
    source: ClassVar[str] = "Liang et al. 2021 (MixKD), section 3.2"

    alpha: Annotated[float, Field(gt=0, description="a of Beta(a, a): small ones mix little, 1 evenly.")] = 0.4
    loss: Annotated[
        Literal["mse", "kl"], Field(description="mse between the logits, or kl between the distributions.")
    ] = "mse"
    temperature: Annotated[Temperature, Field(description="Softens the scores of both in kl.")] = 1.0
    hard: Annotated[float, Field(ge=0, description="Factor of the loss with mixed labels, if there are any.")] = 1.0

    def check(
        self, anatomy: Anatomy, tokenizer: PreTrainedTokenizerBase | None, teachers: Sequence[PreTrainedModel]
    ) -> None:
        """Raises LSM-319 for models that do not answer once a text, or read no embeddings."""
        from lissom.anatomy import dissect

        for model in (cast("PreTrainedModel", anatomy.model), *teachers):
            kind = type(model).__name__
            if not kind.endswith("ForSequenceClassification") or dissect(model).stacks[-1].name != "encoder":
                cause = f"{kind} is no encoder that answers once a text"
                raise LissomError(319, cause, place=self.name, remedy="Use logits.")
            if "inputs_embeds" not in inspect.signature(model.forward).parameters:
                raise LissomError(319, f"{kind} reads tokens only", place=self.name, remedy="Use logits.")

    def begin(self, answers: Answers) -> nn.Module:
        """Nothing to train. Raises LSM-319 when the teacher answers with other classes."""
        return self._distance.begin(answers)

    def value(self, answers: Answers, beside: nn.Module) -> Tensor:
        """Mean over the mixed texts."""
        import torch

        ids, mask, labels = answers.inputs["input_ids"], answers.mask, answers.labels
        order = torch.randperm(len(ids)).to(ids.device)
        share = torch.distributions.Beta(self.alpha, self.alpha).sample((len(ids),)).to(ids.device)
        batch = {"input_ids": torch.where(mask, ids, ids[order]), "attention_mask": (mask | mask[order]).long()}
        if "token_type_ids" in answers.inputs:
            types = answers.inputs["token_type_ids"]
            batch["token_type_ids"] = torch.where(mask, types, types[order])

        def embed(model: PreTrainedModel) -> Tensor:
            words: Tensor = model.get_input_embeddings()(ids)
            return torch.lerp(words[order], words, share[:, None, None].to(words.dtype))

        mixed = cast("Ask", answers.ask)(batch, embed)
        loss = self._distance.value(mixed, beside)
        if labels is None or not self.hard:
            return loss
        return loss + self.hard * _between(mixed, labels, labels[order], share)

    @property
    def _distance(self) -> Logits:
        return Logits(loss=self.loss, temperature=self.temperature)


def _between(answers: Answers, one: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """The student's loss with labels of which `share` (n,) is `one`, the rest `other`."""
    from torch.nn import functional

    scores = answers.scores(answers.student)
    if answers.regression or scores.shape[-1] == 1:
        return functional.mse_loss(scores[:, 0], share * one + (1 - share) * other)
    first, second = (functional.cross_entropy(scores, labels, reduction="none") for labels in (one, other))
    return (share * first + (1 - share) * second).mean()
