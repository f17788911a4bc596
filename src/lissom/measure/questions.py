"""Extractive question answering: the best span of the context, and SQuAD's measure of overlap."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lissom.errors import LissomError
from lissom.runtime import token_batches

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lissom.runtime import Runner, Text

LONGEST = 30  # tokens of an answer, as in the SQuAD scripts


def best_answers(runner: Runner, pairs: Sequence[Text], tokens_per_batch: int | None = None) -> list[str]:
    """The answer to each (question, context): the span with the largest sum of start and end logits, at most 30 tokens.

    Raises LissomError LSM-736 when the model does not answer questions.
    """
    encodings = runner.encode(pairs)
    answers = [""] * len(pairs)
    for rows in token_batches([len(one.ids) for one in encodings], tokens_per_batch or runner.tokens_per_batch):
        outputs = runner.forward(runner.pad([encodings[row] for row in rows]))
        if "start_logits" not in outputs:
            raise LissomError(736, "the data asks questions, and this model has no start and end of an answer")
        for place, row in enumerate(rows):
            one = encodings[row]
            inside = [at for at, side in enumerate(one.sequence_ids) if side == 1]
            if inside:
                first, last = best_span(outputs["start_logits"][place][inside], outputs["end_logits"][place][inside])
                start, end = one.offsets[inside[first]][0], one.offsets[inside[last]][1]
                answers[row] = pairs[row][1][start:end]
    return answers


def best_span(start: NDArray[Any], end: NDArray[Any]) -> tuple[int, int]:
    """First and last token of the best answer. start, end: logits of the context's tokens (tokens,)."""
    total = start[:, None] + end[None, :]
    allowed = np.triu(np.ones_like(total, dtype=bool)) & ~np.triu(np.ones_like(total, dtype=bool), LONGEST)
    first, last = np.unravel_index(np.where(allowed, total, -np.inf).argmax(), total.shape)
    return int(first), int(last)


def word_overlap(said: str, golds: Sequence[str]) -> float:
    """F1 of words with the nearest of the right answers, 0 to 1; no right answer and none said is 1."""
    return max((_overlap(_words(said), _words(gold)) for gold in golds), default=float(not said.strip()))


def _overlap(said: list[str], gold: list[str]) -> float:
    if not said or not gold:
        return float(said == gold)
    shared = sum((Counter(said) & Counter(gold)).values())
    return 2 * shared / (len(said) + len(gold))


def _words(text: str) -> list[str]:
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()
