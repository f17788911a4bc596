"""How often a compressed model says what its reference says (Xu et al. 2021, "Beyond Preserved Accuracy").

    label loyalty        share of texts with the same most likely label
    probability loyalty  1 - mean over texts of sqrt(JS(p, q)) with JS in bits:
                         JS = (KL(p|m) + KL(q|m)) / 2,  m = (p + q) / 2

Embeddings have no labels: of them the mean cosine of both embeddings of a text is taken.

The root is taken once (the distance is a metric): 1 for equal distributions, 0 for two different certainties.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lissom.measure.reading import Reading, taken
from lissom.measure.scores import Scores, additive, quality_reading, ratio_of_sums

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lissom.data import Task

UNCOMPARED = ("regression", "language_modelling", "masked_language_modelling")
"""Tasks whose answers have no labels and no probabilities."""

_NAMES = ("label_loyalty", "probability_loyalty")


def loyalty(answers: Any, reference: Any, task: Task, seed: int) -> list[Reading]:
    """The readings from two runners' answers to the same texts, as `quality.answer` gives them."""
    if task.kind in UNCOMPARED:
        why = f"Not taken: {task.kind.replace('_', ' ')} gives no label and no probabilities to compare."
        return [taken(name, None, why) for name in _NAMES]
    if task.kind == "question_answering":
        same = np.array([[one == other, 1] for one, other in zip(answers, reference, strict=True)])
        scores = additive("label_loyalty", same, ratio_of_sums, "Share of questions with the reference's answer.")
        why = "Not taken: the probabilities of all spans are not kept."
        return [quality_reading(scores, seed), taken("probability_loyalty", None, why)]
    if task.kind == "text_to_text":
        same = np.array([[(a == b).sum(), len(a)] for a, b in zip(answers.said, reference.said, strict=True)])
        how = "Share of tokens of the targets at which the reference's likeliest token is said, those before it given."
        why = "Not taken: the probabilities of all tokens are not kept."
        return [
            quality_reading(additive("label_loyalty", same, ratio_of_sums, how), seed),
            taken("probability_loyalty", None, why),
        ]
    if answers.shape != reference.shape:
        why = f"Not taken: answers of shape {answers.shape}, the reference's have {reference.shape}."
        return [taken(name, None, why) for name in (("cosine",) if task.kind == "embedding" else _NAMES)]
    if task.kind == "embedding":
        return [quality_reading(closeness(answers, reference), seed)]
    both = ~(np.isnan(answers).any(-1) | np.isnan(reference).any(-1))  # words that one of the two cut off do not count
    same = (answers.argmax(-1) == reference.argmax(-1)) & both
    with np.errstate(invalid="ignore"):
        near = np.where(both, 1 - distance(softmax(answers), softmax(reference)), 0)
    what = "words" if task.kind == "tagging" else "texts"
    hows = (
        f"Share of {what} with the reference's label.",
        f"1 - mean over {what} of the base-2 Jensen-Shannon distance to the reference's softmax probabilities.",
    )
    readings = []
    for name, values, how in zip(_NAMES, (same, near), hows, strict=True):
        rows = np.stack([_sum(values), _sum(both)], axis=1)
        readings.append(quality_reading(additive(name, rows, ratio_of_sums, how), seed))
    return readings


def closeness(vectors: NDArray[Any], reference: NDArray[Any]) -> Scores:
    """The mean cosine of the embeddings of texts with the reference's. vectors, reference: (texts, width)."""
    how = f"Mean cosine of the embeddings of {len(vectors)} texts with the reference's."
    cosines = cosine(vectors, reference)
    return additive("cosine", np.stack([cosines, np.ones_like(cosines)], axis=1), ratio_of_sums, how)


def cosine(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Of each row of one with the same row of the other; 0 where one of them is zero. a, b: (rows, width)."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return np.asarray((x * y).sum(1) / np.maximum(lengths, 1e-30))


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities over the last axis."""
    grown = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return np.asarray(grown / grown.sum(-1, keepdims=True))


def distance(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """Base-2 Jensen-Shannon distance over the last axis, 0 to 1."""
    middle = (p + q) / 2
    bits = (_entropy_terms(p, middle) + _entropy_terms(q, middle)) / 2
    root: NDArray[np.float64] = np.sqrt(np.clip(bits, 0, 1))
    return root


def _entropy_terms(p: NDArray[np.float64], middle: NDArray[np.float64]) -> NDArray[np.float64]:
    """KL(p | middle) in bits; 0 log 0 is 0."""
    terms: NDArray[np.float64] = p * np.log2(np.divide(p, middle, out=np.ones_like(p), where=p > 0))
    return np.asarray(terms.sum(-1))


def _sum(values: NDArray[Any]) -> NDArray[np.float64]:
    """One number a text, whether it has one answer or one a word."""
    rows: NDArray[np.float64] = np.asarray(values, np.float64).reshape(len(values), -1)
    return np.asarray(rows.sum(1))
