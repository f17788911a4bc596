"""What can act while a model is trained, by the name that `while` uses. Adding one is a module and a line here."""

from __future__ import annotations

from lissom.train.during.base import Acting, During
from lissom.train.during.layer_drop import LayerDrop
from lissom.train.during.replace_modules import ReplaceModules

__all__ = ["DURING", "Acting", "During"]

DURING: dict[str, type[During]] = {
    "layer_drop": LayerDrop,
    "replace_modules": ReplaceModules,
}
