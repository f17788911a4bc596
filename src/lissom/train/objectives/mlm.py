"""Masked language modelling: 15 % of the tokens are hidden, others every time, and the student says what they were.

    L = cross-entropy with the hidden tokens, by the loss of the model's own class

Source: Devlin et al. 2019 (BERT), section 3.1; hidden anew in every epoch: Liu et al. 2019 (RoBERTa), section 4.1.
With logits beside it the teacher sees the same hidden tokens, and its answers to them are learnt: the soft masked
language modelling of DistilBERT (Sanh et al. 2019), L = 5 · logits(T = 2) + 2 · mlm + 1 · hidden(last, cosine). Its
published training counts all tokens in the first term: `logits: {tokens: all}`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from lissom.data.encode import IGNORED
from lissom.errors import LissomError
from lissom.train.objectives.base import Answers, Objective

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lissom.anatomy import Anatomy


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedTokens(Objective):
    """Learns to name hidden tokens of running text; for masked language models."""

    name: ClassVar[str] = "mlm"
    teacher: ClassVar[bool] = False
    labels: ClassVar[bool] = True
    answers: ClassVar[bool] = True
    asks: ClassVar[bool] = True
    source: ClassVar[str] = "Devlin et al. 2019 (BERT), section 3.1; Liu et al. 2019 (RoBERTa), section 4.1"

    share: Annotated[float, Field(gt=0, lt=1, description="Share of the tokens that are hidden.")] = 0.15

    def check(
        self, anatomy: Anatomy, tokenizer: PreTrainedTokenizerBase | None, teachers: Sequence[PreTrainedModel]
    ) -> None:
        """Raises LSM-319 for another kind of model, or a tokenizer without a mask token."""
        kind = type(anatomy.model).__name__
        if not kind.endswith("ForMaskedLM"):
            remedy = "Use a masked language model; for a causal one task is its pretraining."
            raise LissomError(319, f"{kind} does not name hidden tokens", place=self.name, remedy=remedy)
        if tokenizer is None or tokenizer.mask_token is None:
            raise LissomError(319, "the tokenizer has no mask token", place=self.name, remedy="Use the model's own.")

    def prepare(self, inputs: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerBase | None) -> Mapping[str, Tensor]:
        """The batch with hidden tokens; `labels` are what they were. Raises LSM-319 without a tokenizer."""
        from lissom.data.hide import hide

        if tokenizer is None:
            raise LissomError(319, "there is no tokenizer to hide tokens with", place=self.name, remedy="Give one.")
        ids = inputs["input_ids"]
        hidden, labels = hide(ids, inputs.get("attention_mask", ids.new_ones(ids.shape)).bool(), tokenizer, self.share)
        return {**inputs, "input_ids": hidden, "labels": labels}

    def value(self, answers: Answers, beside: nn.Module) -> Tensor:
        """The student's own loss, a mean over the hidden tokens; 0 where none is hidden."""
        output = answers.student
        if not bool((answers.inputs["labels"] != IGNORED).any()):
            nothing: Tensor = output["logits"].sum() * 0
            return nothing
        loss: Tensor = output["loss"]
        return loss.float()
