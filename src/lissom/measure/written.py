"""How well a model with an encoder and a decoder foresees given texts: each token, from the right ones before it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from lissom.errors import LissomError
from lissom.runtime import token_batches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lissom.runtime import Runner

TEXTS = 512  # at most, spread evenly over the data
_TOKENS = 1024  # of targets in a batch: the answers are as many numbers for each as there are tokens in the vocabulary


@dataclasses.dataclass(frozen=True)
class Foreseen:
    """counts: of each pair the summed loss (natural logarithm), the tokens named, and all tokens of its target, (n, 3).

    said: of each pair the likeliest token at each place.
    """

    counts: NDArray[np.float64]
    said: tuple[NDArray[np.int64], ...]


def foreseen(runner: Runner, pairs: Sequence[Any]) -> Foreseen:
    """What the model says to each token of the targets. pairs: (source, target), each cut at the runner's length.

    Raises LissomError LSM-737 for a model that does not write what it has read, LSM-901 for NaN or infinity.
    """
    model: Any = getattr(runner, "model", None)
    if model is None or not (model.config.is_encoder_decoder and model.can_generate()):
        raise LissomError(737, "the data has written answers, and this model does not write what it has read")
    some = [pairs[at * len(pairs) // min(TEXTS, len(pairs))] for at in range(min(TEXTS, len(pairs)))]
    sources, targets = (runner.encode([pair[side] for pair in some]) for side in (0, 1))
    counts = np.zeros((len(some), 3))
    said: list[NDArray[np.int64]] = [np.zeros(0, np.int64)] * len(some)
    for rows in token_batches([len(one.ids) for one in targets], _TOKENS):
        batch = runner.pad([sources[row] for row in rows])
        wanted = runner.pad([targets[row] for row in rows])["input_ids"]
        first = np.full((len(rows), 1), model.config.decoder_start_token_id, np.int64)
        logits = runner.forward({**batch, "decoder_input_ids": np.hstack([first, wanted[:, :-1]])})["logits"]
        for at, row in enumerate(rows):
            length = len(targets[row].ids)
            counts[row], said[row] = _judged(logits[at, :length], wanted[at, :length])
    return Foreseen(counts, tuple(said))


def _judged(logits: NDArray[np.float32], wanted: NDArray[np.int64]) -> tuple[tuple[float, int, int], NDArray[np.int64]]:
    """Loss, tokens named and tokens; and what was said. logits: (tokens, vocabulary)."""
    top = logits.max(-1)
    right = logits[np.arange(len(wanted)), wanted]
    loss = float((np.log(np.exp(logits - top[:, None]).sum(-1, dtype=np.float64)) + top - right).sum())
    if not np.isfinite(loss):
        raise LissomError(901, "the model computes NaN or Inf", remedy="A model in float16 may need float32.")
    said = logits.argmax(-1)
    return (loss, int((said == wanted).sum()), len(wanted)), said
