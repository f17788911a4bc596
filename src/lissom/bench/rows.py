"""Rows on disk: append-only JSON lines, one row a line, checked when they are written and when they are read.

A row is what `lissom measure --json` prints: `subject`, `runtime`, `machine`, `versions`, `seed`, `data`, `readings`.
Further keys are kept as they are, so that a newer lissom can add provenance. Files may come from anybody.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lissom.errors import LissomError

Row = dict[str, Any]

_LINE_LIMIT = 1 << 20  # bytes; a row with 100 readings has about 30 kB
_FILE_LIMIT = 256 << 20
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_BETTER = ("higher", "lower", "none")
_log = logging.getLogger("lissom")


def read_rows(paths: Iterable[str | Path]) -> list[Row]:
    """The rows of all `paths`, in order. A file holds one row a line, or what `lissom measure --json` prints.

    A last line that was cut off while it was written is left out with a warning. A missing file, or one with no row in
    it, is an error.
    Raises LissomError LSM-841 (a line is no valid row; names file and line), LSM-842 (a file or line is too large),
    LSM-843 (a file cannot be read or holds no row).
    """
    return [row for path in paths for row in _read(Path(path))]


def append_row(path: str | Path, row: Mapping[str, Any]) -> None:
    """Adds `row` as one line to the file at `path`, which is made when it is not there, and waits until it is on disk.

    What an earlier, interrupted write left behind is cut off first. Writers wait for each other (not on Windows).
    Raises LissomError LSM-841 if the row is not valid, LSM-842 if it is larger than a line may be.
    """
    target = Path(path)
    check_row(row, str(target))
    line = json.dumps(row, allow_nan=False).encode() + b"\n"
    if len(line) > _LINE_LIMIT:
        raise _too_large(str(target), f"the row has {len(line):,} bytes", _LINE_LIMIT)
    with target.open("a+b") as file, _locked(file.fileno()):
        _mend(file.fileno())
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def check_row(row: object, place: str) -> None:
    """Raises LissomError LSM-841 at `place` unless `row` has a row's fields, finite numbers, and nothing but JSON."""
    if not isinstance(row, Mapping):
        raise _invalid(place, f"expected a JSON object, found {_kind(row)}")
    try:
        json.dumps(row, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise _invalid(place, f"the row is not plain finite JSON: {error}") from None
    _check_fields(row, _ROW_FIELDS, place)
    names = set()
    for number, reading in enumerate(row["readings"], start=1):
        where = f"{place}, reading {number}"
        if not isinstance(reading, Mapping):
            raise _invalid(where, f"expected a JSON object, found {_kind(reading)}")
        _check_fields(reading, _READING_FIELDS, where)
        low, high = reading["low"], reading["high"]
        if (low is None) != (high is None) or (low is not None and low > high):
            raise _invalid(where, f"the interval {low} to {high} has no order")
        if reading["name"] in names:
            raise _invalid(where, f'"{reading["name"]}" is there twice')
        names.add(reading["name"])


def _read(path: Path) -> Iterator[Row]:
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise _unreadable(path, "it is not a regular file")
        if size > _FILE_LIMIT:
            raise _too_large(str(path), f"the file has {size:,} bytes", _FILE_LIMIT)
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from None
    *whole, last = content.split(b"\n")
    found = False
    for number, line in enumerate(whole, start=1):
        if line.strip():
            yield from _parse(line, f"{path}:{number}")
            found = True
    if last.strip():
        place = f"{path}:{len(whole) + 1}"
        if _is_json(last):
            yield from _parse(last, place)
            found = True
        else:
            _log.warning("%s: the last line was cut off while it was written; it is left out", place)
    if not found:
        raise _unreadable(path, "it holds no row")


def _parse(line: bytes, place: str) -> list[Row]:
    """The row of a line; or the rows of the document that `lissom measure --json` prints."""
    if len(line) > _LINE_LIMIT:
        raise _too_large(place, f"the line has {len(line):,} bytes", _LINE_LIMIT)
    try:
        found = _decode(line)
    except UnicodeDecodeError:
        raise _invalid(place, "the line is not UTF-8") from None
    except RecursionError:
        raise _invalid(place, "the line is nested too deeply") from None
    except ValueError as error:
        raise _invalid(place, f"the line is not JSON: {error}") from None
    listed = found.get("rows") if isinstance(found, dict) else None
    rows: list[Row] = listed if isinstance(listed, list) and listed else [found]
    for row in rows:
        check_row(row, place)
    return rows


def _decode(line: bytes) -> Any:
    return json.loads(
        line.decode(), object_pairs_hook=_once, parse_float=_finite, parse_int=_bounded, parse_constant=_finite
    )


def _is_json(line: bytes) -> bool:
    try:
        _decode(line)
    except (ValueError, RecursionError):
        return False
    return True


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys differ; json itself lets the last of two equal keys win."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is not a finite number")
    return value


