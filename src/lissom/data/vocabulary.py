"""A tokenizer without some of its tokens: which ones it cannot do without, and the tokenizer that is left.

A text all of whose tokens stay is read as before, token by token; any other text falls to smaller pieces.

- WordPiece takes the longest token that fits: fewer tokens change nothing where that one is still there.
- BPE joins pieces in the order of its merges: it still arrives at a token if the tokens on the way to it stay too.
- Unigram takes the pieces with the highest sum of scores: they win against fewer rivals as well. What an unknown letter
  costs depends on the lowest score, so the piece with that score stays.
- WordLevel has no smaller pieces: a word that goes becomes the unknown token.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from lissom.errors import LissomError

if TYPE_CHECKING:
    import datasets
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_ROWS = 1000  # texts tokenized at a time


def needed(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[int]) -> set[int]:
    """`tokens` and all that must stay with them, by number.

    That is every special and added token, the unknown one, all single letters or bytes, so that every text can still be
    read as far as it could before, and for BPE the tokens from which kept ones are joined.
    Raises LissomError LSM-734 for a tokenizer without a `tokenizers` backend.
    """
    whole = _content(tokenizer)
    model = whole["model"]
    vocab, prefix, suffix = _numbers(model), _prefix(model), model.get("end_of_word_suffix") or ""
    kept = set(tokens) | set(tokenizer.all_special_ids) | {one["id"] for one in whole["added_tokens"]}
    kept |= set(_ids_of_processor(whole["post_processor"]))
    if (none := _unknown(model, vocab)) is not None:
        kept.add(none)
    if model["type"] == "Unigram":
        # classes of transformers build this kind anew and expect the first special tokens in their places
        kept |= set(range((model["unk_id"] or 0) + 1))
        kept.add(min(range(len(model["vocab"])), key=lambda at: model["vocab"][at][1]))
    if model["type"] == "WordLevel":
        return kept
    kept |= {number for token, number in vocab.items() if _is_single(token, prefix, suffix)}
    if model["type"] == "BPE":
        names = {number: token for token, number in vocab.items()}
        ranks = {pair: rank for rank, pair in enumerate(_merges(model))}
        for number in [one for one in kept if one in names]:
            kept |= {vocab[one] for one in _joined(names[number], ranks, prefix, suffix) if one in vocab}
    return kept


def cut_tokenizer(tokenizer: PreTrainedTokenizerBase, tokens: Collection[int]) -> PreTrainedTokenizerBase:
    """A tokenizer like `tokenizer` with `tokens` alone, each numbered by its place among them in ascending order.

    tokens: what `needed` gives; numbers without a token (rows of a table that no token has) keep their place too.
    Raises LissomError LSM-734 for a tokenizer without a `tokenizers` backend.
    """
    from tokenizers import Tokenizer

    whole = _content(tokenizer)
    model = whole["model"]
    new = {number: place for place, number in enumerate(sorted(tokens))}
    if model["type"] == "Unigram":
        model["vocab"] = [piece for number, piece in enumerate(model["vocab"]) if number in new]
        model["unk_id"] = None if model["unk_id"] is None else new[model["unk_id"]]
    else:
        model["vocab"] = {token: new[number] for token, number in model["vocab"].items() if number in new}
    if model["type"] == "BPE":
        prefix, left = _prefix(model), model["vocab"]
        pairs = [pair for pair in _merges(model) if all(one in left for one in (*pair, _join(pair, prefix)))]
        model["merges"] = [list(pair) for pair in pairs]
    whole["added_tokens"] = [one | {"id": new[one["id"]]} for one in whole["added_tokens"]]
    _renumber_processor(whole["post_processor"], new)
    if whole["padding"] is not None:
        whole["padding"]["pad_id"] = new[whole["padding"]["pad_id"]]
    made = copy.deepcopy(tokenizer)
    made._tokenizer = Tokenizer.from_str(json.dumps(whole))  # what is saved and asked
    return made


def unknown(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The number of the token that stands for what cannot be read; None where everything can."""
    model = _content(tokenizer)["model"]
    return _unknown(model, _numbers(model))


