"""`lissom predict`: answers, one JSON line a text."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from lissom.cli import options
from lissom.cli.group import verb
from lissom.cli.output import Output
from lissom.errors import LissomError

if TYPE_CHECKING:
    from lissom.runtime import Text

_LONGEST = 1_000_000  # characters of one text
_AT_ONCE = 1024  # texts that are read before the first of them is answered


@verb(
    "predict",
    "lissom predict out --input texts.txt",
    "echo 'A fine film.' | lissom predict out --input -",
    "lissom predict out --input pairs.jsonl > answers.jsonl",
)
@click.argument("subject")
@click.option("--input", "source", metavar="FILE|-", required=True, help="Texts, or - for standard input.")
@options.device
@options.threads
@options.any_length
def command(
    say: Output, *, subject: str, source: str, device: str, threads: int | None, max_length: int | None
) -> None:
    """Answer texts with a model: one JSON line a text, in order.

    The input has one text a line, or one JSON object a line with text (and text_b for pairs, or tokens for tagging).
    With --json the answers come as one document.
    """
    from lissom.runtime import open_runner
    from lissom.runtime.answers import answers

    texts = read_texts(source)
    runner = open_runner(subject, device=device, threads=threads, max_length=max_length)
    found: list[dict[str, Any]] = []
    read = empty = 0
    while part := list(islice(texts, _AT_ONCE)):
        said = answers(runner, part)
        read, empty = read + len(part), empty + sum(map(_is_empty, part))
        found += said if say.json else []
        for answer in () if say.json else said:
            say.stream(json.dumps(answer))
    if say.json:
        say.result({"answers": found})
    if not read:
        say.note("No text was given.")
    if empty:
        say.note(f"{empty} of {read} texts are empty; they are answered like any other.")


def _is_empty(text: Text) -> bool:
    return not "".join([text] if isinstance(text, str) else text).strip()


def read_texts(source: str) -> Iterator[Text]:
    """The texts of a file, or of standard input for "-".

    Lines are JSON objects when the name ends in .jsonl or the first line is one with a text; else a line is a text.
    Raises LissomError 831 (cannot be read) at once; with the texts 832 (not UTF-8 or too long), 833 (no row).
    """
    if source == "-":
        if sys.stdin is None:
            raise LissomError(831, "it is closed", place="standard input", remedy="Give texts, or name a file.")
        return _texts(sys.stdin.buffer, "standard input", rows=False)
    path = Path(source)
    if not path.is_file():
        cause = "it is no file" if path.exists() else "there is no such file"
        raise LissomError(831, cause, place=source)
    return _file_texts(path, source)


def _file_texts(path: Path, source: str) -> Iterator[Text]:
    try:
        with path.open("rb") as file:
            yield from _texts(file, source, rows=path.suffix == ".jsonl")
    except OSError as error:
        raise LissomError(831, f"cannot be read: {error.strerror}", place=source) from error


def _texts(file: BinaryIO, name: str, *, rows: bool) -> Iterator[Text]:
    number = 0
    while raw := file.readline(4 * _LONGEST):
        number += 1
        place = f"{name}:{number}"
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise LissomError(832, "is not UTF-8", place=place) from error
        if len(line) > _LONGEST:
            raise LissomError(832, f"more than {_LONGEST:,} characters in one text", place=place)
        if number == 1:
            rows = rows or _is_row(line)
        if not rows:
            yield line
        elif line.strip():
            yield _row(line, place)


def _is_row(line: str) -> bool:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and ("text" in row or "text_a" in row or "tokens" in row)


def _row(line: str, place: str) -> Text:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LissomError(833, "is not JSON", place=place) from error
    row = row if isinstance(row, dict) else {}
    words = row.get("tokens")
    if isinstance(words, list) and words and all(isinstance(word, str) for word in words):
        return words
    text, other = row.get("text", row.get("text_a")), row.get("text_b")
    if not isinstance(text, str) or not isinstance(other, str | None):
        remedy = 'Write {"text": "..."}, with "text_b" for pairs, or {"tokens": ["...", ...]}.'
        raise LissomError(833, "is no object with a text", place=place, remedy=remedy)
    return text if other is None else (text, other)
