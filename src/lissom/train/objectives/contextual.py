"""How the teacher's states lie to each other: words of a text in one layer, and layers of one word.

    L = MSE( cos^S, cos^T ) + MSE( angle^S, angle^T )

with the cosine of every pair of states a, b and, for every three of them, the cosine of the angle at the middle one:
angle = < (a - b) / |a - b|, (c - b) / |c - b| >. Two states at one place have no angle, and count as zero.
words: the states of a text's tokens in one layer, b the middle of a window; a mean over mapped layers.
layers: the states of one token in all mapped layers.
Source: Park et al. 2021 (Contextual Knowledge Distillation), section 3: word relation and layer transforming relation,
both pairwise and triple-wise, in a local window. Widths and architectures are free: no state is compared itself.
Differs: cosines for pairs, equal weights of pairs and triples, squared error.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from lissom.errors import LissomError
from lissom.train.objectives.base import Answers, Objective, Read
from lissom.train.objectives.layers import Layer, Pairs, pairs, states

if TYPE_CHECKING:
    from torch import Tensor, nn

_LEAST = 1e-6  # of a squared length, relative to the states' own: below it there is no direction


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contextual(Objective):
    """Learns how the teacher's states lie to each other, in a text and along its layers."""

    name: ClassVar[str] = "contextual"
    reads: ClassVar[frozenset[Read]] = frozenset({"hidden_states"})
    source: ClassVar[str] = "Park et al. 2021 (Contextual Knowledge Distillation), section 3"

    of: Annotated[
        tuple[Literal["words", "layers"], ...],
        Field(min_length=1, description="What lies to each other: words of a text, layers of a word, or both, added."),
    ] = ("words", "layers")
    layers: Annotated[
        Literal["uniform", "last"] | tuple[tuple[Layer, Layer], ...],
        Field(description="uniform: all, embeddings too; last; or [student, teacher] pairs."),
    ] = "uniform"
    window: Annotated[
        int, Field(ge=1, le=64, description="Tokens to each side that a token is related to; 5 sees 11 of them.")
    ] = 5

    def begin(self, answers: Answers) -> nn.Module:
        """Nothing to train. Raises LSM-319 when a layer does not exist, or one layer shall be related to itself."""
        found = self._pairs(answers)
        if "layers" in self.of and len(found) < 2:
            cause = "one layer has no others to lie to"
            raise LissomError(319, cause, place="contextual.layers", remedy="Use of: [words], or more layers.")
        return super().begin(answers)

    def value(self, answers: Answers, beside: nn.Module) -> Tensor:
        """The sum of what `of` names, each a mean over what is related."""
        import torch

        student, teacher = states(answers.student, self.name), states(answers.taught, self.name)
        found, parts = self._pairs(answers), []
        with torch.autocast(answers.mask.device.type, enabled=False):  # differences of products: bf16 leaves noise
            if "words" in self.of:
                near, seen = windows(answers.mask, self.window)
                gaps = [_words(student[m].float(), teacher[n].float(), near, seen) for m, n in found]
                parts.append(torch.stack(gaps).mean())
            if "layers" in self.of:
                mine = torch.stack([student[m][answers.mask].float() for m, _ in found], dim=1)
                wanted = torch.stack([teacher[n][answers.mask].float() for _, n in found], dim=1)
                parts.append(_layers(mine, wanted))
        return torch.stack(parts).sum()

    def _pairs(self, answers: Answers) -> Pairs:
        depths = (len(states(one, self.name)) - 1 for one in (answers.student, answers.taught))
        return pairs(self.layers, *depths, place=self.name)


def windows(mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Tokens around each, `size` to each side: their numbers (seq, near), and which are real, (batch, seq, near)."""
    import torch

    length = mask.shape[1]
    near = torch.arange(length, device=mask.device)[:, None] + torch.arange(-size, size + 1, device=mask.device)
    inside = (near >= 0) & (near < length)
    near = near.clamp(0, length - 1)
    return near, inside & mask[:, near] & mask[..., None]


def _words(mine: Tensor, wanted: Tensor, near: Tensor, seen: Tensor) -> Tensor:
    """mine, wanted: (batch, seq, width)."""
    grams = [(one @ one.transpose(1, 2))[:, near[:, :, None], near[:, None, :]] for one in (mine, wanted)]
    return gap(grams[0], grams[1], seen, near.shape[1] // 2)


def _layers(mine: Tensor, wanted: Tensor) -> Tensor:
    """mine, wanted: (tokens, layers, width)."""
    import torch

    grams = [one @ one.transpose(1, 2) for one in (mine, wanted)]
    seen = torch.ones(mine.shape[:2], dtype=torch.bool, device=mine.device)
    return torch.stack([gap(grams[0], grams[1], seen, middle) for middle in range(mine.shape[1])]).mean()


def gap(mine: Tensor, wanted: Tensor, seen: Tensor, middle: int) -> Tensor:
    """Squared error of cosines with the state `middle`, plus that of angles at it.

    mine, wanted: products (..., states, states) of states with each other.  seen: (..., states), True where one is.
    """
    import torch

    count = seen.shape[-1]
    others = seen & (torch.arange(count, device=seen.device) != middle)
    three = others[..., :, None] & others[..., None, :] & ~torch.eye(count, dtype=torch.bool, device=seen.device)
    (cosines, angles), (theirs, their_angles) = (_shape(one, middle) for one in (mine, wanted))
    return _mean((cosines - theirs).square(), others) + _mean((angles - their_angles).square(), three)


def _shape(gram: Tensor, middle: int) -> tuple[Tensor, Tensor]:
    """Cosines (..., states) and angles (..., states, states) of states from their products with each other."""
    square = gram.diagonal(dim1=-2, dim2=-1)
    row, own = gram[..., middle, :], square[..., middle, None]
    cosines = row / (square * own).clamp_min(1e-30).sqrt()
    lengths = square - 2 * row + own
    apart = lengths > _LEAST * (square + own)
    lengths = lengths.where(apart, 1.0).sqrt()
    products = gram - row[..., :, None] - row[..., None, :] + own[..., None]
    angles = products / (lengths[..., :, None] * lengths[..., None, :])
    return cosines, angles.masked_fill(~(apart[..., :, None] & apart[..., None, :]), 0.0)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    return values.masked_fill(~counted, 0.0).sum() / counted.sum().clamp_min(1)
