"""YAML without surprises: plain values with the line each one stands on, and text that reads back equal.

The form is YAML 1.2's core, read more strictly than PyYAML's safe loader does: a number is what a person would call a
number (`1e-3` is one), a repeated key is an error, and whatever YAML 1.1 reads in an unexpected way (`no`, `010`,
`12:30`, dates, `.inf`, `<<`) is refused with the line and what to write instead. Tags are refused, aliases are followed
within the size limit. Nothing is constructed but dict, list, str, int, float, bool and None.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import yaml

from lissom.errors import LissomError

MAX_BYTES = 100_000
_MAX_DEPTH = 20
_MAX_NODES = 10_000  # after aliases are followed
_MAX_DIGITS = 18  # a longer whole number does not fit 64 bits

Path = tuple[str | int, ...]

_WORDS: dict[str, bool | None] = dict.fromkeys(("", "~", "null", "Null", "NULL"))
_WORDS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_REAL = re.compile(r"[-+]?(?=\.?[0-9])(0|[1-9][0-9_]*)?(\.[0-9_]*)?([eE][-+]?[0-9]+)?")
_AMBIGUOUS = (
    (re.compile(r"(?i)yes|no|on|off"), "Write true or false, or put it in quotes"),
    (re.compile(r"[-+]?(0[0-9_]+|0[xob][0-9a-fA-F_]+)"), "Write a plain decimal number, or put it in quotes"),
    (re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"), "Put it in quotes"),
    (re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt \t].*)?"), "Put it in quotes"),
    (re.compile(r"(?i)[-+]?\.(inf|nan)"), "Write a finite number"),
)


def shown(value: object) -> str:
    """`value` as it may stand in a message: JSON, at most 60 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


class Document:
    """A parsed YAML document: `value` and the place of each part of it.

    Raises `LissomError` 302 (too large, not UTF-8), 303 (not YAML), 304 (a form that is not accepted), 305 (a key
    that stands twice).
    """

    def __init__(self, source: str | bytes, name: str) -> None:
        self.name = name
        self._lines: dict[Path, int] = {}
        self._nodes = 0
        self.value = self._value(self._compose(source), (), 0)

    def place(self, path: Path = ()) -> str:
        """`name:line` of the part at `path`, or of the nearest part around it."""
        while path and path not in self._lines:
            path = path[:-1]
        return f"{self.name}:{self._lines.get(path, 1)}"

    def _compose(self, source: str | bytes) -> yaml.Node | None:
        if len(source) > MAX_BYTES:
            raise LissomError(302, f"{len(source)} bytes of YAML, at most {MAX_BYTES} are read", place=self.name)
        if isinstance(source, bytes):
            try:
                source = source.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise LissomError(302, f"byte {error.start} is not UTF-8 text", place=self.name) from error
        try:
            loader = _Loader(source)
            return loader.get_single_node()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = f"{self.name}:{mark.line + 1}" if mark else self.name
            cause = " ".join(str(error.problem or error.context or "broken YAML").split())
            raise LissomError(303, f"not valid YAML: {cause}", place=place) from error
        except (yaml.YAMLError, ValueError, OverflowError, LookupError, RecursionError) as error:
            position = getattr(error, "position", 0)
            line = source.count("\n", 0, position) + 1 if isinstance(position, int) else 1
            cause = str(getattr(error, "reason", "") or "a character or escape that YAML does not allow")
            raise LissomError(303, f"not valid YAML: {cause}", place=f"{self.name}:{line}") from error

    def _value(self, node: yaml.Node | None, path: Path, depth: int) -> Any:
        if node is None:
            return None
        line = node.start_mark.line + 1
        self._lines.setdefault(path, line)
        self._nodes += 1
        if depth > _MAX_DEPTH or self._nodes > _MAX_NODES:
            limit = f"{_MAX_DEPTH} levels deep" if depth > _MAX_DEPTH else f"{_MAX_NODES} values"
            raise self._refuse(line, f"the document is larger than {limit}")
        if isinstance(node, yaml.SequenceNode):
            return [self._value(child, (*path, i), depth + 1) for i, child in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        quoted = isinstance(node, yaml.ScalarNode) and node.style
        return node.value if quoted else self._scalar(node.value, line)

    def _mapping(self, node: yaml.MappingNode, path: Path, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, child in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise self._refuse(line, "a list or a mapping stands where a key belongs")
            name = key.value
            if name == "<<" and not key.style:
                raise self._refuse(line, "merge keys (<<) are not accepted", "Write the options out")
            if name in found:
                raise LissomError(
                    305, f"the key {shown(name)} stands here for the second time", place=f"{self.name}:{line}"
                )
            self._lines.setdefault((*path, name), line)
            found[name] = self._value(child, (*path, name), depth + 1)
        return found

    def _scalar(self, text: str, line: int) -> Any:
        for pattern, remedy in _AMBIGUOUS:
            if pattern.fullmatch(text):
                raise self._refuse(line, f"{text[:60]} has more than one meaning in YAML", remedy)
        value = _plain(text)
        if isinstance(value, float) and not math.isfinite(value):
            raise self._refuse(line, f"{text[:60]} is too large a number")
        if isinstance(value, int) and abs(value) >= 10**_MAX_DIGITS:
            raise self._refuse(line, f"{text[:60]} has more than {_MAX_DIGITS} digits")
        return value

    def _refuse(self, line: int, cause: str, remedy: str = "") -> LissomError:
        return LissomError(304, cause, place=f"{self.name}:{line}", remedy=remedy and remedy + ".")


def _plain(text: str) -> str | int | float | bool | None:
    """What an unquoted scalar means."""
    if text in _WORDS:
        return _WORDS[text]
    if _WHOLE.fullmatch(text):
        return int(text.replace("_", "")) if len(text) <= 2 * _MAX_DIGITS else 10**_MAX_DIGITS
    if _REAL.fullmatch(text):
        return float(text.replace("_", ""))
    return text


class _Loader(yaml.SafeLoader):
    """PyYAML's composer with tags refused and depth bounded before Python's own stack is."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) not in (None, "!"):
            raise yaml.MarkedYAMLError(problem="tags are not accepted", problem_mark=event.start_mark)
        self.depth += 1
        if self.depth > _MAX_DEPTH + 2:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {_MAX_DEPTH} levels", problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes every text that `Document` would not read as the same text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    unclear = _plain(text) != text or any(pattern.fullmatch(text) for pattern, _ in _AMBIGUOUS)
    odd = not text.isprintable()  # PyYAML folds NEL and its like in other styles
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if unclear or odd else None)


_Dumper.add_representer(str, _text)


def dump(value: Any) -> str:
    """YAML of plain values, keys in the given order, innermost collections on one line; `Document` reads it back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
