"""The teacher's attention, layer by layer.

    L = mean over pairs (m, n) of loss( A_m^S, A_n^T )

scores: A = Q K^T / sqrt(head width), before the softmax. Jiao et al. 2020 (TinyBERT), eq. 7, with loss mse.
maps: A after the softmax. With loss kl: Wang et al. 2020 (MiniLM), section 3.1, with `layers: last`; Sun et al. 2020
    (MobileBERT), section 3.3; Aguilar et al. 2020, section 3.1, with `heads: mean`.

Of an encoder-decoder the maps of encoder and decoder, and of the decoder's look at the encoder are compared, each
by the same `layers`: Li et al. 2022 (DQ-BART), section 3.2.

Only real tokens count, as queries and as keys; a causal model's query has no later keys. Grouped keys are repeated.
Differs: a mean over pairs, where TinyBERT sums, and over real tokens, where it counts padding as zeros. Scores are of
the projections themselves: without rotary or relative positions, and of all keys where a model looks through a window.
Maps are those of the forward pass, thinned out by the student's dropout: what it hides is left out, and the rest of a
row counts as a distribution of its own.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from lissom.errors import LissomError
from lissom.train.objectives.base import Answers, Objective, Read
from lissom.train.objectives.layers import Block, pairs, sides
from lissom.train.objectives.positions import by_head, kl, squares

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.utils.generic import ModelOutput

    from lissom.anatomy import Anatomy
    from lissom.train.projections import Projections


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attention(Objective):
    """Learns where the teacher's heads look."""

    name: ClassVar[str] = "attention"
    two_stacks: ClassVar[bool] = True
    source: ClassVar[str] = (
        "Jiao et al. 2020 (TinyBERT), eq. 7; maps: Wang et al. 2020 (MiniLM), section 3.1; "
        "heads mean: Aguilar et al. 2020; encoder-decoders: Li et al. 2022 (DQ-BART)"
    )

    layers: Annotated[
        Literal["uniform", "last"] | tuple[tuple[Block, Block], ...],
        Field(description="uniform: all; last; or [student, teacher] pairs, counted from 1."),
    ] = "uniform"
    of: Annotated[
        Literal["scores", "maps"], Field(description="scores before the softmax, or maps, the weights after it.")
    ] = "scores"
    loss: Annotated[
        Literal["mse", "kl"], Field(description="mse of the numbers, or kl between the rows as distributions.")
    ] = "mse"
    heads: Annotated[
        Literal["match", "mean"],
        Field(description="match: head by head; mean: averages over heads, whose numbers may differ."),
    ] = "match"

    @property
    def reads(self) -> frozenset[Read]:
        """Projections for scores, attentions for maps."""
        return frozenset({"projections"}) if self.of == "scores" else frozenset({"attentions"})

    def check(
        self, anatomy: Anatomy, tokenizer: PreTrainedTokenizerBase | None, teachers: Sequence[PreTrainedModel]
    ) -> None:
        """Raises LSM-715 for the scores of an encoder-decoder."""
        if self.of == "scores" and len(anatomy.stacks) > 1:
            cause = f"scores are those of one row of layers, and {anatomy.family} has an encoder and a decoder"
            raise LissomError(715, cause, place="attention.of", remedy="Use of: maps.")

    def begin(self, answers: Answers) -> nn.Module:
        """Nothing to train. Raises LSM-319 when a layer does not exist or the numbers of heads differ."""
        for side in sides(answers):
            for m, n in self._pairs(side):
                mine, wanted = self._read(side.student, m), self._read(side.taught, n)
                if mine.shape[1] != wanted.shape[1]:
                    cause = f"student layer {m} has {mine.shape[1]} heads, teacher layer {n} has {wanted.shape[1]}"
                    raise LissomError(319, cause, place="attention.heads", remedy="Use heads: mean, or relations.")
        return super().begin(answers)

    def value(self, answers: Answers, beside: nn.Module) -> Tensor:
        """Mean over pairs, heads and real queries; mse is a mean over the keys as well."""
        import torch

        return torch.stack([loss for side in sides(answers) for loss in self._losses(side)]).mean()

    def _losses(self, answers: Answers) -> list[Tensor]:
        """Of each pair of one row of layers."""
        losses = []
        for m, n in self._pairs(answers):
            mine, wanted = self._read(answers.student, m), self._read(answers.taught, n)
            seen = self._seen(answers, mine)
            if self.of == "maps":
                mine, wanted = _distributions(mine, seen), _distributions(wanted, seen)
            if self.loss == "mse":
                losses.append(squares(mine, wanted, seen))
            else:
                mine, wanted = (one.clamp_min(1e-30).log() if self.of == "maps" else one for one in (mine, wanted))
                losses.append(kl(mine, wanted, seen))
        return losses

    def _pairs(self, answers: Answers) -> tuple[tuple[int, int], ...]:
        depths = (len(self._layers(one)) for one in (answers.student, answers.taught))
        return pairs(self.layers, *depths, place=self.name, lowest=1)

    def _layers(self, output: ModelOutput) -> tuple[Any, ...]:
        found = output.get(next(iter(self.reads)))
        if not found or any(one is None for one in found):
            raise LissomError(715, "the model gives no attention of its layers", place=self.name)
        return tuple(found)

    def _read(self, output: ModelOutput, layer: int) -> Tensor:
        """(batch, heads, seq, seq), float32."""
        one = self._layers(output)[layer - 1]
        found = scores(one) if self.of == "scores" else one.float()
        return found.mean(dim=1, keepdim=True) if self.heads == "mean" else found

    def _seen(self, answers: Answers, mine: Tensor) -> Tensor:
        """(batch, 1 or heads, seq, seq), True where a real query sees a real key."""
        mask = answers.mask
        keys = mask if answers.keys is None else answers.keys
        seen = (mask[:, :, None] & keys[:, None, :])[:, None]
        if self.of == "maps":  # zero where the model does not look, or its dropout does not let it
            return seen & (mine > 0)
        causal = any(self._layers(one)[0].causal for one in (answers.student, answers.taught))
        return seen.tril() if causal else seen


def scores(one: Projections) -> Tensor:
    """Q K^T / sqrt(head width), (batch, heads, seq, seq) float32."""
    q, k = by_head(one.q, one.heads), by_head(one.k, one.kv_heads)
    k = k.repeat_interleave(one.heads // one.kv_heads, dim=1)
    return (q @ k.transpose(-1, -2)).float() / math.sqrt(one.head_dim)


def _distributions(maps: Tensor, seen: Tensor) -> Tensor:
    """The rows of `maps` over what is seen of them, each with the sum 1."""
    kept = maps.masked_fill(~seen, 0.0)
    return kept / kept.sum(dim=-1, keepdim=True).clamp_min(1e-30)
