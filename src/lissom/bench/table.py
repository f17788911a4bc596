"""The one table of a comparison, as plain cells, for the terminal, Markdown and the report."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lissom.bench.comparison import (
    QUALITY,
    Ratio,
    Reading,
    Row,
    find,
    keep,
    latest,
    names,
    quality,
    ratio,
    reading,
    speedup,
)
from lissom.bench.format import clean, interval, number, times

if TYPE_CHECKING:
    from collections.abc import Sequence

# The lines of the table in their order; what is not listed comes after, under its own name.
LABELS = {
    "accuracy": "Accuracy",
    "f1": "F1",
    "mcc": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "perplexity": "Perplexity",
    "keep": "Quality kept",
    "label_loyalty": "Label loyalty",
    "probability_loyalty": "Probability loyalty",
    "cosine": "Cosine",
    "size_mb": "Size",
    "parameters": "Parameters",
    "sparsity": "Zero weights",
    "exit_layers": "Layers a text",
    "flops": "FLOPs",
    "latency_ms_p50": "Latency p50",
    "latency_ms_p95": "Latency p95",
    "throughput": "Throughput",
    "peak_memory_mb": "Peak memory",
    "speedup": "Speed-up",
    "energy_j": "Energy",
    "carbon_g": "Carbon",
    "robust_accuracy": "Robust accuracy",
}
NO_DIFFERENCE = "no difference shown"
_ARROWS = {"higher": "↑", "lower": "↓", "none": ""}
_WORDS = {  # above and below the reference; else more and less
    "size_mb": ("larger", "smaller"),
    "parameters": ("more", "fewer"),
    "exit_layers": ("more", "fewer"),
    "flops": ("more", "fewer"),
    "latency_ms_p50": ("slower", "faster"),
    "latency_ms_p95": ("slower", "faster"),
}
_COMPARED_ALREADY = ("keep", "speedup", "label_loyalty", "probability_loyalty", "cosine")
_SCALES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))
_COUNTED = {
    "": "",
    "count": "",
    "parameters": "",
    "numbers": "",
    "FLOP": "FLOP",
    "FLOPs": "FLOPs",
}  # units that take a prefix
_RATIOS = ("x", "×", "ratio")
_SHARE_PLACES = 4  # a share of zeros is no news further down
_MARKUP = re.compile(r"([\\`*_\[\]|~])")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One reading in words. `value` is "-" where there is none, then `reason` says why."""

    value: str = "-"
    interval: str = ""
    change: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One quantity over all rows. `better` is an arrow, or empty."""

    name: str
    label: str
    unit: str
    better: str
    cells: tuple[Cell, ...]

    @property
    def title(self) -> str:
        """Label and unit: "Size, MB"."""
        return f"{self.label}, {self.unit}" if self.unit else self.label


def lines(rows: Sequence[Row], reference: str | None = None) -> list[Line]:
    """One Line for each quantity that any of `rows` has, in the order of LABELS; the cells follow `latest(rows)`.

    Raises LissomError LSM-215, LSM-843 or LSM-844 when the rows cannot be compared.
    """
    shown = latest(rows)
    base = find(shown, reference)
    found = list(dict.fromkeys(one["name"] for row in shown for one in row["readings"]))
    ordered = [name for name in LABELS if name in found] + [name for name in found if name not in LABELS]
    return [_line(name, shown, base) for name in ordered]


def table(rows: Sequence[Row], reference: str | None = None) -> tuple[list[str], list[list[str]]]:
    """Header and lines of plain cells: quantity, its better direction, one column a row; the change when there are two.

    Characters that steer a terminal are gone from names; a caller whose output has markup escapes the cells.
    """
    shown = latest(rows)
    base = find(shown, reference)
    header = ["", "better", *map(clean, names(shown))]
    body = [[clean(line.title), line.better, *map(_flat, line.cells)] for line in lines(shown, reference)]
    if base is not None and len(shown) == 2:
        other = 1 - shown.index(base)
        header.append("change")
        for cells, line in zip(body, lines(shown, reference), strict=True):
            cells.append(line.cells[other].change)
    return header, body


def reasons(rows: Sequence[Row]) -> list[str]:
    """One sentence for each reading without a value: what, of which subject, and why; one for all with the same why."""
    shown = latest(rows)
    found = []
    for line in lines(shown):
        whys = [cell.reason for cell in line.cells]
        if len(whys) > 1 and all(whys) and len(set(whys)) == 1:
            found.append(f"{line.label}: {whys[0]}")
            continue
        found += [f"{line.label}, {name}: {why}" for name, why in zip(names(shown), whys, strict=True) if why]
    return list(map(clean, found))


def markdown(rows: Sequence[Row], reference: str | None = None) -> str:
    """The table in Markdown, as a model card holds it, with what is missing below. Text from rows is escaped."""
    header, body = table(rows, reference)
    ruler = [":--", ":-:", *["--:"] * (len(header) - 2)]
    written = [map(_escape, header), ruler, *(map(_escape, cells) for cells in body)]
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in written)
    notes = "".join(f"- {_escape(note)}\n" for note in reasons(rows))
    return f"{text}\nNot measured:\n\n{notes}" if notes else text


def _line(name: str, rows: Sequence[Row], base: Row | None) -> Line:
    found = [next((one for one in row["readings"] if one["name"] == name), None) for row in rows]
    first = next(one for one in found if one is not None)
    unit, scale = scaled(name, first["unit"], [one["value"] for one in found if one and one["value"] is not None])
    cells = []
    for row, one in zip(rows, found, strict=True):
        if one is None or one["value"] is None:
            cells.append(Cell(reason=(one or {"how": "not among its readings"})["how"] or "no reason given"))
            continue
        value = round(one["value"], _SHARE_PLACES) if name == "sparsity" else one["value"] / scale
        low, high = (None if end is None else end / scale for end in (one["low"], one["high"]))
        write = times if first["unit"] in _RATIOS and name == "speedup" else number
        change = _change(one, row, base) if base is not None and row is not base else ""
        cells.append(Cell(value=write(value, low, high), interval=interval(low, high), change=change))
    label = LABELS.get(name, name.replace("_", " ").capitalize())
    return Line(name=name, label=label, unit=unit, better=_ARROWS[first["better"]], cells=tuple(cells))


def scaled(name: str, unit: str, values: list[float]) -> tuple[str, float]:
    """The unit with the prefix that suits the largest value of a reading, and what one of it is worth.

    A quality is no count: a perplexity of a million stays that.
    """
    if unit in _RATIOS:
        return "", 1.0
    if unit not in _COUNTED or name in QUALITY:
        return unit, 1.0
    largest = max(map(abs, values), default=0.0)
    scale, prefix = next((one for one in _SCALES if largest >= one[0]), (1.0, ""))
    return prefix + _COUNTED[unit], scale


def _change(found: Reading, row: Row, base: Row) -> str:
    """The change from the reference in words, as far as the intervals allow one."""
    name = found["name"]
    if name in _COMPARED_ALREADY:
        return ""
    if name == "sparsity":
        before = reading(base, name)
        return "" if before is None else _signed(round(found["value"] - before["value"], _SHARE_PLACES), found)
    compared = speedup(row, base) if name == "throughput" else ratio(row, base, name)
    if name in QUALITY:
        before, judged, kept = reading(base, name), quality(base), keep(row, base)
        if judged is not None and judged["name"] == name and kept is not None and not kept.shown:
            return NO_DIFFERENCE
        return "" if before is None else _signed(found["value"] - before["value"], found, before)
    return "" if compared is None else in_words(compared, *_WORDS.get(name, ("more", "less")))


def in_words(compared: Ratio, above: str, below: str) -> str:
    """A comparison for a cell: "4.8× smaller", "the same", "about the same", "no difference shown"."""
    if not compared.shown:
        return "the same" if compared.low is None else NO_DIFFERENCE
    word = above if compared.value > 1 else below
    seen = compared if compared.value > 1 else compared.inverse()
    if round(seen.value, 2) == 1:
        return "about the same"
    return f"{times(seen.value, seen.low, seen.high)} {word}"


def _signed(difference: float, *readings: Reading) -> str:
    """A difference with the digits of the readings it belongs to: a whole number such as 0 shows none of its own."""
    if difference == 0:
        return "the same"
    digits = [number(one["value"], one["low"], one["high"]) for one in readings]
    places = max(len(one.partition(".")[2]) for one in digits)
    return f"{difference:+.{places}f}".replace("-", "−")


def _flat(cell: Cell) -> str:
    return f"{cell.value} ({cell.interval})" if cell.interval else cell.value


def _escape(text: str) -> str:
    """`text` as Markdown shows it literally; HTML becomes entities."""
    plain = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "&#64;")
    return _MARKUP.sub(r"\\\1", plain)
