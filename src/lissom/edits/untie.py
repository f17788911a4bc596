"""The edit that gives a head a weight of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, cast

from torch import nn

from lissom.edits.edit import EDIT_MISFIT, Edit
from lissom.edits.linear import linear_at
from lissom.errors import LissomError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Untie(Edit):
    """Give linear maps that multiply by a table of tokens a copy of it, so that both may change apart. Stored twice.

    heads: their paths. The config no longer says that words and head are tied.
    """

    heads: tuple[str, ...]

    def apply(self, model: nn.Module) -> None:
        """Copy the weight of each."""
        for path in self.heads:
            module = linear_at(model, path).module
            if type(module) is not nn.Linear:
                raise LissomError(EDIT_MISFIT, "this head shares nothing that could be copied", place=path)
            module.weight = nn.Parameter(module.weight.detach().clone(), module.weight.requires_grad)
        if self.heads:
            untie(model, (f"{path}.weight" for path in self.heads))


def untie(model: nn.Module, names: Iterable[str]) -> None:
    """Let neither config nor model say any longer that these tensors are one with others."""
    cast("Any", model.config).tie_word_embeddings = False
    ties = cast("dict[str, str]", getattr(model, "all_tied_weights_keys", {}))
    gone = set(names)
    cast("Any", model).all_tied_weights_keys = {
        name: source for name, source in ties.items() if not {name, source} & gone
    }
