"""Next-token losses of a language model over windows of running text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lissom.errors import LissomError
from lissom.runtime import token_batches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lissom.runtime import Runner

WINDOW = 1024  # tokens at most; shorter where the model reads fewer
WINDOWS = 64  # at most, spread evenly over the text


def next_token_losses(
    runner: Runner, texts: Sequence[Any], *, length: int = WINDOW, windows: int = WINDOWS
) -> NDArray[np.float64]:
    """Sum of losses (natural logarithm) and number of predicted tokens of each window: (windows, 2).

    The texts are joined by blank lines, tokenized as one, and cut into windows that do not overlap. Of more than
    `windows`, as many are taken at equal distances.
    Raises LissomError LSM-853 when there are fewer than two tokens, LSM-737 when the model sees the tokens that it
    should predict, LSM-901 for NaN or Inf.
    """
    tokens = runner.token_ids("\n\n".join(texts))
    length = min(length, runner.max_length)
    pieces = [tokens[at : at + length] for at in range(0, len(tokens), length)]
    pieces = [piece for piece in pieces if len(piece) > 1]
    if not pieces:
        raise LissomError(853, "there is no running text to predict: fewer than two tokens")
    if len(pieces) > windows:
        pieces = [pieces[at * len(pieces) // windows] for at in range(windows)]
    _check_causal(runner, pieces[0][:8])
    return np.array([(_loss(runner, piece), len(piece) - 1) for piece in pieces], np.float64)


def read_through(runner: Runner, texts: Sequence[Any]) -> None:
    """One pass over every text, cut at the runner's length, in batches by tokens; what it says is dropped."""
    encodings = runner.encode(texts)
    for rows in token_batches([len(one.ids) for one in encodings], runner.tokens_per_batch):
        runner.forward(runner.pad([encodings[row] for row in rows]))


def _loss(runner: Runner, tokens: list[int]) -> float:
    logits = _logits(runner, tokens)[:-1]
    right = logits[np.arange(len(logits)), tokens[1:]]
    top = logits.max(-1)
    total = float((np.log(np.exp(logits - top[:, None]).sum(-1, dtype=np.float64)) + top - right).sum())
    if not np.isfinite(total):
        raise LissomError(901, "the model computes NaN or Inf", remedy="A model in float16 may need float32.")
    return total


def _logits(runner: Runner, tokens: list[int]) -> NDArray[np.float32]:
    ids = np.array([tokens], np.int64)
    arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    outputs = runner.forward({name: array for name, array in arrays.items() if name in runner.inputs})
    if outputs.get("logits", ids).ndim != 3:
        raise LissomError(737, "the data is running text, and this model predicts no tokens")
    logits: NDArray[np.float32] = outputs["logits"][0]
    return logits


def _check_causal(runner: Runner, tokens: list[int]) -> None:
    """A token must not change what is said before it; a masked language model fails here."""
    changed = [*tokens[:-1], tokens[0] if tokens[0] != tokens[-1] else tokens[-1] - 1 if tokens[-1] else 1]
    before, after = _logits(runner, tokens)[:-1], _logits(runner, changed)[:-1]
    if np.abs(before - after).max() > (0.2 if _rounds(runner) else 1e-4) * np.abs(before).max():
        raise LissomError(737, "this model sees the tokens that it should predict, so it has no perplexity")


def _rounds(runner: Runner) -> bool:
    """Whether int8 activations share one scale, so that a later token moves earlier answers a little in any model."""
    model = getattr(runner, "model", None)
    if model is None:
        return bool(getattr(runner, "variant", "fp32") != "fp32")
    from lissom.nn import Int8Linear

    return any(isinstance(module, Int8Linear) and module.rounds for module in model.modules())
