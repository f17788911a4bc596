"""The teacher's hidden states, layer by layer.

    L = mean over pairs (m, n) of MSE( H_m^S · W, H_n^T )

with H_m^S (tokens, width) of student layer m, H_n^T of the teacher layer n that m is mapped to, and a trained W where
the widths differ. Layer 0 is the output of the embeddings.
Source: Jiao et al. 2020 (TinyBERT), eq. 8 and 9, with g(m) = m · N / M for M student and N teacher layers; one W for
all pairs, as in its code. Differs: a mean over pairs, where TinyBERT sums, so that `weight` means the same at any
depth; real tokens only. Skip: Sun et al. 2019 (PKD), section 3.2, which compares normalised states of the first
token only.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from lissom.errors import LissomError
from lissom.train.objectives.base import Answers, Objective, Read

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers.utils.generic import ModelOutput

Pairs = tuple[tuple[int, int], ...]
_Layer = Annotated[int, Field(ge=0)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hidden(Objective):
    """Learns what the teacher's layers hand on, at every real token."""

    name: ClassVar[str] = "hidden"
    reads: ClassVar[frozenset[Read]] = frozenset({"hidden_states"})
    source: ClassVar[str] = "Jiao et al. 2020 (TinyBERT), eq. 8 and 9; Sun et al. 2019 (PKD), section 3.2"

    layers: Annotated[
        Literal["uniform", "last", "skip"] | tuple[tuple[_Layer, _Layer], ...],
        Field(description="uniform: all, embeddings too; last; skip: all between; or [student, teacher] pairs."),
    ] = "uniform"
    loss: Annotated[
        Literal["mse", "cosine"], Field(description="mse, or 1 - cosine, which ignores the size of the states.")
    ] = "mse"

    def begin(self, answers: Answers) -> nn.Module:
        """The projection `width`, where the widths differ.

        Raises LSM-319 when a layer does not exist or nothing is compared.
        """
        from torch import nn

        student, teacher = states(answers.student), states(answers.taught)
        pairs(self.layers, len(student) - 1, len(teacher) - 1)
        beside = nn.Module()
        mine, wanted = student[-1].shape[-1], teacher[-1].shape[-1]
        if mine != wanted:
            beside.width = nn.Linear(mine, wanted, bias=False)
        return beside

    def value(self, answers: Answers, beside: nn.Module) -> Tensor:
        """Mean over the pairs and the real tokens; mse is a mean over the width as well."""
        import torch
        from torch.nn import functional

        student, teacher = states(answers.student), states(answers.taught)
        mask = answers.mask
        losses = []
        for m, n in pairs(self.layers, len(student) - 1, len(teacher) - 1):
            mine, wanted = student[m][mask].float(), teacher[n][mask].float()  # (tokens, width)
            for projection in beside.children():
                mine = projection(mine).float()
            if self.loss == "mse":
                losses.append(functional.mse_loss(mine, wanted))
            else:
                losses.append(1 - functional.cosine_similarity(mine, wanted, dim=-1).mean())
        return torch.stack(losses).mean()


def states(output: ModelOutput) -> tuple[Tensor, ...]:
    """Hidden states (batch, seq, width), the embeddings' first. Raises LSM-715 for a model that gives none."""
    found: tuple[Tensor, ...] | None = output.get("hidden_states")
    if found is None:
        raise LissomError(715, "the model gives no single row of hidden states", place="hidden")
    return found


def pairs(layers: str | Pairs, student: int, teacher: int) -> Pairs:
    """(student layer, teacher layer) for models of `student` and `teacher` layers; 0 is the embeddings' output.

    uniform: m -> m · N / M for m = 0 to M, halves rounded up.  skip: the same without the embeddings and the last
    layer.  last: only the last layers.
    Raises LSM-319 when a layer does not exist or there is no pair.
    """
    if isinstance(layers, str):
        first, end = {"uniform": (0, student), "skip": (1, student - 1), "last": (student, student)}[layers]
        found = tuple((m, (2 * m * teacher + student) // (2 * student)) for m in range(first, end + 1))
    else:
        found = layers
    if not found:
        cause = f'layers "{layers}" of a student with {student} layers compares nothing'
        raise LissomError(319, cause, place="hidden.layers", remedy='Use "uniform" or name the pairs.')
    for m, n in found:
        if m > student or n > teacher:
            cause = f"[{m}, {n}] is outside [0, 0] to [{student}, {teacher}]: student layer, teacher layer"
            raise LissomError(319, cause, place="hidden.layers", remedy="0 is the output of the embeddings.")
    return found
