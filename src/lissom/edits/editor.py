"""The only place that mutates a model's structure."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lissom.anatomy import Anatomy, dissect
from lissom.edits.edit import EDIT_MISFIT, Edit, Record
from lissom.errors import LissomError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Editor:
    """Applies edits to a model, in place, and keeps its record.

    model: a transformers model, with weights or empty (parameters on meta).
    tokenizer: what reads texts for it, if anything does; who cuts the vocabulary puts another one here.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer

    @property
    def record(self) -> Record:
        """The edits that the model carries."""
        return Record.of(self.model)

    def anatomy(self) -> Anatomy:
        """The model's anatomy as it is now."""
        return dissect(self.model)

    def apply(self, edit: Edit, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Apply one edit, fill in `tensors` (full name -> value, shape as in the edited model), and record it.

        Raises LissomError LSM-451 if the edit or a tensor does not fit.
        """
        before = _config(self.model)
        edit.apply(self.model)
        for name, value in (tensors or {}).items():
            _fill(self.model, name, value)
        after = _config(self.model)
        changed = {key: value for key, value in before.items() if after.get(key) != value}
        old = self.record
        Record(edits=(*old.edits, edit), restore={**changed, **old.restore}).attach(self.model)
        self.settle()

    def replay(self, record: Record) -> None:
        """Apply a stored record to a model that has the shapes which its first edit expects."""
        for edit in record.edits:
            self.apply(edit)

    def settle(self) -> None:
        """Restore shared tensors, after an edit or after weights were filled in."""
        edits = self.record.edits
        for index, edit in enumerate(edits):
            edit.settle(self.model, edits[index + 1 :])

    def replace(self, model: PreTrainedModel) -> None:
        """Go on with another model (a student of another kind). It brings its own record."""
        self.model = model


def _config(model: nn.Module) -> dict[str, Any]:
    config = getattr(model, "config", None)
    return {} if config is None else copy.deepcopy(config.to_dict())


def _fill(model: nn.Module, name: str, value: Tensor) -> None:
    """Copy `value` into the parameter or buffer `name`."""
    path, _, leaf = name.rpartition(".")
    try:
        target = getattr(model.get_submodule(path), leaf)
    except AttributeError:
        target = None
    if not isinstance(target, Tensor):
        raise LissomError(EDIT_MISFIT, "no tensor stands here", place=name)
    if target.shape != value.shape:
        cause = f"a tensor of shape {tuple(value.shape)} for one of shape {tuple(target.shape)}"
        raise LissomError(EDIT_MISFIT, cause, place=name)
    with torch.no_grad():
        target.copy_(value)
