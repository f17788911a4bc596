"""Where a verb's words go: results to stdout, notes and progress to stderr."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from lissom.bench.format import clean

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Report = Callable[[str, float], None]

_PLAIN_EVERY = 10.0  # seconds between progress lines where there is no terminal


class Output:
    """The streams of one command.

    json: print one document on stdout and nothing else there.  quiet: no notes and no progress.
    first: whether this process writes and speaks; of several that `torchrun` started, one does. Errors are all heard.
    While entered, what libraries print goes to stderr and lissom's log is shown as notes.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json = json
        self.first = first()
        self.quiet = quiet or not self.first
        self._document: dict[str, Any] = {}
        self._stdout: TextIO = _writable(sys.stdout if self.first else None)
        self._console: Console | None = None
        self._redirect = redirect_stdout(sys.stderr)
        self._log = _Notes(self)

    def __enter__(self) -> Output:
        _silence_libraries()
        logging.getLogger("lissom").addHandler(self._log)
        if self.json:
            self._redirect.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self.json:
            self._redirect.__exit__(None, None, None)
        logging.getLogger("lissom").removeHandler(self._log)

    def result(self, document: dict[str, Any], *lines: str) -> None:
        """The outcome of the verb: the document with `--json`, else the lines. Steering characters are taken out."""
        self._document = document
        if not self.json:
            self.print(*lines)

    def print(self, *lines: str) -> None:
        """Lines on stdout, for people."""
        if not self.json:
            for line in lines:
                print(clean(line, keep_lines=True), file=self._stdout)

    def stream(self, text: str) -> None:
        """One line of data on stdout, as it is: JSON that escapes what has to be."""
        print(text, file=self._stdout, flush=True)

    def table(self, header: Sequence[str], body: Sequence[Sequence[str]]) -> None:
        """A table on stdout, for people: columns as wide as their longest cell, first one to the left."""
        rows = [[clean(cell) for cell in row] for row in (header, *body)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        left = [not all(_numeric(row[i]) for row in rows[1:]) for i in range(len(header))]
        for number, row in enumerate(rows):
            cells = (
                cell.ljust(w) if to_left else cell.rjust(w) for cell, w, to_left in zip(row, widths, left, strict=True)
            )
            self.print("  ".join(cells).rstrip())
            if number == 0:
                self.print("  ".join("-" * width for width in widths))

    def note(self, text: str) -> None:
        """A line on stderr, unless quiet."""
        if not self.quiet:
            self.error(text)

    def error(self, text: str) -> None:
        """A line on stderr, always."""
        line = clean(text)
        if sys.stderr is None:  # closed by the caller
            return
        if self._console is not None:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)  # noqa: T201 - this is the program's output

    @contextmanager
    def progress(self, title: str) -> Iterator[Report]:
        """A function that takes a phrase and the fraction done, 0 to 1: a bar on a terminal, else lines."""
        if self.json or self.quiet or sys.stderr is None:
            yield lambda what, fraction: None
        elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            with self._bar() as bar:
                yield _on_bar(bar, title)
        else:
            yield self._lines(title)

    def finish(self, failure: dict[str, Any] | None = None) -> None:
        """Print the one document of `--json`: the result, with the fields of the failure if there is one."""
        if self.json and (self._document or failure):
            document = {**self._document, **(failure or {})}
            self.stream(json.dumps(document, ensure_ascii=True, allow_nan=False, default=str))
        self._stdout.flush()

    def _lines(self, title: str) -> Report:
        started = time.monotonic()
        shown = started - _PLAIN_EVERY

        def report(what: str, fraction: float) -> None:
            nonlocal shown
            now = time.monotonic()
            if now - shown >= _PLAIN_EVERY:
                shown = now
                self.note(f"{title}: {fraction:4.0%}  {what}  {left(now - started, fraction)}".rstrip())

        return report

    @contextmanager
    def _bar(self) -> Iterator[Progress]:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._console = Console(stderr=True)
        words = TextColumn("{task.description}", markup=False)
        columns = (words, BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TextColumn("{task.fields[left]}"))
        try:
            with Progress(*columns, console=self._console, transient=True) as bar:
                yield bar
        finally:
            self._console = None


def first() -> bool:
    """Whether this process is the only one, or the first of those that `torchrun` started."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def left(elapsed: float, fraction: float) -> str:
    """How long the rest takes at the rate so far: "about 2 min 10 s left"; empty while that is a guess."""
    if fraction <= 0.01 or elapsed < 2 or fraction >= 1:
        return ""
    seconds = round(elapsed * (1 - fraction) / fraction)
    minutes, rest = divmod(seconds, 60)
    if minutes >= 60:
        return f"about {minutes // 60} h {minutes % 60} min left"
    return f"about {minutes} min {rest} s left" if minutes else f"about {rest} s left"


def _on_bar(bar: Progress, title: str) -> Report:
    started = time.monotonic()
    task = bar.add_task(title, total=1.0, left="")

    def report(what: str, fraction: float) -> None:
        phrase = clean(f"{title}: {what}" if what else title)
        bar.update(task, completed=fraction, description=phrase, left=left(time.monotonic() - started, fraction))

    return report


class _Notes(logging.Handler):
    """lissom's own warnings, as notes."""

    def __init__(self, out: Output) -> None:
        super().__init__(logging.WARNING)
        self.out = out

    def emit(self, record: logging.LogRecord) -> None:
        self.out.note(f"note: {record.getMessage()}")


def _writable(stream: TextIO | None) -> TextIO:
    """A stream for results: nowhere when there is none; what its encoding lacks is written as an escape."""
    if stream is None:
        return Path(os.devnull).open("w", encoding="utf-8")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream


def _numeric(cell: str) -> bool:
    return not cell or cell[:1].isdigit() or cell[:1] in "-+~"


def _silence_libraries() -> None:
    """Their bars and advice would run through ours. LISSOM_DEBUG lets them speak."""
    if os.environ.get("LISSOM_DEBUG"):
        return
    import warnings

    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("HF_DATASETS_DISABLE_PROGRESS_BARS", "1"),
        ("TQDM_DISABLE", "1"),
        ("TOKENIZERS_PARALLELISM", "true"),
    ):
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
