"""From normalised rows to token numbers, in memory, without padding."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lissom.errors import LissomError

if TYPE_CHECKING:
    import datasets
    from transformers import BatchEncoding, PreTrainedTokenizerBase

    from lissom.data.task import Task

log = logging.getLogger(__name__)

IGNORED = -100  # a position that no loss and no metric counts
_RUNNING = ("language_modelling", "masked_language_modelling")
_ROWS = 1000  # tokenized at a time; the tokenizer's own threads work inside such a batch


def encode(
    dataset: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, task: Task, max_length: int
) -> datasets.Dataset:
    """Token numbers of each row, in the order of `dataset`: what a model's forward takes, as ragged lists.

    Columns: `input_ids`, `attention_mask`, `token_type_ids` if the tokenizer gives them, and
    - classification, regression: `labels`, one int or float a row, if the rows have labels;
    - tagging: `labels`, one a token: the tag at the first sub-word of each word, -100 elsewhere, if the rows have tags;
    - question answering: `start_positions`, `end_positions` of the first answer; 0 where it was cut off or is missing;
    - text to text: `labels`, the tokens of the target, cut like the text;
    - embedding: each text of a pair as a row of its own, without labels;
    - language modelling: rows are blocks of `max_length` tokens (the last one may be shorter, at least 2) that run
      over the ends of texts, which the end-of-sequence token marks if there is one; `labels` = `input_ids`;
    - masked language modelling: the same, but each text with the special tokens that the tokenizer puts around it, and
      without labels: `lissom.data.hide` makes them.
    max_length: in tokens, special ones counted, lowered to the tokenizer's own limit. Longer texts are cut, which is
        counted in a logged line and in `.info.description` of the result ("12 of 911 texts were cut at 128 tokens").
    Raises LissomError 809 without rows, 824 when max_length leaves no room for a text, 825 when the task needs
    another kind of tokenizer.
    """
    import datasets as hub

    if not len(dataset):
        raise LissomError(809, "there are no rows to encode")
    max_length = _checked(dataset, tokenizer, task, max_length)
    if task.kind in _RUNNING:
        return _blocks(dataset, tokenizer, max_length, hidden=task.kind == "masked_language_modelling")
    makers = {"tagging": _tagged, "question_answering": _answered, "text_to_text": _written, "embedding": _apart}
    make = makers.get(task.kind, _labelled)
    parts, cut = [], 0
    for start in range(0, len(dataset), _ROWS):
        columns, lost = make(dataset[start : start + _ROWS], tokenizer, max_length)
        parts.append(hub.Dataset.from_dict(columns, features=_features(columns, task.kind)))
        cut += lost
    encoded = hub.concatenate_datasets(parts)
    if cut:
        encoded.info.description = f"{cut} of {len(dataset)} texts were cut at {max_length} tokens"
        log.warning("%s.", encoded.info.description)
    return encoded


def _checked(dataset: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, task: Task, max_length: int) -> int:
    """The length to cut at."""
    pair = not {"text_b", "context"}.isdisjoint(dataset.column_names) and task.kind != "embedding"
    running = task.kind in _RUNNING
    least = 2 if running else tokenizer.num_special_tokens_to_add(pair=pair) + 1 + pair
    if max_length < least:
        cause = f"max_length {max_length} leaves no room for a text; this tokenizer needs {least} or more"
        raise LissomError(824, cause)
    if task.kind in ("tagging", "question_answering") and not tokenizer.is_fast:
        cause = f"{task.kind} needs a fast tokenizer, and {type(tokenizer).__name__} is none"
        raise LissomError(825, cause, remedy="Use the model's tokenizer.json.")
    return min(max_length, tokenizer.model_max_length)  # which is 1e30 where the tokenizer has no limit


def _cut(encoded: BatchEncoding, tokenizer: PreTrainedTokenizerBase, max_length: int) -> int:
    """How many rows lost tokens. A slow tokenizer does not tell: full rows are counted."""
    if tokenizer.is_fast:
        return sum(bool(one.overflowing) for one in encoded.encodings or ())
    return sum(len(row) >= max_length for row in encoded["input_ids"])


def _labelled(
    rows: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[dict[str, Any], int]:
    second = rows.get("text_b")
    encoded = tokenizer(rows["text"], second, truncation=True, max_length=max_length)
    columns = dict(encoded)
    if "label" in rows:
        columns["labels"] = rows["label"]
    return columns, _cut(encoded, tokenizer, max_length)


def _written(
    rows: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[dict[str, Any], int]:
    encoded = tokenizer(rows["text"], truncation=True, max_length=max_length)
    target = tokenizer(text_target=rows["target"], truncation=True, max_length=max_length)
    lost = max(_cut(one, tokenizer, max_length) for one in (encoded, target))
    return {**encoded, "labels": target["input_ids"]}, lost


def _apart(rows: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[dict[str, Any], int]:
    sides = zip(*(rows[name] for name in ("text", "text_b") if name in rows), strict=True)
    encoded = tokenizer([text for row in sides for text in row], truncation=True, max_length=max_length)
    return dict(encoded), _cut(encoded, tokenizer, max_length)


def _tagged(rows: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[dict[str, Any], int]:
    encoded = tokenizer(rows["tokens"], is_split_into_words=True, truncation=True, max_length=max_length)
    columns = dict(encoded)
    if "tags" in rows:
        columns["labels"] = [_first_subwords(encoded.word_ids(row), tags) for row, tags in enumerate(rows["tags"])]
    return columns, _cut(encoded, tokenizer, max_length)


def _first_subwords(words: Sequence[int | None], tags: Sequence[int]) -> list[int]:
    before = (None, *words)
    return [IGNORED if word is None or word == last else tags[word] for word, last in zip(words, before, strict=False)]


def _answered(
    rows: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[dict[str, Any], int]:
    encoded = tokenizer(
        rows["question"],
        rows["context"],
        truncation=True,
        max_length=max_length,
        return_offsets_mapping=True,
    )
    columns = dict(encoded)
    offsets = columns.pop("offset_mapping")
    spans = [
        _span(offsets[row], encoded.sequence_ids(row), answers) for row, answers in enumerate(rows.get("answers", ()))
    ]
    if spans:
        columns["start_positions"], columns["end_positions"] = (list(side) for side in zip(*spans, strict=True))
    return columns, _cut(encoded, tokenizer, max_length)


def _span(
    offsets: Sequence[tuple[int, int]], sides: Sequence[int | None], answers: Mapping[str, Any]
) -> tuple[int, int]:
    """First and last token of the first answer; (0, 0) when it is not wholly there."""
    if not answers["text"]:
        return 0, 0
    start = answers["answer_start"][0]
    end = start + len(answers["text"][0])
    inside = [
        at
        for at, ((first, last), side) in enumerate(zip(offsets, sides, strict=True))
        if side == 1 and first < end and last > start
    ]
    whole = inside and offsets[inside[0]][0] <= start and offsets[inside[-1]][1] >= end
    return (inside[0], inside[-1]) if whole else (0, 0)


def _blocks(
    dataset: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, *, hidden: bool
) -> datasets.Dataset:
    import datasets as hub

    end = [] if tokenizer.eos_token_id is None or hidden else [tokenizer.eos_token_id]
    stream: list[int] = []
    for start in range(0, len(dataset), _ROWS):
        texts = dataset[start : start + _ROWS]["text"]
        encoded = tokenizer(texts, add_special_tokens=hidden, return_attention_mask=False, verbose=False)
        for tokens in encoded["input_ids"]:
            stream += tokens + end
    blocks = [stream[at : at + max_length] for at in range(0, len(stream), max_length)]
    if blocks and len(blocks[-1]) < 2:  # a single token has nothing to predict
        blocks.pop()
    columns = {"input_ids": blocks, "attention_mask": [[1] * len(one) for one in blocks]}
    columns |= {} if hidden else {"labels": blocks}
    return hub.Dataset.from_dict(columns, features=_features(columns, "language_modelling"))


def _features(columns: Mapping[str, Any], kind: str) -> datasets.Features:
    import datasets as hub

    tokens, small = hub.List(hub.Value("int32")), hub.List(hub.Value("int8"))
    kinds: dict[str, Any] = {
        "input_ids": tokens,
        "attention_mask": small,
        "token_type_ids": small,
        "labels": {
            "classification": hub.Value("int64"),
            "regression": hub.Value("float32"),
            "tagging": tokens,
            "language_modelling": tokens,
            "text_to_text": tokens,
        }.get(kind),
        "start_positions": hub.Value("int64"),
        "end_positions": hub.Value("int64"),
    }
    return hub.Features({name: kinds.get(name, tokens) for name in columns})
