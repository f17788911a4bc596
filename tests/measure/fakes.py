"""Runners and data that answer at once and as the test says."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from lissom.data import Data, load_data


class Fake:
    """Answers each text by a function; counts and logs its calls."""

    name = "torch"
    max_length = 16
    tokens_per_batch = 64
    sentence = None

    def __init__(
        self,
        say: Callable[[object], Sequence[float]] = lambda text: (0.0, 1.0),
        *,
        labels: tuple[str, ...] = ("bad", "good"),
        called: str = "",
        log: list[tuple[str, int]] | None = None,
        on_call: Callable[[int], None] = lambda texts: None,
    ) -> None:
        self.say, self.labels, self.called, self.on_call = say, labels, called, on_call
        self.log: list[tuple[str, int]] = [] if log is None else log
        self.folder: Path | None = None
        self.files: tuple[Path, ...] = ()

    def predict(self, texts: Sequence[object], *, tokens_per_batch: int | None = None) -> np.ndarray:
        self.log.append((self.called, len(texts)))
        self.on_call(len(texts))
        return np.array([self.say(text) for text in texts], np.float32)


def reviews(rows: int = 20) -> Data:
    """Texts "good 0", "bad 1", ... whose label is their first word."""
    words = [("good", "bad")[row % 2] for row in range(rows)]
    texts = {"text": [f"{word} {row}" for row, word in enumerate(words)], "label": words}
    return load_data({"test": texts}, model_labels=("bad", "good"))


def honest(text: object) -> tuple[float, float]:
    """Always right about `reviews`."""
    return (0.0, 3.0) if str(text).startswith("good") else (3.0, 0.0)
