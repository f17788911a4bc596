"""Files and objects of a data set, read into columns that know their row numbers.

Rows are parsed here, one by one, and not by `datasets`: it guesses JSON types from the first block, turns the CSV words
NA and null into missing values, and cannot say in which line a fault lies. Every reader is bounded before it allocates.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from lissom.errors import LissomError
from lissom.files import open_file

if TYPE_CHECKING:
    import datasets

SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".parquet")
MAX_BYTES = 2 << 30  # of one file, unpacked
MAX_ROW_BYTES = 64 << 20
MAX_RATIO = 100  # unpacked to packed; text reaches about 10
FREE_BYTES = 16 << 20  # small files may be as repetitive as they like


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of one split, as columns.

    place: the file name, or the split's name for data that came as an object.
    rows: the number that an error shows for each row: the line in the file, from 1, or the row, from 1.
    names: label names that the source itself declares, by column.
    """

    place: str
    columns: Mapping[str, Sequence[Any]]
    rows: Sequence[int]
    names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def fault(self, code: int, row: int, column: str, cause: str, remedy: str = "") -> LissomError:
        """The error for one cell; `row` counts from 0."""
        return LissomError(code, cause, place=f'{self.place} row {self.rows[row]}, column "{column}"', remedy=remedy)


def shown(value: object) -> str:
    """A value from a file as a short, printable quotation."""
    text = value if isinstance(value, str) else repr(value)
    text = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text[:60])
    return f'"{text}"' if len(text) < 60 else f'"{text}..."'


def suffix(path: Path) -> str:
    """The part of a file's name that tells its format, or "" when it is none of `SUFFIXES`."""
    return next((one for one in SUFFIXES if path.name.lower().endswith(one)), "")


def read_table(path: Path) -> Table:
    """Read one data file. Raises LissomError 805 to 809 when it is broken, too large or empty."""
    readers = {".jsonl": _jsonl, ".jsonl.gz": _jsonl, ".csv": _csv, ".parquet": _parquet}
    table = readers[suffix(path)](path)
    if not table.rows:
        raise LissomError(809, "holds no rows", place=path.name)
    return table


def read_object(source: datasets.Dataset | Mapping[str, Sequence[Any]], place: str) -> Table:
    """Columns of a `datasets.Dataset` (with the names of its ClassLabel features) or of a dict of lists."""
    if isinstance(source, Mapping):
        columns = {str(name): _listed(values, str(name), place) for name, values in source.items()}
        names = {}
    else:
        plain = source.with_format(None)
        columns = {name: plain[name][:] for name in plain.column_names}
        names = _declared(plain.features)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise LissomError(807, f"the columns differ in length: {lengths}", place=place)
    count = next(iter(lengths.values()), 0)
    if not count:
        raise LissomError(809, "holds no rows", place=place)
    return Table(place, columns, range(1, count + 1), names)


def _listed(values: Any, name: str, place: str) -> list[Any]:
    if hasattr(values, "tolist"):  # an array, a series: plain numbers, not the array's own kind
        values = values.tolist()
    if not isinstance(values, list | tuple):
        raise LissomError(801, f"is no list of values but {type(values).__name__}", place=f'{place} column "{name}"')
    return list(values)


def parse_json(text: str, place: str) -> Any:
    """One JSON value. Raises LissomError 807 when it is broken or too deep, 808 when a key stands twice."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except _Twice as twice:
        raise LissomError(808, f"the key {shown(twice.key)} stands twice in one object", place=place) from None
    except RecursionError:
        raise LissomError(807, "is nested too deeply", place=place) from None
    except json.JSONDecodeError as broken:
        cause = f"is not JSON: {broken.msg} at character {broken.pos + 1}"
        remedy = "" if text.endswith("\n") else "The file ends here: it may have been cut off; write it again."
        raise LissomError(807, cause, place=place, remedy=remedy) from None
    except ValueError as broken:  # an integer of more than 4,300 digits
        raise LissomError(807, f"is not usable JSON: {str(broken).split(';')[0]}", place=place) from None


class _Twice(Exception):
    def __init__(self, key: str) -> None:
        self.key = key


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Twice(next(key for key in keys if keys.count(key) > 1))
    return found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbers from 1 and decoded lines, each with its line end; only a line feed ends a line."""
    with open_file(path) as file:
        packed, total, number = os.fstat(file.fileno()).st_size, 0, 0
        stream = cast("BinaryIO", gzip.GzipFile(fileobj=file)) if path.name.lower().endswith(".gz") else file
        while raw := _readline(stream, path.name):
            number, total = number + 1, total + len(raw)
            if total > MAX_BYTES or total > max(FREE_BYTES, MAX_RATIO * packed):
                raise LissomError(
                    805,
                    f"unpacks to more than {total >> 20} MB from {packed:,} bytes",
                    place=path.name,
                    remedy=f"The limits are {MAX_BYTES >> 20} MB and {MAX_RATIO} times the packed size.",
                )
            yield number, _decode(raw, number, path.name)


