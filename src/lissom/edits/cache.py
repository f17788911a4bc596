"""The edit that keeps the keys and values of earlier tokens in few bits while a model generates."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

from torch import nn

from lissom.edits.edit import EDIT_MISFIT, Edit
from lissom.errors import LissomError

_OPTIONS = "_lissom_cache"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackCache(Edit):
    """Let a model put its cache in `bits` bits a value, in groups of `group`, but for the last `residual` tokens.

    It changes no tensor. A cache that is passed to the model empty, as `generate` does, gets packed layers; see
    `lissom.edits.cache_layer`.
    """

    acts: ClassVar[bool] = True

    bits: Literal[2, 4, 8]
    group: int
    residual: int

    def apply(self, model: nn.Module) -> None:
        """Set it, in place of what was set before."""
        if self.group < 8 or self.group % 8 or self.residual < 0:
            cause = f"groups of {self.group} tokens after {self.residual}: a group is a multiple of 8"
            raise LissomError(EDIT_MISFIT, cause)
        model.__dict__[_OPTIONS] = {"bits": self.bits, "group": self.group, "residual": self.residual}
        if _pack not in model._forward_pre_hooks.values():
            model.register_forward_pre_hook(_pack, with_kwargs=True)


def _pack(model: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
    """Before each call of the model: pack the layers of a cache that is still empty."""
    if given.get("past_key_values") is not None:
        from lissom.edits.cache_layer import pack_layers

        pack_layers(given["past_key_values"], **model.__dict__[_OPTIONS])
