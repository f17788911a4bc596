"""How many hidden tokens of running text a masked language model names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lissom.errors import LissomError
from lissom.runtime import token_batches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lissom.runtime import Runner

TEXTS = 512  # at most, spread evenly over the data
SHARE = 0.15
_TOKENS = 1024  # in a batch: the answers are as many numbers for each as there are tokens in the vocabulary


def hidden_tokens(runner: Runner, texts: Sequence[Any]) -> NDArray[np.float64]:
    """Right answers and hidden tokens of each text, (texts, 2).

    Of each text, cut at the runner's length, 15 % of the tokens, at least one, are put behind the mask token, always
    the same ones; special tokens never. Texts without any other token are left out.
    Raises LissomError LSM-737 when the tokenizer has no mask token or the model answers no tokens, LSM-853 when there
    is nothing to hide, LSM-901 for NaN.
    """
    mask = _mask(runner)
    some = [texts[at * len(texts) // min(TEXTS, len(texts))] for at in range(min(TEXTS, len(texts)))]
    encodings = runner.encode(some)
    draw = np.random.default_rng(0)
    places = [_hidden(np.asarray(one.special_tokens_mask), draw) for one in encodings]
    counts = np.zeros((len(some), 2))
    for rows in token_batches([len(one.ids) for one in encodings], _TOKENS):
        batch = runner.pad([encodings[row] for row in rows])
        wanted = batch["input_ids"].copy()
        for at, row in enumerate(rows):
            batch["input_ids"][at, places[row]] = mask
        logits = runner.forward(batch).get("logits", np.zeros(0))
        if logits.ndim != 3:
            raise LissomError(737, "the data is running text, and this model predicts no tokens")
        for at, row in enumerate(rows):
            said = logits[at, places[row]]
            if np.isnan(said).any():
                raise LissomError(901, "the model computes NaN", remedy="A model in float16 may need float32.")
            counts[row] = (said.argmax(-1) == wanted[at, places[row]]).sum(), len(places[row])
    counts = counts[counts[:, 1] > 0]
    if not len(counts):
        raise LissomError(853, "there is no running text to hide tokens of")
    return counts


def _hidden(special: NDArray[Any], draw: np.random.Generator) -> NDArray[np.int64]:
    """The positions in a text that are hidden."""
    free = np.flatnonzero(special == 0)
    count = max(1, round(SHARE * len(free))) if len(free) else 0
    return np.sort(draw.permutation(free)[:count])


def _mask(runner: Runner) -> int:
    """The number of the mask token."""
    known = {} if runner.tokenizer is None else runner.tokenizer.get_added_tokens_decoder()
    found = [number for number, token in known.items() if token.special and "mask" in token.content.lower()]
    if not found:
        raise LissomError(737, "the data is running text, and the tokenizer has no mask token to hide tokens with")
    return int(found[0])