def _readline(stream: BinaryIO, name: str) -> bytes:
    try:
        raw = stream.readline(MAX_ROW_BYTES + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as broken:
        raise LissomError(807, f"is not a whole gzip file: {broken}", place=name, remedy="Pack it again.") from None
    if len(raw) > MAX_ROW_BYTES:
        raise LissomError(805, f"a row is longer than {MAX_ROW_BYTES >> 20} MB", place=name)
    return raw


def _decode(raw: bytes, number: int, name: str) -> str:
    place = f"{name} row {number}"
    if number == 1:
        raw = raw.removeprefix(
            b"\xef\xbb\xbf"
        )  # spreadsheets write it; it would become part of the first column's name
        if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise LissomError(806, "is UTF-16, not UTF-8", place=place, remedy="Save the file as UTF-8.")
    if b"\0" in raw:
        raise LissomError(806, "holds a NUL byte, so it is not UTF-8 text", place=place, remedy="Save it as UTF-8.")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as broken:
        cause = f"byte {broken.start + 1} of the line (0x{raw[broken.start]:02x}) is not UTF-8"
        raise LissomError(806, cause, place=place, remedy="Save the file as UTF-8; it may be Latin-1.") from None


def _jsonl(path: Path) -> Table:
    rows, numbers = [], []
    for number, line in _lines(path):
        if not line.strip(" \t\r\n"):
            continue
        place = f"{path.name} row {number}"
        row = parse_json(line, place)
        if not isinstance(row, dict):
            raise LissomError(807, f"the line is {shown(row)}, not an object with named values", place=place)
        rows.append(row)
        numbers.append(number)
    names = dict.fromkeys(name for row in rows for name in row)
    return Table(path.name, {name: [row.get(name) for row in rows] for name in names}, numbers)


def _csv(path: Path) -> Table:
    """Comma-separated, quoted as RFC 4180 says, first row = names. Every cell stays text, also NA and null."""
    limit = csv.field_size_limit(MAX_ROW_BYTES)  # of the process; its default is less than a long document
    try:
        return _csv_table(path)
    finally:
        csv.field_size_limit(limit)


def _csv_table(path: Path) -> Table:
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    rows, numbers = [], []
    start = 1
    try:
        header = [name.strip() for name in next(reader, [])]
        twice = next((name for name in header if header.count(name) > 1), None)
        if twice is not None:
            raise LissomError(808, f"the column {shown(twice)} stands twice", place=f"{path.name} row 1")
        start = reader.line_num + 1  # a quoted cell may span lines; a row is named by its first
        for row in reader:
            if row and len(row) != len(header):
                cause = f"the row has {len(row)} cells, the header has {len(header)}"
                raise LissomError(807, cause, place=f"{path.name} row {start}", remedy="Quote texts that hold a comma.")
            if row:
                rows.append(row)
                numbers.append(start)
            start = reader.line_num + 1
    except csv.Error as broken:
        raise LissomError(807, f"is not CSV: {broken}", place=f"{path.name} row {start}") from None
    return Table(path.name, {name: [row[at] for row in rows] for at, name in enumerate(header)}, numbers)


def _parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, list[Any]] = {}
    size = 0
    try:
        with open_file(path) as raw, pq.ParquetFile(raw) as file:
            header = file.schema_arrow.names
            if len(set(header)) < len(header):
                raise LissomError(808, f"a column stands twice among {', '.join(header)}", place=path.name)
            names = _parquet_names(file.schema_arrow)
            columns = {name: [] for name in header}
            claimed = sum(file.metadata.row_group(at).total_byte_size for at in range(file.num_row_groups))
            if not header or claimed > MAX_BYTES:
                cause = (
                    f"claims {len(header)} columns of {claimed >> 20:,} MB in all; at most {MAX_BYTES >> 20:,} are read"
                )
                raise LissomError(805, cause, place=path.name)
            for batch in file.iter_batches(batch_size=1024):
                size += batch.nbytes
                if size > MAX_BYTES:
                    raise LissomError(805, f"unpacks to more than {MAX_BYTES >> 20} MB", place=path.name)
                for name in header:
                    columns[name].extend(_cells(batch.column(name), path.name, name, len(columns[name])))
    except (pa.ArrowException, OSError, ValueError, RecursionError) as broken:
        cause = f"is not a whole Parquet file: {str(broken).splitlines()[0][:200] if str(broken) else broken!r}"
        raise LissomError(807, cause, place=path.name, remedy="Write it again.") from None
    return Table(path.name, columns, range(1, len(next(iter(columns.values()), [])) + 1), names)


def _cells(column: Any, place: str, name: str, before: int) -> list[Any]:
    try:
        return cast("list[Any]", column.to_pylist())
    except UnicodeDecodeError:
        for at, cell in enumerate(column):
            try:
                cell.as_py()
            except UnicodeDecodeError as broken:
                where = f'{place} row {before + at + 1}, column "{name}"'
                raise LissomError(806, f"byte {broken.start + 1} is not UTF-8", place=where) from None
        raise


def _parquet_names(schema: Any) -> dict[str, tuple[str, ...]]:
    """Label names that `datasets` left in the file's header, if it wrote the file."""
    import datasets

    if b"huggingface" not in (schema.metadata or {}):
        return {}
    try:
        return _declared(datasets.Features.from_arrow_schema(schema))
    except (KeyError, TypeError, ValueError, AttributeError):  # a header of another version: the labels count as plain
        return {}


def _declared(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    found = {}
    for name, feature in features.items():
        inner = getattr(feature, "feature", feature)  # a list of ClassLabel, as tags are
        if names := getattr(inner, "names", None):
            found[name] = tuple(str(one) for one in names)
    return found


def is_missing(value: object) -> bool:
    """Whether a cell holds nothing: None, NaN or blank text."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())
