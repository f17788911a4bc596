"""The pages that people read, and what stands in them."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

from tests.conftest import ROOT

PAGES = tuple(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")) + tuple(
    sorted((ROOT / "docs").glob("*.md"))
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_GENERATED = re.compile(r"<!-- generated: .*?<!-- end -->", re.DOTALL)


def title(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return [text for found, text in _FENCE.findall(path.read_text()) if found == language]


def without_code(path: Path) -> str:
    """The page without code blocks."""
    return _FENCE.sub("", path.read_text())


def prose(path: Path) -> str:
    """The page without code blocks and generated parts."""
    return _FENCE.sub("", _GENERATED.sub("", path.read_text()))


def commands(text: str) -> list[list[str]]:
    """The words of every lissom command in shell text, each without what pipes into it; a redirect stays."""
    found = []
    for line in text.splitlines():
        words = list(shlex.shlex(line, posix=True, punctuation_chars="|>"))
        if line.startswith("#") or "lissom" not in words:
            continue
        found.append(shlex.split(line[line.index("lissom ") :], comments=True)[1:])
    return found


def generator() -> ModuleType:
    """docs/generate.py as a module."""
    if "docs_generate" not in sys.modules:
        spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["docs_generate"] = module
        spec.loader.exec_module(module)
    return sys.modules["docs_generate"]
