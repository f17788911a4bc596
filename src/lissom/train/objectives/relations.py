"""How the teacher's tokens relate to each other in one layer.

    R_X = softmax( X X^T / sqrt(d) ),  L = mean over X of KL( R_X^T ‖ R_X^S )

a mean over relation heads and real tokens, for X (tokens, d) the queries, keys, values or hidden states of a layer,
split into `heads` relation heads. Widths and numbers of layers are free.
Source: Wang et al. 2020 (MiniLM), section 3.2: `of: [v]`, the heads as they are, with `attention` maps of the last
layer. Wang et al. 2021 (MiniLMv2), section 3.1: `of: [q, k, v]`, heads split anew, an upper layer of a deep teacher.
direction: L = || P^S - P^T || with P = X X^T / || X X^T ||, a mean over heads and texts. Qin et al. 2022 (BiBERT),
section 3.3, with `of: [q, k, v]` and `layer: all`.
Differs: a mean over X, and over layers where all count, where the papers sum. Relations are between all real tokens, in
causal models too: they are no part of the answer. Grouped keys and values are related as they are.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from lissom.errors import LissomError
from lissom.train.objectives.base import Answers, Objective, Read
from lissom.train.objectives.layers import pairs, states
from lissom.train.objectives.positions import by_head, kl

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers.utils.generic import ModelOutput

Of = Literal["q", "k", "v", "hidden"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Relations(Objective):
    """Learns which tokens are alike to the teacher."""

    name: ClassVar[str] = "relations"
    source: ClassVar[str] = (
        "Wang et al. 2020 (MiniLM), section 3.2; Wang et al. 2021 (MiniLMv2), section 3.1; "
        "direction: Qin et al. 2022 (BiBERT), section 3.3"
    )

    of: Annotated[
        tuple[Of, ...], Field(min_length=1, description="What is related: queries, keys, values, hidden states.")
    ] = ("v",)
    heads: Annotated[
        int | None,
        Field(ge=1, description="Relation heads of equal width; null for the models' own, and one of hidden states."),
    ] = None
    layer: Annotated[
        int | Literal["all"],
        Field(
            description="Of the teacher, for the student's last: counted from 1, or from the end from -1; "
            "or all: each layer of the student learns, mapped as by uniform."
        ),
    ] = -1
    loss: Annotated[
        Literal["kl", "direction"],
        Field(description="kl between the softmax of relations, or their direction's distance."),
    ] = "kl"

    @property
    def reads(self) -> frozenset[Read]:
        """Hidden states, projections, or both."""
        found: set[Read] = {"hidden_states"} if "hidden" in self.of else set()
        return frozenset(found | {"projections"}) if set(self.of) - {"hidden"} else frozenset(found)

    def begin(self, answers: Answers) -> nn.Module:
        """Nothing to train.

        Raises LSM-319 when the teacher has no such layer, or widths cannot be split into equally many heads.
        """
        for m, n in self._pairs(answers):
            mine, wanted = self._read(answers.student, m), self._read(answers.taught, n)
            for of in self.of:
                self._check(of, mine[of], wanted[of])
        return super().begin(answers)

    def value(self, answers: Answers, beside: nn.Module) -> Tensor:
        """Mean over layers, `of`, relation heads and real tokens; of texts for direction."""
        import torch

        mask = answers.mask
        losses = []
        for m, n in self._pairs(answers):
            mine, wanted = self._read(answers.student, m), self._read(answers.taught, n)
            for of in self.of:
                ours, theirs = (related(x, self.heads or own, mask) for x, own in (mine[of], wanted[of]))
                losses.append(_kl(ours, theirs, mask) if self.loss == "kl" else _direction(ours, theirs))
        return torch.stack(losses).mean()

    def _pairs(self, answers: Answers) -> tuple[tuple[int, int], ...]:
        student, teacher = (self._depth(one) for one in (answers.student, answers.taught))
        if self.layer == "all":
            return pairs("uniform", student, teacher, place=self.name, lowest=1)
        found = self.layer + teacher + 1 if self.layer < 0 else self.layer
        if not 1 <= found <= teacher:
            cause = f"the teacher has layers 1 to {teacher}, or -{teacher} to -1; found {self.layer}"
            raise LissomError(319, cause, place="relations.layer")
        return ((student, found),)

    def _depth(self, output: ModelOutput) -> int:
        return len(output["projections"]) if "projections" in self.reads else len(states(output, self.name)) - 1

    def _read(self, output: ModelOutput, layer: int) -> dict[Of, tuple[Tensor, int]]:
        """What is related, (batch, seq, width), with the number of heads that the model has for it."""
        found: dict[Of, tuple[Tensor, int]] = {}
        if "hidden" in self.of:
            found["hidden"] = (states(output, self.name)[layer], 1)
        if "projections" in self.reads:
            one = output["projections"][layer - 1]
            found |= {"q": (one.q, one.heads), "k": (one.k, one.kv_heads), "v": (one.v, one.kv_heads)}
        return found

    def _check(self, of: Of, mine: tuple[Tensor, int], wanted: tuple[Tensor, int]) -> None:
        widths = [one.shape[-1] for one, _ in (mine, wanted)]
        owns = [own for _, own in (mine, wanted)]
        if self.heads is None and len(set(owns)) > 1:
            cause = f"{of} has {owns[0]} heads in the student and {owns[1]} in the teacher"
        elif self.heads is not None and any(width % self.heads for width in widths):
            cause = (
                f"{of} is {widths[0]} wide in the student and {widths[1]} in the teacher: {self.heads} heads do not fit"
            )
        else:
            return
        common, most = math.gcd(*widths), max(*owns, self.heads or 1)
        proposed = max(one for one in range(1, most + 1) if common % one == 0)
        raise LissomError(319, cause, place="relations.heads", remedy=f"Use heads: {proposed}.")


def related(x: Tensor, heads: int, mask: Tensor) -> Tensor:
    """X X^T / sqrt(d) of each relation head, (batch, heads, seq, seq) float32; 0 where a token is padding.

    x: (batch, seq, width).  mask: (batch, seq), True at real tokens.
    """
    split = by_head(x.masked_fill(~mask[..., None], 0.0), heads)
    return (split @ split.transpose(-1, -2)).float() / math.sqrt(split.shape[-1])


def _kl(mine: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    return kl(mine, wanted, (mask[:, :, None] & mask[:, None, :])[:, None])


def _direction(mine: Tensor, wanted: Tensor) -> Tensor:
    import torch
    from torch.nn import functional

    mine, wanted = (functional.normalize(one.flatten(start_dim=2), dim=-1) for one in (mine, wanted))
    gap: Tensor = torch.linalg.vector_norm(mine - wanted, dim=-1)
    return gap.mean()
