"""Whole words: where they stand in texts, which of them a tokenizer has as one piece, and what could stand for them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lissom.data.batches import pad

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Whole = NDArray[np.int64]

_LETTERS = r"[^\W\d_]\w*"
_WORD = re.compile(rf"(?<![\w'’-]){_LETTERS}(?![\w'’-])")  # not «don't», not «well-known»
_ONLY = re.compile(_LETTERS)
_MARKERS = ("Ġ", "▁")  # what begins a word in byte-level and in sentence pieces
_CONTINUED = "##"  # what goes on with one in word pieces
_ROWS = 512  # of a product with the table
_TEXTS = 16  # of a forward of a masked language model, whose answers are wide


@dataclasses.dataclass(frozen=True)
class Words:
    """The words that a tokenizer has as one piece, in the order of their tokens.

    ids: (words,) their tokens.  texts: as they are written.  shapes: (words,) small, Capitalized, LARGE or mixed; of a
    tokenizer that knows no case all are small.
    """

    ids: Whole
    texts: tuple[str, ...]
    shapes: Whole
    cased: bool
    numbers: dict[str, int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, rows: int) -> Words:
        """Those of `tokenizer` below the token `rows`, special tokens and inner pieces left out."""
        import numpy as np

        count = min(len(tokenizer), rows)
        pieces = [piece or "" for piece in tokenizer.convert_ids_to_tokens(list(range(count)))]
        marker = next((one for one in _MARKERS if sum(p.startswith(one) for p in pieces) * 20 > count), "")
        special = set(tokenizer.all_special_ids)
        found: dict[str, int] = {}
        for token, piece in enumerate(pieces):
            text = _written(piece, marker, tokenizer)
            if token not in special and _ONLY.fullmatch(text):
                found.setdefault(text, token)
        example = next((text for text in found if text.upper() != text), "")
        cased = tokenizer.tokenize(example.upper()) != tokenizer.tokenize(example)
        return cls(
            ids=np.fromiter(found.values(), np.int64, len(found)),
            texts=tuple(found),
            shapes=np.array([_shape(text) if cased else 0 for text in found], np.int64),
            cased=cased,
            numbers={text: number for number, text in enumerate(found)},
        )

    def number(self, word: str) -> int:
        """Its place in `texts`; -1 for a word of several pieces."""
        return self.numbers.get(word if self.cased else word.lower(), -1)

    def all(self, written: Sequence[str]) -> Whole:
        """(written,) `number` of each."""
        import numpy as np

        return np.array([self.number(word) for word in written], np.int64)

    def like(self, number: int, old: str) -> str:
        """The word of this number, with the capitals of the one that it stands for where case does not count."""
        new = self.texts[number]
        if self.cased:
            return new
        return new.upper() if old.isupper() and len(old) > 1 else new.capitalize() if old[0].isupper() else new


def _written(piece: str, marker: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The word that a piece is; empty for one that goes on with a word."""
    if not piece.startswith(marker) or (not marker and piece.startswith(_CONTINUED)):
        return ""
    if marker == "Ġ" and not piece[1:].isascii():  # bytes, written as other letters
        return tokenizer.convert_tokens_to_string([piece]).strip()
    return piece.removeprefix(marker)


def _shape(text: str) -> int:
    return next((i for i, one in enumerate((text.lower(), text.capitalize(), text.upper())) if text == one), 3)


@dataclasses.dataclass(frozen=True)
class Spans:
    """The words of several texts, in order: the number of the text, first character, and the one behind the last."""

    text: Whole
    start: Whole
    end: Whole
    words: tuple[str, ...]

    @classmethod
    def of(cls, texts: Sequence[str]) -> Spans:
        """Every word that is made of letters, and of digits after the first one."""
        import numpy as np

        found = [(row, *m.span(), m[0]) for row, text in enumerate(texts) for m in _WORD.finditer(text)]
        places = np.array([one[:3] for one in found], np.int64).reshape(-1, 3)
        return cls(places[:, 0], places[:, 1], places[:, 2], tuple(one[3] for one in found))


def nearest(words: Words, table: Tensor, wanted: Whole, count: int) -> Whole:
    """For each word in `wanted` the `count` others of its shape that are nearest to it by cosine, the nearest first.

    table: (tokens, width).  Returns (wanted, count) numbers of words, -1 where there are no more.
    """
    import numpy as np
    import torch
    from torch.nn.functional import normalize

    found = np.full((len(wanted), count), -1, np.int64)
    unit = normalize(table[torch.from_numpy(words.ids).to(table.device)].float(), dim=1)
    for shape in np.unique(words.shapes[wanted]):
        others, mine = np.flatnonzero(words.shapes == shape), np.flatnonzero(words.shapes[wanted] == shape)
        among = unit[torch.from_numpy(others).to(unit.device)]
        kept = min(count, len(others) - 1)
        for start in range(0, len(mine), _ROWS):
            rows = mine[start : start + _ROWS]
            near = unit[torch.from_numpy(wanted[rows]).to(unit.device)] @ among.T
            itself = torch.from_numpy(np.searchsorted(others, wanted[rows])).to(near.device)
            near[torch.arange(len(rows), device=near.device), itself] = -torch.inf
            found[rows, :kept] = others[near.topk(kept, dim=1).indices.cpu().numpy()]
    return found


def proposed(
    words: Words,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: tuple[Sequence[str], ...],
    places: Sequence[tuple[int, int, int, int, int]],
    *,
    count: int,
    max_length: int,
) -> Whole:
    """For each place the `count` other words of its shape that `model` finds most likely where its word is masked.

    model: a masked language model.  texts: of each side of the rows.  places: side, row, first character and the one
        behind the last of a word of one piece, and its number.
    Returns (places, count) numbers of words, -1 where there are no more or the place is cut off.
    """
    import numpy as np
    import torch

    encoded = tokenizer(*(list(one) for one in texts), truncation=True, max_length=max_length)
    rows: list[dict[str, Any]] = []
    of: list[int] = []
    for number, (side, row, start, end, _) in enumerate(places):
        token = encoded.char_to_token(row, start, side)
        if token is not None and token == encoded.char_to_token(row, end - 1, side):
            ids = list(encoded["input_ids"][row])
            ids[token] = tokenizer.mask_token_id
            rows.append({**{name: one[row] for name, one in encoded.items()}, "input_ids": ids, "at": token})
            of.append(number)
    found = np.full((len(places), count), -1, np.int64)
    shapes, ids_of = torch.from_numpy(words.shapes), torch.from_numpy(words.ids).to(model.device)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    for first in range(0, len(order), _TEXTS):
        chosen = order[first : first + _TEXTS]
        batch = pad([rows[i] for i in chosen], tokenizer.pad_token_id or 0)
        at = batch.pop("at")
        with torch.no_grad():
            logits = model(**{name: one.to(model.device) for name, one in batch.items()})["logits"]
        scores = logits[torch.arange(len(chosen)), at][:, ids_of].float().cpu()
        itself = torch.tensor([places[of[i]][4] for i in chosen])
        scores[shapes != shapes[itself][:, None]] = -torch.inf
        scores[torch.arange(len(chosen)), itself] = -torch.inf
        best = scores.topk(min(count, len(words.ids)), dim=1)
        for i, values, numbers in zip(chosen, best.values, best.indices, strict=True):
            kept = numbers[torch.isfinite(values)].numpy()
            found[of[i], : len(kept)] = kept
    return found
