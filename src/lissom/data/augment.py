"""More training texts: copies in which words give way to others, to the mask token, or to nothing.

For each copy of a text, and each word of it, a number u is drawn: u < `mask` masks the word, u < `mask` + `probability`
puts one of its `candidates` in its place, any of them alike. Then with the odds `ngram` all but 1 to 5 words in a row
go. Labels stay. A copy that repeats its original, or another copy of it, is left out.

Sources: Jiao et al. 2020 (TinyBERT), section 3.2 and algorithm 1, for `probability` and `candidates`; Tang et al. 2019,
section 3.3, for `mask` and `ngram`. Differs from TinyBERT: neighbours are sought in the model's own token table, not in
GloVe; words of several pieces stay; candidates come from one of the two sources; a word is no candidate for itself.
Differs from Tang et al.: candidates are neighbours, not words of the same part of speech; both texts of a pair are
changed, each by itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from lissom.data.words import Spans, Words, nearest, proposed
from lissom.errors import LissomError

if TYPE_CHECKING:
    import datasets
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lissom.data.task import Kind
    from lissom.data.words import Whole

    Shares = NDArray[np.float64]

_LONGEST = 5  # words of an n-gram
_SIDES = ("text", "text_b")
_FIXED = ("tagging", "question_answering", "text_to_text")  # their labels stand at words, or say the same

Keep = Callable[[Sequence[Any], "PreTrainedModel", Callable[[], "dict[str, Tensor]"]], "dict[str, Tensor]"]
"""Stores tensors that take long to make under what decides them: plain values and a model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
    """The option group `augment` of `tune`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}

    copies: Annotated[int, Field(ge=1, le=1000, description="changed copies of each text, beside the original")] = 1
    probability: Annotated[float, Field(ge=0, le=1, description="odds that a word gives way to another")] = 0.4
    candidates: Annotated[int, Field(ge=1, le=1000, description="how many words may stand for one")] = 15
    by: Annotated[
        Literal["embeddings", "mlm"],
        Field(description="nearest in the model's token table, or what a masked language model proposes"),
    ] = "embeddings"
    mask: Annotated[float, Field(ge=0, le=1, description="odds that a word becomes the mask or unknown token")] = 0.0
    ngram: Annotated[float, Field(ge=0, le=1, description="odds that only 1 to 5 words in a row are left")] = 0.0

    def check(self, kind: Kind | None, models: Sequence[PreTrainedModel], tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises LSM-317 without a masked language model or mask token that is needed, LSM-319 where labels stand at
        words. models: those that may propose words."""
        if kind in _FIXED:
            cause = f"the labels of {kind.replace('_', ' ')} stand at words, and augment changes those"
            raise LissomError(319, cause, place="augment", remedy="Leave it out.")
        if self.by == "mlm" and (not any(map(is_mlm, models)) or tokenizer.mask_token_id is None):
            names = " and ".join(type(one).__name__ for one in models) or "no model"
            cause = f"a masked language model proposes the words, and there is {names}"
            raise LissomError(317, cause, place="augment.by", remedy="Use embeddings, or teach with a *ForMaskedLM.")
        if self.mask and _masking(tokenizer) is None:
            cause = "the tokenizer has neither a mask nor an unknown token"
            raise LissomError(317, cause, place="augment.mask", remedy="Leave mask at 0.")


def is_mlm(model: PreTrainedModel) -> bool:
    """Whether `model` fills in masked tokens."""
    return type(model).__name__.endswith("ForMaskedLM")


def _masking(tokenizer: PreTrainedTokenizerBase) -> str | None:
    found: str | None = tokenizer.mask_token or tokenizer.unk_token
    return found


