"""The package as syntax trees: which names an expression stands for, and what each file imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src"


def files() -> list[Path]:
    """Every Python file of the package."""
    return sorted((SRC / "lissom").rglob("*.py"))


def module_name(path: Path) -> str:
    """`lissom.edits.depth` for src/lissom/edits/depth.py; a package is its `__init__`."""
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, module: str = "", *, package: bool = False) -> Iterator[tuple[str, str]]:
    """(local name, full dotted name) of everything that is imported anywhere in a file, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (alias.asname, alias.name) if alias.asname else (alias.name.split(".")[0], alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: len(module.split(".")) - node.level + package]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                yield alias.asname or alias.name, f"{base}.{alias.name}"


def names(tree: ast.AST) -> dict[str, str]:
    """Local name -> what it was imported as: `{"F": "torch.nn.functional"}`."""
    return {local: full if "." in local or not full.startswith(f"{local}.") else local for local, full in imports(tree)}


def dotted(node: ast.AST, known: dict[str, str]) -> str:
    """`torch.load` for an expression that means it, however it was imported; "" for anything else."""
    if isinstance(node, ast.Name):
        return known.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, known) or '?'}.{node.attr}"
    return ""