def _bounded(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"{text[:20]}... is too large a number")
    return int(text)


# Each field: is a value allowed, and what is allowed in words.
_Field = tuple[Callable[[Any], bool], str]


def _text(limit: int) -> _Field:
    return lambda value: isinstance(value, str) and len(value) <= limit, f"a text of up to {limit} characters"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number_or_null() -> _Field:
    return lambda value: value is None or _is_number(value), "a number or null"


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


_DESCRIBED: _Field = (lambda value: isinstance(value, str | Mapping), "a text or an object")
_ROW_FIELDS: dict[str, _Field] = {
    "subject": (lambda value: isinstance(value, str) and 0 < len(value) <= 4096, "a text of 1 to 4096 characters"),
    "runtime": _text(256),
    "machine": _DESCRIBED,
    "versions": (lambda value: isinstance(value, Mapping), "an object"),
    "seed": (lambda value: value is None or _is_count(value), "a whole number or null"),
    "data": (lambda value: value is None or isinstance(value, str | Mapping), "a text, an object or null"),
    "readings": (lambda value: isinstance(value, list | tuple) and len(value) <= 1000, "a list of up to 1000 readings"),
}
_READING_FIELDS: dict[str, _Field] = {
    "name": (lambda value: isinstance(value, str) and _NAME.fullmatch(value) is not None, "a name such as size_mb"),
    "value": _number_or_null(),
    "unit": _text(64),
    "low": _number_or_null(),
    "high": _number_or_null(),
    "n": (_is_count, "a whole number"),
    "better": (lambda value: value in _BETTER, "one of " + ", ".join(_BETTER)),
    "how": _text(4096),
}


def _check_fields(found: Mapping[str, Any], fields: dict[str, _Field], place: str) -> None:
    for name, (allowed, words) in fields.items():
        if name not in found:
            raise _invalid(place, f'"{name}" is missing')
        if not allowed(found[name]):
            raise _invalid(place, f'"{name}" is {_kind(found[name])}, expected {words}')


def _kind(value: object) -> str:
    if value is None or _is_number(value) or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return f"the text {json.dumps(value[:40])}"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list) else type(value).__name__


@contextmanager
def _locked(handle: int) -> Iterator[None]:
    """Holds the file alone; closing it releases the lock, also after a crash."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX)
    yield


def _mend(handle: int) -> None:
    """Makes the file end with a whole line: a whole row gets its line end, a torn one goes."""
    size = os.lseek(handle, 0, os.SEEK_END)
    start = max(0, size - _LINE_LIMIT - 1)
    os.lseek(handle, start, os.SEEK_SET)
    tail = os.read(handle, size - start)
    last = tail[tail.rfind(b"\n") + 1 :]
    if last and _is_json(last):
        os.write(handle, b"\n")
    elif last:
        os.ftruncate(handle, size - len(last))


def _invalid(place: str, cause: str) -> LissomError:
    return LissomError(841, cause, place=place, remedy="Remove the line, or measure again.")


def _too_large(place: str, found: str, limit: int) -> LissomError:
    return LissomError(842, f"{found}, {limit:,} are allowed", place=place, remedy="Is this a file of rows?")


def _unreadable(path: Path, cause: str) -> LissomError:
    return LissomError(843, f"no rows: {cause}", place=str(path), remedy="Write rows with: lissom measure --json.")
