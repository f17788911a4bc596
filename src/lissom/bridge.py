"""After `import lissom`, plain `AutoModelForX.from_pretrained(folder)` loads a lissom folder.

transformers lets a package register a quantizer, whose hooks run on the empty model before weights are filled in; ours
replays the edits (`store.quantizer`). It also lets a package register model types; ours is the BiLSTM (`bilstm`).
Importing transformers takes seconds, so nothing is imported here: a finder waits for the modules that hold the tables
of transformers and registers ours in each as soon as that is loaded.
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

_OURS = {
    "transformers.quantizers.auto": "lissom.store.quantizer",
    "transformers.models.auto.configuration_auto": "lissom.bilstm.config",
    "transformers.models.auto.modeling_auto": "lissom.bilstm.model",
}
"""Module with a table of transformers -> our module, which registers itself in it when it is imported."""


def install() -> None:
    """Register what is ours in each table now if that is loaded, else once it is. Calling it again does nothing."""
    for table, ours in _OURS.items():
        if table in sys.modules:
            importlib.import_module(ours)
        elif not any(isinstance(finder, _Finder) and finder.table == table for finder in sys.meta_path):
            sys.meta_path.insert(0, _Finder(table))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds a table as Python would, and has ours registered after it is loaded."""

    def __init__(self, table: str) -> None:
        self.table = table

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of the table, with our loader around its own; None for every other module."""
        if fullname != self.table:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, _OURS[self.table])
        return spec


class _Loader(importlib.abc.Loader):
    """Loads as `inner` does, then registers `ours`."""

    def __init__(self, inner: importlib.abc.Loader, ours: str) -> None:
        self.inner, self.ours = inner, ours

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """The module object, made by the inner loader."""
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, then register."""
        self.inner.exec_module(module)
        importlib.import_module(self.ours)
