"""The teacher's opinion of what the student itself says.

With the probability `share` the student goes on with the beginnings of the batch's texts, each token drawn from its own
distribution; else the batch is taken as it is. Then

    L = mean over new tokens of D( teacher(next token | before), student(next token | before) )

with D of `lissom.train.divergence`. No gradient goes through the drawing.
Source: Agarwal et al. 2024 (GKD), algorithm 1, with its lambda = `share`. With `loss: reverse` it is the single-step
part of MiniLLM (Gu et al. 2024, section 2.2) without its policy gradient, mixed sampling and length normalisation; with
`loss: skew_reverse` the on-policy part of DistiLLM (Ko et al. 2024) without its replay buffer.
Differs: prompts are beginnings of the training texts; the student draws without dropout; the mean is over all tokens of
the batch, where GKD takes one over the tokens of each text first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, cast

from pydantic import Field

from lissom.data.batches import pad
from lissom.errors import LissomError
from lissom.train.divergence import MIXING, Divergence
from lissom.train.objectives.base import Answers, Objective
from lissom.train.objectives.logits import Logits
from lissom.train.ramp import Temperature

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lissom.anatomy import Anatomy
    from lissom.train.objectives.base import Ask


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnPolicy(Objective):
    """Learns how the teacher would have gone on at each point of texts that the student makes; for causal models."""

    name: ClassVar[str] = "on_policy"
    answers: ClassVar[bool] = True
    asks: ClassVar[bool] = True
    source: ClassVar[str] = "Agarwal et al. 2024 (GKD), algorithm 1; MiniLLM and DistiLLM (2024)"

    loss: Annotated[Divergence, Field(description="What is between the distributions of the next token.")] = "reverse"
    mix: Annotated[
        float | None,
        Field(gt=0, lt=1, description="Share of the teacher in js (0.5), of the first side in skew (0.1)."),
    ] = None
    temperature: Annotated[Temperature, Field(description="Softens the scores of both; not the drawing.")] = 1.0
    share: Annotated[
        float, Field(ge=0, le=1, description="Probability that a batch is made by the student; else it is the data's.")
    ] = 0.5
    prompt: Annotated[int, Field(ge=1, description="Tokens of each text that the student begins with.")] = 32
    new_tokens: Annotated[int, Field(ge=1, description="Tokens that it adds at most.")] = 64

    def check(
        self, anatomy: Anatomy, tokenizer: PreTrainedTokenizerBase | None, teachers: Sequence[PreTrainedModel]
    ) -> None:
        """Raises LSM-319 for models that do not go on with a text, too many tokens, or `mix` where nothing is mixed."""
        from lissom.train.continuation import check_decoder

        models = (cast("PreTrainedModel", anatomy.model), *teachers)
        check_decoder(models, self.prompt + self.new_tokens, self.name)
        if self.mix is not None and self.loss not in MIXING:
            cause = f"mix belongs to {', '.join(MIXING)}, and the loss is {self.loss}"
            raise LissomError(319, cause, place=self.name, remedy="Leave mix out.")

    def begin(self, answers: Answers) -> nn.Module:
        """Nothing to train. Raises LSM-319 when the teacher has another vocabulary."""
        return self._distance.begin(answers)

    def value(self, answers: Answers, beside: nn.Module) -> Tensor:
        """Mean over the tokens that the student made, or over those of the data."""
        import torch

        made = float(torch.rand(())) < self.share
        return self._distance.value(self._made(answers) if made else answers, beside)

    @property
    def _distance(self) -> Logits:
        return Logits(loss=self.loss, mix=self.mix, temperature=self.temperature)

    def _made(self, answers: Answers) -> Answers:
        """Answers to texts that the student made of the beginnings of the batch."""
        from lissom.train.continuation import beginning, continued, row

        model = cast("PreTrainedModel", answers.model)
        texts = zip(answers.inputs["input_ids"], answers.mask, strict=True)
        prompts = [beginning(ids[real].tolist(), self.prompt) for ids, real in texts]
        said = continued(model, prompts, new_tokens=self.new_tokens, sample=True)
        batch = pad([row(*one) for one in zip(prompts, said, strict=True)], 0)
        ask = cast("Ask", answers.ask)
        return ask({name: one.to(model.device) for name, one in batch.items()})
