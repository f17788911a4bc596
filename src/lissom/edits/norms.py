"""Edits of norms: they stop subtracting the mean, or a square map follows one."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, cast

from torch import nn

from lissom.edits.edit import EDIT_MISFIT, Edit
from lissom.errors import LissomError
from lissom.nn import MappedNorm, RmsNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class DropMeans(Edit):
    """Put norms by the root mean square in the place of layer norms. Scales and shifts stay.

    It computes the same only where what goes in has a mean of 0.
    norms: module paths.
    """

    acts: ClassVar[bool] = True  # the tensors are named and shaped as those of layer norms

    norms: tuple[str, ...]

    def apply(self, model: nn.Module) -> None:
        """Replace each; the new one has the very same tensors."""
        for path in self.norms:
            old = dict(model.named_modules()).get(path)
            if type(old) is not nn.LayerNorm or old.weight is None:
                raise LissomError(EDIT_MISFIT, "no layer norm with a scale stands here", place=path)
            new = RmsNorm(old.weight, cast("nn.Parameter | None", old.bias), old.eps)
            model.set_submodule(path, new.train(old.training))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MapAfterNorm(Edit):
    """Put a `MappedNorm` around a norm; what stands there moves to `PATH.norm`.

    norm: its path. The map comes as the tensor `PATH.map.weight` (width, width), and starts as the identity.
    """

    norm: str

    def apply(self, model: nn.Module) -> None:
        """Wrap the norm."""
        old = dict(model.named_modules()).get(self.norm)
        weight = getattr(old, "weight", None)
        if old is None or not isinstance(weight, nn.Parameter) or weight.dim() != 1:
            raise LissomError(EDIT_MISFIT, "no norm with a scale stands here", place=self.norm)
        made = MappedNorm(old, len(weight), device=weight.device, dtype=weight.dtype)
        model.set_submodule(self.norm, made.train(old.training))
