"""What an edit is, and the record of the edits that a model carries."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import nn

EDIT_MISFIT = 451  # the code of every «this edit does not fit this model»


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edit(ABC):
    """A structural change as plain data. The same edit gives the same shapes on a full and on an empty (meta) model."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # stored records are untrusted
    acts: ClassVar[bool] = False  # whether it changes what a model does where no tensor shows it

    @abstractmethod
    def apply(self, model: nn.Module) -> None:
        """Change `model` in place.

        Raises LissomError LSM-451 if the edit does not fit the model.
        """

    def settle(self, model: nn.Module, later: tuple[Edit, ...] = ()) -> None:
        """Restore what later edits or loaded weights may have undone (shared tensors). Called after each of them.

        later: the edits that the model carries on top of this one.
        """

    def shape(self) -> Edit:
        """An edit that makes the same shapes on an empty model, in as few words as possible."""
        return self

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `edit_from_json` reads them back."""
        return {"edit": type(self).__name__, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """The edits that a model carries, oldest first.

    restore: config entries as they were before the first edit, for every entry that an edit changed. A model built
    from the final config with these put back has the shapes that the first edit expects.
    """

    edits: tuple[Edit, ...] = ()
    restore: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module) -> Record:
        """The record of `model`; empty if it was never edited."""
        record = model.__dict__.get("_lissom_record")
        return record if isinstance(record, cls) else cls()

    def attach(self, model: nn.Module) -> None:
        """Make this the record of `model`."""
        model.__dict__["_lissom_record"] = self
