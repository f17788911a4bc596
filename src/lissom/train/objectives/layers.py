"""Which teacher layers a student layer learns from.

Layer 0 is the output of the embeddings; layers are counted in the order of execution, so a block that runs three times
is three layers.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from lissom.data.encode import IGNORED
from lissom.errors import LissomError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers.utils.generic import ModelOutput

    from lissom.train.objectives.base import Answers

Layer = Annotated[int, Field(ge=0)]
Block = Annotated[int, Field(ge=1)]
Pairs = tuple[tuple[int, int], ...]
_SIDES = ("encoder", "decoder", "cross")


def sides(answers: Answers) -> tuple[Answers, ...]:
    """The answers of each row of layers: one, or those of the encoder, the decoder and between them (attention only).

    A decoder reads the text that is to be written where there is one, else the same text, one token later.
    """
    if "encoder_last_hidden_state" not in answers.student:
        return (answers,)
    found = []
    for side in _SIDES:
        student, teacher = _side(answers.student, side), _side(answers.taught, side)
        if student:
            found.append(dataclasses.replace(_masked(answers, side), student=student, teacher=teacher))
    return tuple(found)


def _masked(answers: Answers, side: str) -> Answers:
    """With the mask of the decoder's own tokens, and for its look at the encoder that of the text as `keys`."""
    labels = answers.inputs.get("labels")
    if side == "encoder" or labels is None or "decoder_input_ids" not in answers.inputs:
        return answers
    own = {"input_ids": answers.inputs["decoder_input_ids"], "attention_mask": labels != IGNORED}
    keys = answers.mask if side == "cross" else None
    return dataclasses.replace(answers, inputs={**answers.inputs, **own}, keys=keys)


def _side(output: ModelOutput, side: str) -> ModelOutput:
    from transformers.utils.generic import ModelOutput

    names = {"hidden_states": f"{side}_hidden_states", "attentions": f"{side}_attentions"}
    found = {name: output[own] for name, own in names.items() if own in output}
    return ModelOutput(**found)  # type: ignore[no-untyped-call]


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
