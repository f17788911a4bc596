"""The one way to walk calibration data: a fixed number of padded batches on the model's device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lissom.data import Data, encode
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
    """Padded batches of at most `samples` training texts: input_ids, attention_mask (rows, longest) and so on.

    The texts are drawn with `seed`. labelled: also `labels`, a class number or a value a text, -100 where a token has
    none. Raises LissomError LSM-821 when labels are wanted and missing.
    """
    rows = data.split("train")
    rows = rows.shuffle(seed=seed).select(range(min(samples, len(rows))))
    encoded = encode(rows, tokenizer, data.task, max_length)
    if labelled and "labels" not in encoded.column_names:
        raise LissomError(821, "this step needs labelled texts", place=data.name, remedy="Choose by: magnitude.")
    for start in range(0, len(encoded), ROWS):
        yield _padded(encoded[start : start + ROWS], int(tokenizer.pad_token_id or 0), labelled, device)


_FILL = {"attention_mask": 0, "token_type_ids": 0, "labels": -100}


def _padded(rows: dict[str, list[Any]], pad: int, labelled: bool, device: str) -> dict[str, Tensor]:
    longest = max(len(ids) for ids in rows["input_ids"])
    batch = {}
    for name, values in rows.items():
        if name == "labels" and not labelled:
            continue
        if name in (*_FILL, "input_ids") and isinstance(values[0], list):
            fill = _FILL.get(name, pad)
            batch[name] = torch.tensor([[*row, *[fill] * (longest - len(row))] for row in values], device=device)
        else:
            batch[name] = torch.tensor(values, device=device)
    return batch
