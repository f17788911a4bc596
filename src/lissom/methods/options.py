"""Plain values to a method and back: the one place that reads the fields of a method as a schema.

pydantic validates against the dataclass itself; its errors are said again in a recipe's words, with the part of the
recipe that each is about.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lissom.errors import LissomError, nearest

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

    from lissom.methods.base import Method

Path = tuple[str | int, ...]

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "bool": "true or false",
    "tuple": "a list",
    "list": "a list",
    "dict": "a mapping",
    "dataclass": "a mapping",
    "model": "a mapping",
    "none": "null",
}


@functools.cache
def _adapter(kind: type[Method]) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


@functools.cache
def schema(kind: type[Method]) -> dict[str, Any]:
    """JSON schema of the method's options."""
    return _adapter(kind).json_schema()


def plain(step: Method) -> dict[str, Any]:
    """Every option of `step` with its value, as JSON values under the names that a recipe uses."""
    found: dict[str, Any] = _adapter(type(step)).dump_python(step, mode="json", by_alias=True, warnings=False)
    return found


def build(kind: type[Method], values: Mapping[str, Any], place: Callable[[Path], str]) -> Method:
    """The method with these options.

    values: plain values; true is not a number, text is not a number, a list becomes a tuple.
    place: says where the part of `values` at a path was written.
    Raises `LissomError` 312 (unknown key), 313 (wrong type, not an allowed value), 314 (out of range), 315 (missing, or
    not accepted for another reason).
    """
    from pydantic import ValidationError

    try:
        step: Method = _adapter(kind).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise _explained(kind, values, error.errors(include_url=False), place) from error
    return step


def _explained(
    kind: type[Method], values: Mapping[str, Any], errors: list[ErrorDetails], place: Callable[[Path], str]
) -> LissomError:
    """The most telling one of pydantic's errors: a value of the right type, then the deepest, then the first."""

    def telling(error: ErrorDetails) -> tuple[bool, int]:
        return error["type"].endswith("_type"), -len(_walked(values, error["loc"]))

    first = min(errors, key=telling)
    path = _walked(values, first["loc"])
    where = place(path)
    what, value = ".".join(map(str, path)) or kind.name, _at(values, path)
    said = f"{what} {json.dumps(value, ensure_ascii=False)[:60]}"
    problem = first["type"]
    if problem in ("unexpected_keyword_argument", "extra_forbidden"):
        inside = ".".join((kind.name, *map(str, path[:-1])))
        known = {name for part in _schemas(kind, path[:-1]) for name in part.get("properties", {})}
        return LissomError(
            312, f'unknown key "{path[-1]}" in {inside}', place=where, remedy=nearest(str(path[-1]), known)
        )
    if problem.startswith("missing"):
        absent = str(first["loc"][-1])
        parts = [part.get("properties", {}).get(absent, {}) for part in _schemas(kind, path)]
        says = next((part["description"] for part in parts if "description" in part), None)
        return LissomError(315, f"{what} needs {absent}" + (f": {says}" if says else ""), place=where)
    if problem == "literal_error":
        allowed = [str(one) for part in _schemas(kind, path) for one in _allowed(part)]
        known_only = f"{said} is not one of {', '.join(allowed)}"
        return LissomError(313, known_only, place=where, remedy=_meant(value, allowed))
    if problem.startswith(("greater_than", "less_than")):
        ranges = " or ".join(dict.fromkeys(filter(None, map(_range, _schemas(kind, path)))))
        return LissomError(314, f"{said} is outside {ranges}", place=where)
    if problem.endswith("_type"):
        here = {e["type"].removesuffix("_type") for e in errors if _walked(values, e["loc"]) == path}
        wanted = " or ".join(sorted({_KINDS.get(one, one) for one in here}))
        return LissomError(313, f"{said} is not {wanted}", place=where)
    odd = problem == "string_pattern_mismatch"
    says = f" is not written as it should be: {_described(kind, path)}" if odd else f": {first['msg']}"
    return LissomError(315, f"{said}{says.replace('Value error, ', '', 1)}", place=where)


def _described(kind: type[Method], path: Path) -> str:
    """What the declaration of an option says about it."""
    parts = (part.get("properties", {}).get(str(path[-1]), {}) for part in _schemas(kind, path[:-1]))
    return next((str(part["description"]) for part in parts if "description" in part), "see its description")


def _meant(value: Any, allowed: list[str]) -> str:
    hint = nearest(str(value), allowed)
    return hint if hint.startswith("Did") else ""  # the cause lists them already


def _walked(values: Any, loc: Path) -> Path:
    """The part of pydantic's location that is a path in `values`; the rest names branches of unions."""
    path: Path = ()
    for key in loc:
        if isinstance(values, Mapping) and key in values:
            values, path = values[str(key)], (*path, key)
        elif isinstance(values, list) and isinstance(key, int):
            values, path = values[key], (*path, key)
    return path


def _at(values: Any, path: Path) -> Any:
    for key in path:
        values = values[key]
    return values


def _schemas(kind: type[Method], path: Path) -> list[dict[str, Any]]:
    """The JSON schemas that may hold at `path`: several where a union stands."""
    whole = schema(kind)

    def opened(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if "$ref" in part:
            yield from opened(whole["$defs"][part["$ref"].rsplit("/", 1)[-1]])
        for branch in part.get("anyOf", part.get("oneOf", ())):
            yield from opened(branch)
        yield part

    def inner(part: dict[str, Any], key: str | int) -> Any:
        if isinstance(key, int):
            fixed = part.get("prefixItems", [])
            return fixed[key] if key < len(fixed) else part.get("items")
        return part.get("properties", {}).get(key, part.get("additionalProperties"))

    parts = list(opened(whole))
    for key in path:
        found = [inner(part, key) for part in parts]
        parts = [one for part in found if isinstance(part, dict) for one in opened(part)]
    return parts


def _allowed(part: dict[str, Any]) -> list[Any]:
    return list(part["enum"]) if "enum" in part else [part["const"]] if "const" in part else []


def _range(part: dict[str, Any]) -> str:
    """`0 to 1`, `0 to 1 (1 excluded)`, `1 and above`; empty without bounds."""
    low, above = part.get("minimum"), part.get("exclusiveMinimum")
    high, below = part.get("maximum"), part.get("exclusiveMaximum")
    start = low if low is not None else above
    end = high if high is not None else below
    out = [f"{one:g}" for one in (above if low is None else None, below if high is None else None) if one is not None]
    excluded = f" ({' and '.join(out)} excluded)" if out else ""
    if start is None and end is None:
        return ""
    if end is None:
        return f"{start:g} and above{excluded}"
    if start is None:
        return f"{end:g} and below{excluded}"
    return f"{start:g} to {end:g}{excluded}"
