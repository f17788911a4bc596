"""The edit that lets norms stop subtracting the mean."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, cast

from torch import nn

from lissom.edits.edit import EDIT_MISFIT, Edit
from lissom.errors import LissomError
from lissom.nn import RmsNorm


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
