"""What a model says about texts, in words: the label and how sure it is, instead of logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lissom.runtime.runner import Runner, Text


def answers(runner: Runner, texts: Sequence[Text]) -> list[dict[str, Any]]:
    """One answer a text, in order, as plain values.

    A classifier gives `label` and `score` (softmax, 0 to 1); a regression gives `score`; lists of words give `tags`,
    one `label` and `score` a word, None for a word that max_length cut off; a model without classes gives `embedding`.
    Raises what `Runner.predict` raises.
    """
    outputs = runner.predict(texts)
    if not runner.labels:
        return [{"embedding": row.astype(float).tolist()} for row in outputs]
    if outputs.ndim == 3:
        return [
            {"tags": [_named(runner, word) for word in row[: len(text)]]}
            for row, text in zip(outputs, texts, strict=True)
        ]
    if len(runner.labels) == 1:
        return [{"score": float(row[0])} for row in outputs]
    return [_named(runner, row) or {} for row in outputs]


def _named(runner: Runner, logits: NDArray[np.float32]) -> dict[str, Any] | None:
    """The class with the highest logit; None where there are no logits."""
    if np.isnan(logits).any():
        return None
    shares = np.exp(logits - logits.max(), dtype=np.float64)
    best = int(shares.argmax())
    return {"label": runner.labels[best], "score": float(shares[best] / shares.sum())}
