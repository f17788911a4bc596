"""What came out, in a sentence and a few figures, no stronger than the intervals allow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lissom.bench.comparison import Ratio, Row, find, keep, latest, names, quality, ratio, reading, speedup
from lissom.bench.format import clean, interval, number, times
from lissom.bench.table import LABELS, NO_DIFFERENCE

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A headline number: `value` ("4.8×"), `label` ("smaller"), `note` (interval, or from what to what)."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`sentence` about one subject against the reference, and its `figures`."""

    sentence: str
    figures: tuple[Figure, ...] = ()


def verdict(rows: Sequence[Row], reference: str | None = None) -> Verdict:
    """The verdict on the best of `rows`: the fastest that is not shown to lose quality, else the one that keeps most.

    Raises LissomError LSM-215, LSM-843 or LSM-844 when the rows cannot be compared.
    """
    shown = latest(rows)
    base = find(shown, reference)
    if base is None or len(shown) == 1:
        return Verdict(sentence=_alone(shown))
    others = [row for row in shown if row is not base]
    best = _best(others, base)
    called = dict(zip(map(id, shown), map(clean, names(shown)), strict=True))
    subject, against = called[id(best)], called[id(base)]
    first = f"Of {len(others)} compared, {subject}" if len(others) > 1 else subject
    return Verdict(sentence=f"{first} {_claims(best, base, against)}.", figures=tuple(_figures(best, base)))


def _best(others: Sequence[Row], base: Row) -> Row:
    def kept(row: Row) -> float:
        found = keep(row, base)
        return found.value if found else 0.0

    def speed(row: Row) -> float:
        found = speedup(row, base)
        return found.value if found else 0.0

    equal = [row for row in others if not _loses(keep(row, base))]
    return max(equal, key=speed) if equal else max(others, key=kept)


def _loses(kept: Ratio | None) -> bool:
    return kept is not None and kept.shown and kept.value < 1


def _claims(row: Row, base: Row, against: str) -> str:
    """Everything after the subject: "is 4.8 times smaller and 6.1 times faster than x, and keeps 97.2 % of its F1"."""
    size, speed = ratio(row, base, "size_mb"), speedup(row, base)
    adjectives = [
        *([] if size is None or not size.shown else [_times(size, "larger", "smaller")]),
        *([] if speed is None or not speed.shown else [_times(speed, "faster", "slower")]),
    ]
    clauses = [f"is {' and '.join(adjectives)} than {against}"] if adjectives else []
    if size is not None and not size.shown:
        clauses.append("has the same size" if adjectives else f"has the size of {against}")
    if speed is not None and not speed.shown:
        clauses.append("shows no difference in speed")
    clauses.append(_quality(row, base))
    *first, last = clauses
    return f"{', '.join(first)}, and {last}" if first else last


def _times(found: Ratio, above: str, below: str) -> str:
    seen, word = (found, above) if found.value > 1 else (found.inverse(), below)
    return f"{times(seen.value, seen.low, seen.high)[:-1]} times {word}"


def _quality(row: Row, base: Row) -> str:
    judged, kept = quality(base), keep(row, base)
    if judged is None or kept is None:
        return "was not compared in quality"
    label = LABELS[judged["name"]]
    label = label if label == "F1" else label[0].lower() + label[1:]
    if not kept.shown:
        return f"shows no difference in {label}"
    if kept.value > 1:
        return f"has a better {label}"
    if judged["better"] == "lower":
        return f"has a worse {label}"
    return f"keeps {_percent(kept.value, kept.low, kept.high)} of the {label}"


def _figures(row: Row, base: Row) -> list[Figure]:
    found = []
    size, speed, kept = ratio(row, base, "size_mb"), speedup(row, base), keep(row, base)
    if size is not None:
        found.append(_figure(size, "larger", "smaller", "the same size", _from_to(row, base, "size_mb")))
    if speed is not None:
        found.append(_figure(speed, "faster", "slower", "the same speed", _from_to(row, base, "throughput")))
    if kept is not None:
        ends = _percent_interval(kept)
        note = f"{ends}, {NO_DIFFERENCE}" if ends and not kept.shown else ends
        found.append(Figure(value=_percent(kept.value, kept.low, kept.high), label="of the quality kept", note=note))
    return found


def _figure(found: Ratio, above: str, below: str, equal: str, note: str) -> Figure:
    if not found.shown:
        return Figure(
            value=times(found.value, found.low, found.high), label=NO_DIFFERENCE if found.low else equal, note=note
        )
    seen, word = (found, above) if found.value > 1 else (found.inverse(), below)
    return Figure(value=times(seen.value, seen.low, seen.high), label=word, note=note)


def _from_to(row: Row, base: Row, name: str) -> str:
    before, after = reading(base, name), reading(row, name)
    if before is None or after is None:
        return ""
    ends = [number(one["value"], one["low"], one["high"]) for one in (before, after)]
    return f"{ends[0]} → {ends[1]} {after['unit']}"


def _percent(value: float, low: float | None, high: float | None) -> str:
    scaled = [None if one is None else 100 * one for one in (low, high)]
    return f"{number(round(100 * value, 2), *scaled)} %"


def _percent_interval(kept: Ratio) -> str:
    ends = interval(*(None if end is None else 100 * end for end in (kept.low, kept.high)))
    return f"{ends} %" if ends else ""


def _alone(rows: Sequence[Row]) -> str:
    if len(rows) > 1:
        return f"{len(rows)} models measured side by side; none is named as the reference, so nothing is compared."
    (row,) = rows
    judged, speed, size = quality(row), reading(row, "throughput"), reading(row, "size_mb")
    said = [
        *([f"{LABELS[judged['name']]} {number(judged['value'], judged['low'], judged['high'])}"] if judged else []),
        *([f"{number(one['value'], one['low'], one['high'])} {one['unit']}" for one in (speed, size) if one]),
    ]
    return clean(f"{row['subject']}: {', '.join(said) or 'nothing that this page sums up was measured'}.")
