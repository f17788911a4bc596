"""The edit of the vocabulary: which tokens a model knows. It says so of the model; its tokenizer changes beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from lissom.anatomy import is_linear, shrink
from lissom.anatomy.vocabulary import Vocabulary, configs, named_tokens, vocabulary
from lissom.edits.cut import Cut
from lissom.edits.edit import EDIT_MISFIT, Edit
from lissom.errors import LissomError
from lissom.nn import Int8Embedding

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens")  # lists of tokens that generation never gives


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeepVocab(Edit):
    """Keep only these tokens: rows of the token tables, outputs of the projection onto tokens and its bias.

    A kept token's new number is its place among the kept ones. Configs count and name the tokens anew.

    runs: the kept tokens as ranges, (first, behind the last), ascending.
    named: those of them that configs and tables name (padding, beginning, end, ...), whose new numbers an empty model
        must get right. `of` fills both in.
    """

    runs: tuple[tuple[int, int], ...]
    named: tuple[int, ...] = ()

    @classmethod
    def of(cls, model: PreTrainedModel, tokens: Iterable[int]) -> KeepVocab:
        """The edit that keeps `tokens` (numbers in the token table) of `model`."""
        ordered = sorted(set(tokens))
        starts = [one for one, before in zip(ordered, [None, *ordered], strict=False) if before != one - 1]
        ends = [one + 1 for one, after in zip(ordered, [*ordered[1:], None], strict=True) if after != one + 1]
        return cls(runs=tuple(zip(starts, ends, strict=True)), named=vocabulary(model).named)

    def tokens(self) -> list[int]:
        """The numbers of the kept tokens, ascending."""
        return [one for start, end in self.runs for one in range(start, end)]

    def shape(self) -> KeepVocab:
        """As many tokens, with the named ones in the same places: a run before each of them, and one at the end."""
        places = {token: place for place, token in enumerate(self.tokens())}
        runs, done, behind = [], 0, 0
        for token in self.named:
            runs.append((token - (places[token] - done), token + 1))
            done, behind = places[token] + 1, token + 1
        if len(places) > done:
            runs.append((behind, behind + len(places) - done))
        return dataclasses.replace(self, runs=tuple(runs))

    def apply(self, model: nn.Module) -> None:
        """Drop the other tokens' rows, logits and biases, and count and name tokens anew."""
        whole = cast("PreTrainedModel", model)
        found = vocabulary(whole)
        self._check(found)
        tokens = self.tokens()
        rows = torch.as_tensor(tokens, dtype=torch.int64)
        new = {token: place for place, token in enumerate(tokens)}
        cut = Cut(rows)
        for path in found.tables:
            _cut_table(model.get_submodule(path), path, cut, new)
        for path in found.outputs:
            _cut_output(model.get_submodule(path), path, cut)
        for name in found.values:
            path, _, leaf = name.rpartition(".")
            owner = model.get_submodule(path)
            setattr(owner, leaf, cut(getattr(owner, leaf), -1))
        for module in model.modules():
            if getattr(module, "vocab_size", None) == found.size:
                cast(Any, module).vocab_size = len(tokens)
        for config in configs(whole):
            _rename(config, found.size, new)

    def _check(self, found: Vocabulary) -> None:
        bounds = [0, *(one for run in self.runs for one in run), found.size]
        ascending = all(start < end for start, end in self.runs) and all(a <= b for a, b in pairwise(bounds))
        if not self.runs or not ascending:
            raise LissomError(
                EDIT_MISFIT, f"the runs of tokens are not ascending ranges of at least one of {found.size} tokens"
            )
        kept = set(self.tokens())
        lost = sorted({*found.named, *self.named} - kept)
        if lost:
            raise LissomError(EDIT_MISFIT, f"token {lost[0]} is one that the model names, and must stay")
        unknown = sorted(set(found.named) - set(self.named))
        if unknown:
            raise LissomError(EDIT_MISFIT, f"the model names token {unknown[0]}, and the edit does not")
        moved = next((one for one in range(found.first) if one not in kept), None)
        if moved is not None:
            cause = f"positions are counted from behind the padding token, so token {moved} before it must stay"
            raise LissomError(EDIT_MISFIT, cause)


def _cut_table(table: nn.Module, path: str, cut: Cut, new: dict[int, int]) -> None:
    if isinstance(table, Int8Embedding):
        try:
            table.keep(cut.kept)
        except ValueError as error:
            raise _packed(path) from error
        return
    if not isinstance(table, nn.Embedding):
        raise _packed(path)
    table.weight = cast("nn.Parameter", cut(table.weight, 0))
    table.num_embeddings = len(cut.kept)
    table.padding_idx = None if table.padding_idx is None else new[table.padding_idx]


def _cut_output(output: nn.Module, path: str, cut: Cut) -> None:
    if type(output) is not nn.Linear:
        if not is_linear(output):
            raise _packed(path)
        shrink(output, out=cut.kept)
        return
    output.weight = cast("nn.Parameter", cut(output.weight, 0))
    if output.bias is not None:
        output.bias = cast("nn.Parameter", cut(output.bias, 0))
    output.out_features = len(cut.kept)


def _packed(path: str) -> LissomError:
    cause = "tokens cannot be cut out of the form in which this is stored"
    return LissomError(EDIT_MISFIT, cause, place=path, remedy="Cut the vocabulary first, then store it so.")


def _rename(config: Any, size: int, new: dict[int, int]) -> None:
    """Let a config count the tokens that are left, and name them by their new numbers."""
    if getattr(config, "vocab_size", None) == size:
        config.vocab_size = len(new)
    for key, value in named_tokens(config).items():
        # a number that no row has stays what it is: it named nothing before either
        setattr(config, key, [new.get(one, one) for one in value] if isinstance(value, list) else new.get(value, value))
    for key in _SUPPRESSED:
        listed = getattr(config, key, None)
        if listed:
            setattr(config, key, [new[one] for one in listed if one in new])
    words = getattr(config, "bad_words_ids", None)
    if words:
        config.bad_words_ids = [[new[one] for one in word] for word in words if all(one in new for one in word)]