def tokens_of(rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Numbers of the tokens of each text and list of words in `rows`, column by column, uncut, without special ones."""
    import datasets as hub

    for name, feature in rows.features.items():
        words = isinstance(feature, hub.List | hub.LargeList)
        kind = feature.feature if words else feature
        if not (isinstance(kind, hub.Value) and kind.dtype in ("string", "large_string")):
            continue
        for start in range(0, len(rows), _ROWS):
            texts = rows[start : start + _ROWS][name]
            yield from tokenizer(texts, is_split_into_words=words, add_special_tokens=False, verbose=False)["input_ids"]


def _content(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What `tokenizer.json` says. Raises LissomError LSM-734."""
    backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        cause = f"{type(tokenizer).__name__} has no fast version, and tokens can be taken out of no other"
        raise LissomError(734, cause, remedy="Load the tokenizer from a folder with a tokenizer.json.")
    found: dict[str, Any] = json.loads(backend.to_str())
    return found


def _numbers(model: Mapping[str, Any]) -> dict[str, int]:
    if model["type"] == "Unigram":
        return {piece: number for number, (piece, _) in enumerate(model["vocab"])}
    return dict(model["vocab"])


def _unknown(model: Mapping[str, Any], vocab: Mapping[str, int]) -> int | None:
    found: int | None = model["unk_id"] if model["type"] == "Unigram" else vocab.get(model.get("unk_token") or "")
    return found


def _prefix(model: Mapping[str, Any]) -> str:
    """What stands before a piece that goes on with a word; empty where nothing does."""
    return model.get("continuing_subword_prefix") or ""


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    split = (one.split(" ", 1) if isinstance(one, str) else one for one in model["merges"])
    return [(left, right) for left, right in split]


def _join(pair: tuple[str, str], prefix: str) -> str:
    return pair[0] + pair[1][len(prefix) :]


def _is_single(token: str, prefix: str, suffix: str) -> bool:
    """Whether a token is one letter, or one byte: `a`, `##a`, `a</w>`, `<0x61>`."""
    byte = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
    return byte or len(token.removeprefix(prefix).removesuffix(suffix)) == 1 or len(token) == 1


def _joined(token: str, ranks: Mapping[tuple[str, str], int], prefix: str, suffix: str) -> set[str]:
    """The pieces on the way from the letters of `token` to it, `token` itself included where the way leads there.

    Inside a word the way is the same: a merge over its ends would have made another token.
    """
    ending = suffix if suffix and token.endswith(suffix) else ""
    body = token.removesuffix(ending) if ending else token
    inside = bool(prefix) and body.startswith(prefix)
    letters = body[len(prefix) :] if inside else body
    parts: Sequence[str] = [prefix + one if inside or at else one for at, one in enumerate(letters)]
    parts = [*parts[:-1], parts[-1] + ending] if parts else []
    seen = set(parts)
    while True:
        pairs = list(pairwise(parts))
        best = min((pair for pair in pairs if pair in ranks), key=ranks.__getitem__, default=None)
        if best is None:
            return seen
        parts = _replaced(parts, best, prefix)
        seen |= set(parts)


def _replaced(parts: Sequence[str], pair: tuple[str, str], prefix: str) -> list[str]:
    """`parts` with the pair joined wherever it stands, from the left."""
    made: list[str] = []
    at = 0
    while at < len(parts):
        if tuple(parts[at : at + 2]) == pair:
            made.append(_join(pair, prefix))
            at += 2
        else:
            made.append(parts[at])
            at += 1
    return made


def _ids_of_processor(processor: Any) -> Iterable[int]:
    """The numbers of the tokens that a post-processor puts around texts."""
    for one in _processors(processor):
        yield from (number for token in one.get("special_tokens", {}).values() for number in token["ids"])
        yield from (one[key][1] for key in ("sep", "cls") if isinstance(one.get(key), list))


def _renumber_processor(processor: Any, new: Mapping[int, int]) -> None:
    for one in _processors(processor):
        for token in one.get("special_tokens", {}).values():
            token["ids"] = [new[number] for number in token["ids"]]
        for key in ("sep", "cls"):
            if isinstance(one.get(key), list):
                one[key] = [one[key][0], new[one[key][1]]]


def _processors(processor: Any) -> list[dict[str, Any]]:
    if processor is None:
        return []
    return [one for each in processor.get("processors", []) for one in _processors(each)] or [processor]
