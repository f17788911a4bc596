"""A teacher's answers to all rows, computed once: in memory for the run, on disk for the next with the same rows."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from lissom.data.batches import pad
from lissom.train.cache import kept

if TYPE_CHECKING:
    from collections.abc import Mapping

    import datasets
    from torch import Tensor
    from transformers import PreTrainedModel


_ROWS = 64  # a forward
LABELS = frozenset({"labels", "start_positions", "end_positions"})


def autocast(device: torch.device, bf16: bool) -> AbstractContextManager[Any]:
    """bf16 autocast, or nothing."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


def forced(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """`inputs`, with what the decoder of a model that writes is given: the labels, one token later."""
    labels = inputs.get("labels")
    writes = model.config.is_encoder_decoder and model.can_generate()
    if labels is None or not writes or "decoder_input_ids" in inputs:
        return inputs
    later: Tensor = cast("Any", model).prepare_decoder_input_ids_from_labels(labels=labels)
    return {**inputs, "decoder_input_ids": later}


def one_answer_a_row(model: PreTrainedModel) -> bool:
    """Whether `model` answers a row with one list of numbers, which is little enough to keep for all rows."""
    return type(model).__name__.endswith("ForSequenceClassification")


def answers(teacher: PreTrainedModel, rows: datasets.Dataset, path: Path, *, pad_id: int, bf16: bool) -> Tensor:
    """The logits of `teacher` for each row, (rows, classes) float32, read from `path` if they are there.

    path: named by everything that decides the answers; a file that is torn or of another size is made anew.
    """
    stored = kept(
        path,
        lambda found: len(found["logits"]) == len(rows),
        lambda: {"logits": _computed(teacher, rows, pad_id, bf16)},
    )
    return stored["logits"]


def _computed(teacher: PreTrainedModel, rows: datasets.Dataset, pad_id: int, bf16: bool) -> Tensor:
    listed = rows.remove_columns([name for name in rows.column_names if name in LABELS]).to_list()
    order = sorted(range(len(listed)), key=lambda i: len(listed[i]["input_ids"]))
    parts = []
    for start in range(0, len(order), _ROWS):
        batch = pad([listed[i] for i in order[start : start + _ROWS]], pad_id)
        with torch.no_grad(), autocast(teacher.device, bf16):
            parts.append(
                teacher(**{name: one.to(teacher.device) for name, one in batch.items()})["logits"].float().cpu()
            )
    found = torch.empty_like(torch.cat(parts))
    found[torch.tensor(order)] = torch.cat(parts)
    return found
