"""After how many layers texts are answered, by the thresholds that the subject has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lissom.measure.reading import Reading, taken
from lissom.measure.scores import Scores, quality_reading

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lissom.runtime import Runner, Text


def leaving(runner: Runner, texts: Sequence[Text]) -> dict[int, int]:
    """How many texts are answered after each number of layers, ascending; {} where none leaves early."""
    if not getattr(runner, "exits", ()) or not texts:
        return {}
    counted = Counter(runner.exit_layers(texts).tolist())
    return {layer: counted[layer] for layer in sorted(counted)}


def exit_layers(runner: Runner, counts: Mapping[int, int], seed: int) -> Reading:
    """The mean, with the distribution in its words. counts: from `leaving`."""
    if not counts:
        return taken("exit_layers", None, "Not taken: texts do not leave this subject before its last layer.")
    rows = np.repeat(list(counts), list(counts.values())).astype(np.float64)
    how = f"Layers executed before a text is answered, of {runner.exits[-1]}, by the thresholds in use. {words(counts)}"
    mean = Scores(name="exit_layers", n=len(rows), how=how, value=lambda weights: weights @ rows / weights.sum(-1))
    return quality_reading(mean, seed)


def thresholds(layers: Sequence[int], leave: int) -> NDArray[np.float32]:
    """(exits,): those at which every text leaves after layer `leave`. layers: of the exits."""
    return np.where(np.array(layers) == leave, -np.inf, np.inf).astype(np.float32)


def words(counts: Mapping[int, int]) -> str:
    """The distribution as a sentence."""
    total = sum(counts.values())
    shares = ", ".join(f"{count / total:.1%} after {layer}" for layer, count in counts.items())
    return f"Of {total:,} texts {shares}."
