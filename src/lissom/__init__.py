"""Compress and accelerate pretrained language models, with the evidence beside the result.

    result = lissom.compress("my-model", "demo", data="my-data")
    result.save("out")
    model = lissom.load("out")

Names are imported when they are first used: `import lissom` itself loads nothing heavy.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lissom.bridge import install as _install_bridge

if TYPE_CHECKING:
    from lissom.anatomy import dissect
    from lissom.compress import compress
    from lissom.data import load_data
    from lissom.errors import LissomError
    from lissom.export import export
    from lissom.measure import measure
    from lissom.plan import plan
    from lissom.recipe import Recipe
    from lissom.runtime import open_runner
    from lissom.store import load, save

__version__ = "0.1.0"

_HOME = {
    "LissomError": "errors",
    "Recipe": "recipe",
    "compress": "compress",
    "dissect": "anatomy",
    "export": "export",
    "load": "store",
    "load_data": "data",
    "measure": "measure",
    "open_runner": "runtime",
    "plan": "plan",
    "save": "store",
}

__all__ = [
    "LissomError",
    "Recipe",
    "__version__",
    "compress",
    "dissect",
    "export",
    "load",
    "load_data",
    "measure",
    "open_runner",
    "plan",
    "save",
]


class _Verb(ModuleType):
    """A module that can be called like the function it is named after, so that `lissom.compress` is both."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    @property
    def _function(self) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function)


class _Package(ModuleType):
    """Python sets a submodule as an attribute once it is imported; one with a verb's name stays callable."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _HOME.get(name) == name:
            value.__class__ = _Verb
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lissom' has no attribute {name!r}")
    module = importlib.import_module(f"lissom.{_HOME[name]}")
    return module if _HOME[name] == name else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_install_bridge()
