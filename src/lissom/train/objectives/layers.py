"""Which teacher layers a student layer learns from.

Layer 0 is the output of the embeddings; layers are counted in the order of execution, so a block that runs three times
is three layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from lissom.errors import LissomError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers.utils.generic import ModelOutput

Layer = Annotated[int, Field(ge=0)]
Block = Annotated[int, Field(ge=1)]
Pairs = tuple[tuple[int, int], ...]


def states(output: ModelOutput, place: str) -> tuple[Tensor, ...]:
    """Hidden states (batch, seq, width), the embeddings' first. Raises LSM-715 for a model that gives none."""
    found: tuple[Tensor, ...] | None = output.get("hidden_states")
    if found is None:
        raise LissomError(715, "the model gives no single row of hidden states", place=place)
    return found


def pairs(layers: str | Pairs, student: int, teacher: int, *, place: str, lowest: int = 0) -> Pairs:
    """(student layer, teacher layer) for models of `student` and `teacher` layers.

    uniform: m -> m · N / M for m = `lowest` to M, halves rounded up.  skip: the same for 1 to M - 1.  last: only the
    last layers.  lowest: 0, or 1 where the embeddings' output cannot be compared.
    Raises LSM-319 when a layer does not exist or there is no pair.
    """
    if isinstance(layers, str):
        first, end = {"uniform": (lowest, student), "skip": (1, student - 1), "last": (student, student)}[layers]
        found = tuple((m, (2 * m * teacher + student) // (2 * student)) for m in range(first, end + 1))
    else:
        found = layers
    if not found:
        raise _nothing(str(layers) if isinstance(layers, str) else "[]", student, place)
    for m, n in found:
        if not (lowest <= m <= student and lowest <= n <= teacher):
            span = f"[{lowest}, {lowest}] to [{student}, {teacher}]"
            remedy = "" if lowest else "0 is the output of the embeddings."
            cause = f"[{m}, {n}] is outside {span}: student layer, teacher layer"
            raise LissomError(319, cause, place=f"{place}.layers", remedy=remedy)
    return found


def groups(student: int, teacher: int) -> tuple[tuple[int, ...], ...]:
    """For each student layer from 1 on, the adjacent teacher layers that it stands for.

    Layers (m - 1) · N / M + 1, rounded down, to m · N / M, rounded up: without overlap where M divides N.
    """
    return tuple(
        tuple(range((m - 1) * teacher // student + 1, -(-m * teacher // student) + 1)) for m in range(1, student + 1)
    )


def drawn(student: int, teacher: int, draws: int, *, place: str) -> Tensor:
    """(draws, student - 1) sorted numbers of teacher layers, each row a random choice of 1 to teacher - 1.

    From torch's global generator. Raises LSM-319 when there are too few layers between the first and the last.
    """
    import torch

    if student < 2:
        raise _nothing("random", student, place)
    if student > teacher:
        cause = f"the student has {student - 1} layers before its last, the teacher {teacher - 1} to draw from"
        raise LissomError(319, cause, place=f"{place}.layers", remedy='Use "uniform".')
    return torch.stack([torch.randperm(teacher - 1)[: student - 1].sort().values + 1 for _ in range(draws)])


def _nothing(layers: str, student: int, place: str) -> LissomError:
    cause = f'layers "{layers}" of a student with {student} layers compares nothing'
    return LissomError(319, cause, place=f"{place}.layers", remedy='Use "uniform" or name the pairs.')