def augmented(
    rows: datasets.Dataset,
    how: Augment,
    models: Sequence[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    max_length: int,
    keep: Keep = lambda plan, model, make: make(),
) -> datasets.Dataset:
    """`rows` (columns `text`, maybe `text_b`, maybe a label), and behind them their copies with the same labels.

    models: the first one has the table of `embeddings`, the first masked language model among them speaks for `mlm`.
    keep: for what a masked language model proposed.  The same seed gives the same copies.
    """
    import datasets as hub
    import numpy as np

    sides = [name for name in _SIDES if name in rows.column_names]
    texts = tuple(list(rows[name]) for name in sides)
    spans = [Spans.of(one) for one in texts]
    if how.by == "embeddings":
        choices = _neighbours(how, models[0], tokenizer, spans)
    else:
        mlm = next(one for one in models if is_mlm(one))
        choices = _proposals(how, mlm, tokenizer, texts, spans, seed=seed, max_length=max_length, keep=keep)
    seen = [{one} for one in zip(*texts, strict=True)]
    copies: list[tuple[str, ...]] = []
    of: list[int] = []
    for copy in range(how.copies):
        made = [
            _changed(how, *one, _Draw(seed, side, copy), mask=_masking(tokenizer) or "")
            for side, one in enumerate(zip(texts, spans, choices, strict=True))
        ]
        for row, new in enumerate(zip(*made, strict=True)):
            if new not in seen[row]:
                seen[row].add(new)
                copies.append(new)
                of.append(row)
    if not copies:
        return rows
    columns = dict(zip(sides, map(list, zip(*copies, strict=True)), strict=True))
    numbers = np.array(of)
    rest = {name: np.asarray(rows[name][:])[numbers] for name in rows.column_names if name not in sides}
    more = hub.Dataset.from_dict(
        {name: {**columns, **rest}[name] for name in rows.column_names}, features=rows.features
    )
    return hub.concatenate_datasets([rows, more])


@dataclasses.dataclass(frozen=True)
class _Choices:
    """What may stand for the words of one side.

    row: of each word, which row of `table` holds its candidates.  table: (rows, candidates) numbers of `words`, -1
    behind the last candidate; its last row has none.
    """

    words: Words
    row: Whole
    table: Whole


class _Draw:
    """The random numbers of one copy of one side, in the order in which they are asked for."""

    def __init__(self, *key: int) -> None:
        import numpy as np

        self._generator = np.random.default_rng(key)

    def shares(self, count: int) -> Shares:
        """(count,) uniform in [0, 1)."""
        return self._generator.random(count)


def _neighbours(
    how: Augment, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spans: Sequence[Spans]
) -> list[_Choices]:
    import numpy as np
    import torch

    table: Any = model.get_input_embeddings()
    tokens = torch.arange(min(len(tokenizer), table.num_embeddings), device=model.device)
    words = Words.of(tokenizer, len(tokens))
    numbers = [words.all(one.words) for one in spans]
    wanted = np.unique(np.concatenate(numbers))
    wanted = wanted[wanted >= 0]
    with torch.no_grad():
        found = _closed(nearest(words, table(tokens), wanted, how.candidates))
    return [_Choices(words, np.where(one < 0, len(wanted), np.searchsorted(wanted, one)), found) for one in numbers]


def _proposals(
    how: Augment,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: tuple[Sequence[str], ...],
    spans: Sequence[Spans],
    *,
    seed: int,
    max_length: int,
    keep: Keep,
) -> list[_Choices]:
    """Only for the words that some copy will replace: each takes a forward of `model`."""
    import numpy as np
    import torch

    table: Any = model.get_input_embeddings()
    words = Words.of(tokenizer, table.num_embeddings)
    places: list[tuple[int, int, int, int, int]] = []
    rows = []
    for side, one in enumerate(spans):
        number = words.all(one.words)
        replaced = np.zeros(len(number), bool)
        for copy in range(how.copies):
            drawn = _Draw(seed, side, copy).shares(len(number))
            replaced |= (drawn >= how.mask) & (drawn < how.mask + how.probability)
        here = np.flatnonzero(replaced & (number >= 0))
        row = np.full(len(number), -1)
        row[here] = len(places) + np.arange(len(here))
        rows.append(row)
        of = (one.text[here], one.start[here], one.end[here], number[here])
        places += [(side, *each) for each in zip(*(part.tolist() for part in of), strict=True)]

    def ask() -> dict[str, Tensor]:
        found = proposed(words, model, tokenizer, texts, places, count=how.candidates, max_length=max_length)
        return {"words": torch.from_numpy(found)}

    plan = [how.candidates, max_length, places, texts, tokenizer.backend_tokenizer.to_str()]
    found = _closed(keep(plan, model, ask)["words"].numpy())
    return [_Choices(words, row, found) for row in rows]


def _closed(table: Whole) -> Whole:
    """`table` with a last row, -1, which stands for words without candidates."""
    import numpy as np

    return np.concatenate([table, np.full((1, table.shape[1]), -1, np.int64)])


def _changed(
    how: Augment,
    texts: Sequence[str],
    spans: Spans,
    choices: _Choices,
    draw: _Draw,
    *,
    mask: str,
) -> list[str]:
    """One copy of each text."""
    count = len(spans.words)
    odds, picks = draw.shares(count), draw.shares(count)
    available = (choices.table >= 0).sum(axis=1)[choices.row]
    masked = odds < how.mask
    replaced = ~masked & (odds < how.mask + how.probability) & (available > 0)
    chosen = choices.table[choices.row, (picks * available).astype(int)]
    parts: dict[int, list[str]] = {}
    done = [0] * len(texts)
    for i in (masked | replaced).nonzero()[0].tolist():
        row, start = int(spans.text[i]), int(spans.start[i])
        new = mask if masked[i] else choices.words.like(int(chosen[i]), spans.words[i])
        parts.setdefault(row, []).extend((texts[row][done[row] : start], new))
        done[row] = int(spans.end[i])
    made = [text if row not in parts else "".join((*parts[row], text[done[row] :])) for row, text in enumerate(texts)]
    return _cut(made, how.ngram, draw) if how.ngram else made


def _cut(texts: Sequence[str], odds: float, draw: _Draw) -> list[str]:
    """Some texts cut to 1 to 5 words in a row."""
    made = list(texts)
    chances, lengths, starts = draw.shares(len(texts)), draw.shares(len(texts)), draw.shares(len(texts))
    for row in (chances < odds).nonzero()[0].tolist():
        words = texts[row].split()
        count = min(len(words), 1 + int(lengths[row] * _LONGEST))
        start = int(starts[row] * (len(words) - count + 1))
        made[row] = " ".join(words[start : start + count])
    return made
