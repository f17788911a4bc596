"""After `import lissom`, plain `AutoModelForX.from_pretrained(folder)` loads a lissom folder.

transformers lets a package register a quantizer, whose hooks run on the empty model before weights are filled in; ours
replays the edits (`store.quantizer`). Importing transformers takes seconds, so nothing is imported here: a finder waits
for the module that holds transformers' table of quantizers and registers ours as soon as that is loaded.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_TABLE = "transformers.quantizers.auto"
_QUANTIZER = "lissom.store.quantizer"  # registers itself when it is imported


def install() -> None:
    """Register our quantizer now if transformers is loaded, else once it is. Calling it again does nothing."""
    if _TABLE in sys.modules:
        importlib.import_module(_QUANTIZER)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the table of quantizers as Python would, and has ours registered after it is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of the table, with our loader around its own; None for every other module."""
        if fullname != _TABLE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """Loads as `inner` does, then registers our quantizer."""

    def __init__(self, inner: importlib.abc.Loader) -> None:
        self.inner = inner

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """The module object, made by the inner loader."""
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, then register."""
        self.inner.exec_module(module)
        importlib.import_module(_QUANTIZER)
