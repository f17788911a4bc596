"""What every engine shares: text in, arrays out. Needs numpy and `tokenizers`, neither torch nor transformers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lissom.errors import LissomError
from lissom.files import Sentence
from lissom.runtime.batches import token_batches

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Encoding, Tokenizer

Text = str | tuple[str, str] | Sequence[str]  # a text, a pair of texts, or a list of words
Arrays = dict[str, NDArray[Any]]


class Runner(ABC):
    """Answers texts with one engine.

    name: the engine.  labels: names of the classes in the order of the logits; empty for a model without classes.
    tokenizer: a private copy, truncating at max_length tokens, or None (then only `forward` works).
    inputs: names of the arrays that `forward` reads.  folder: where the subject came from, None for a model object.
    files: the weight files that the engine reads; empty when the weights are only in memory.
    tokens_per_batch: the engine's default budget, padding included.
    sentence: how states become embeddings; None for a model with a head.
    exits: after how many layers a text may be answered, the last being all of them; empty where none leaves early.
    """

    name: ClassVar[str]
    tokens_per_batch: ClassVar[int]

    def __init__(
        self,
        *,
        tokenizer: Tokenizer | None,
        max_length: int,
        inputs: frozenset[str],
        pad_id: int,
        labels: tuple[str, ...],
        folder: Path | None,
        files: tuple[Path, ...],
        truncation_side: str = "right",
        sentence: Sentence | None = None,
        exits: tuple[int, ...] = (),
    ) -> None:
        self.sentence = sentence
        self.exits = exits
        self.max_length = max_length
        self.inputs = inputs
        self.pad_id = pad_id
        self.labels = labels
        self.folder = folder
        self.files = files
        self.tokenizer = tokenizer
        self._cut_left = truncation_side == "left"
        if tokenizer is not None:
            tokenizer.no_padding()
            _check_room(tokenizer, max_length)
            tokenizer.enable_truncation(max_length, direction=truncation_side)

    @abstractmethod
    def forward(self, batch: Arrays) -> Arrays:
        """One pass over padded arrays (rows, longest), int64.

        Returns float32 arrays under the names of the model's outputs: `logits` (rows, classes) or (rows, longest,
        classes); `start_logits` and `end_logits` (rows, longest); or `embeddings` (rows, hidden). Where texts leave
        early also `exit_layer` (rows,), after how many layers each was answered.
        """

    def predict(self, texts: Sequence[Text], *, tokens_per_batch: int | None = None) -> NDArray[np.float32]:
        """The answers to `texts` in their order: (texts, classes), logits or embeddings; tokenization included.

        Word lists (tagging) give (texts, most words, classes), read at the first token of each word; places without
        a word, words cut off by max_length, and words of which the tokenizer leaves nothing, hold NaN.
        tokens_per_batch: rows x longest row; lower it when memory is short. Default: the engine's.
        Raises LissomError LSM-901 when the model computes NaN or Inf, LSM-212 without a tokenizer, LSM-733 when the
        model answers every token of a plain text.
        """
        if not texts:
            return np.zeros((0, len(self.labels)), dtype=np.float32)
        encodings = self.encode(texts)
        answers: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(texts)
        for rows, outputs in self._passes(encodings, tokens_per_batch):
            output = answer_of(outputs)
            for place, row in enumerate(rows):
                text, answer = texts[row], output[place]
                _check_finite(answer[: len(encodings[row].ids)] if answer.ndim > 1 else answer, row)
                answers[row] = _first_tokens(answer, encodings[row], len(text)) if isinstance(text, list) else answer
        if isinstance(texts[0], list):
            return _stack_words(answers, [len(words) for words in texts])
        if answers[0].ndim != 1:
            raise LissomError(
                733,
                "one answer a text is asked for, and this model answers every token",
                remedy="Give lists of words to a tagging model; measure a language model by its perplexity.",
            )
        return np.stack(answers)

    def exit_layers(self, texts: Sequence[Text]) -> NDArray[np.int64]:
        """After how many layers each text is answered, (texts,), in batches as `predict` makes them; needs `exits`."""
        found = np.zeros(len(texts), np.int64)
        for rows, outputs in self._passes(self.encode(texts), None):
            found[list(rows)] = outputs["exit_layer"]
        return found

    def _passes(self, encodings: list[Encoding], budget: int | None) -> Iterator[tuple[Sequence[int], Arrays]]:
        """Numbers of the texts of each batch, and the outputs for them."""
        for rows in token_batches([len(one.ids) for one in encodings], budget or self.tokens_per_batch):
            yield rows, self.forward(self.pad([encodings[row] for row in rows]))

    def encode(self, texts: Sequence[Text]) -> list[Encoding]:
        """The tokens of each text with the model's special tokens, cut at max_length, not padded.

        Raises LissomError LSM-212 without a tokenizer, LSM-213 when texts, pairs and word lists are mixed.
        """
        kinds = {type(text) for text in texts}
        if kinds not in ({str}, {tuple}, {list}):
            found = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise LissomError(
                213,
                f"texts must be all str, all pairs (tuple) or all lists of words, found {found}",
                remedy="Call once for each kind.",
            )
        return self._reads().encode_batch(list(texts), is_pretokenized=kinds == {list})

    def token_ids(self, text: str) -> list[int]:
        """All tokens of a text, uncut and without special tokens: what windows of running text are made of."""
        encoding = self._reads().encode(text, add_special_tokens=False)
        pieces = [encoding, *encoding.overflowing]
        return [token for piece in (reversed(pieces) if self._cut_left else pieces) for token in piece.ids]

    def pad(self, encodings: Sequence[Encoding]) -> Arrays:
        """The arrays that `forward` reads, (rows, longest) int64, padded on the right."""
        shape = (len(encodings), max(1, *(len(one.ids) for one in encodings)))
        batch = {
            "input_ids": np.full(shape, self.pad_id, np.int64),
            "attention_mask": np.zeros(shape, np.int64),
            "token_type_ids": np.zeros(shape, np.int64),
        }
        for row, one in enumerate(encodings):
            batch["input_ids"][row, : len(one.ids)] = one.ids
            batch["attention_mask"][row, : len(one.ids)] = 1
            batch["token_type_ids"][row, : len(one.ids)] = one.type_ids
        return {name: array for name, array in batch.items() if name in self.inputs}

    def _reads(self) -> Tokenizer:
        if self.tokenizer is None:
            raise LissomError(
                212, "this model came without a tokenizer and cannot read texts", remedy="Give it with tokenizer=."
            )
        return self.tokenizer


def answer_of(outputs: Arrays) -> NDArray[np.float32]:
    """The one array that answers: logits, embeddings, or start and end logits as (rows, longest, 2)."""
    if "start_logits" in outputs:
        return np.stack([outputs["start_logits"], outputs["end_logits"]], axis=-1)
    return outputs["logits"] if "logits" in outputs else outputs["embeddings"]


def embed(hidden: NDArray[np.float32], mask: NDArray[np.int64], how: Sentence) -> NDArray[np.float32]:
    """Embeddings of texts as sentence-transformers computes them, (rows, hidden).

    hidden: (rows, longest, hidden).  mask: (rows, longest), 1 for a real token, padded on the right.
    """
    if how.pooling == "cls":
        found = hidden[:, 0]
    else:
        weights = mask[:, None, :].astype(np.float32)
        found = (weights @ hidden)[:, 0, :] / np.maximum(weights.sum(-1), 1)
    if how.normalize:
        found = found / np.maximum(np.linalg.norm(found, axis=-1, keepdims=True), 1e-12)
    return np.asarray(found, np.float32)


def usable_length(asked: int | None, tokenizer_limit: int | None, positions: int | None) -> int:
    """The longest text in tokens: what is asked for, else what tokenizer and position embeddings both allow, else 512.

    Raises LissomError LSM-211 when more is asked for than the model has positions for.
    """
    if asked is None:
        limits = [limit for limit in (tokenizer_limit, positions) if limit]
        return min(limits, default=512)
    if asked < 1 or (positions and asked > positions):
        raise LissomError(
            211,
            f"a maximum length of {asked} tokens is asked for, the model reads 1 to {positions or 'any number'}",
            remedy="Choose a smaller --max-length.",
        )
    return asked


def _first_tokens(answer: NDArray[np.float32], encoding: Encoding, words: int) -> NDArray[np.float32]:
    """(words, classes): the row of `answer` (longest, classes) at the first token of each word, NaN without one."""
    first: dict[int, int] = {}
    for token, word in enumerate(encoding.word_ids):
        if word is not None:
            first.setdefault(word, token)
    found = np.full((words, answer.shape[-1]), np.nan, np.float32)
    found[list(first)] = answer[list(first.values())]
    return found


def _stack_words(answers: Sequence[NDArray[np.float32]], words: Sequence[int]) -> NDArray[np.float32]:
    stacked = np.full((len(answers), max(words), answers[0].shape[-1]), np.nan, np.float32)
    for row, answer in enumerate(answers):
        stacked[row, : len(answer)] = answer
    return stacked


def _check_room(tokenizer: Tokenizer, max_length: int) -> None:
    """Raise LissomError LSM-824 when a text cut at `max_length` would hold special tokens only."""
    special = tokenizer.num_special_tokens_to_add(is_pair=False)
    if max_length <= special:
        cause = f"at {max_length} tokens there is no room for a text beside {special} special tokens"
        raise LissomError(824, cause, remedy="Raise --max-length.")


def _check_finite(answer: NDArray[np.float32], row: int) -> None:
    if not np.isfinite(answer).all():
        raise LissomError(
            901,
            "the model computes NaN or Inf",
            place=f"text {row + 1}",
            remedy="Its weights are damaged, or a model in float16 needs float32.",
        )
