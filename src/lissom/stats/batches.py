"""The one way to walk calibration data: a fixed number of padded batches on the model's device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from lissom.data import Data, encode
from lissom.data.batches import pad
from lissom.errors import LissomError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS = 32


def calibration_batches(
    data: Data,
    tokenizer: PreTrainedTokenizerBase,
    *,
    samples: int,
    max_length: int,
    seed: int = 0,
    device: str = "cpu",
    labelled: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """Padded batches of at most `samples` training texts, or blocks of running text: input_ids, attention_mask (rows,
    longest) and so on.

    The texts are drawn with `seed`. Where no labels are wanted and there is no train split, the validation split gives
    them: language models are often calibrated on text that has no other.
    labelled: also `labels`, a class number or a value a text, -100 where a token has none.
    Raises LissomError LSM-821 when labels are wanted and missing.
    """
    validation = not labelled and "train" not in data.splits and "validation" in data.splits
    rows = data.split("validation" if validation else "train")
    rows = rows.shuffle(seed=seed).select(range(min(samples, len(rows))))
    encoded = encode(rows, tokenizer, data.task, max_length)
    if len(encoded) > samples:  # running text is cut into more blocks than it had rows
        encoded = encoded.shuffle(seed=seed).select(range(samples))
    if labelled and "labels" not in encoded.column_names:
        raise LissomError(821, "this step needs labelled texts", place=data.name, remedy="Give labels.")
    if not labelled and "labels" in encoded.column_names:
        encoded = encoded.remove_columns("labels")
    listed = encoded.to_list()
    for start in range(0, len(listed), ROWS):
        padded = pad(listed[start : start + ROWS], int(tokenizer.pad_token_id or 0))
        yield {name: tensor.to(device) for name, tensor in padded.items()}


def is_of_tokens(values: Tensor, mask: Tensor) -> bool:
    """Whether `values` (rows, length, ...) belong to the tokens of `mask` (rows, length). Factors see an axis more."""
    return values.dim() > mask.dim() and values.shape[: mask.dim()] == mask.shape


def cut(batches: Iterable[Mapping[str, Tensor]], rows: int) -> Iterator[dict[str, Tensor]]:
    """The batches in parts of `rows` rows at most."""
    for batch in batches:
        for start in range(0, len(batch["input_ids"]), rows):
            yield {name: one[start : start + rows] for name, one in batch.items()}
