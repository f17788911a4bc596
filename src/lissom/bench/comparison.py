"""One row against another: ratios with intervals, and what may be said about them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lissom.errors import LissomError, nearest

Row = Mapping[str, Any]
Reading = Mapping[str, Any]

QUALITY = ("accuracy", "f1", "mcc", "pearson", "spearman", "perplexity", "cosine")


@dataclass(frozen=True)
class Ratio:
    """One value divided by another. `low` and `high` are None when neither value has an interval."""

    value: float
    low: float | None
    high: float | None

    @property
    def shown(self) -> bool:
        """Whether the two values differ beyond their intervals."""
        if self.low is None or self.high is None:
            return self.value != 1.0
        return not self.low <= 1.0 <= self.high

    def inverse(self) -> Ratio:
        """The same comparison seen from the other side."""
        if self.low is None or self.high is None:
            return Ratio(1 / self.value, None, None)
        return Ratio(1 / self.value, 1 / self.high, 1 / self.low)


def latest(rows: Sequence[Row]) -> list[Row]:
    """The rows to compare: of several for one subject and runtime the last; in the order of first appearance.

    Raises LissomError LSM-843 if there is none, LSM-844 if they were measured on different data.
    """
    if not rows:
        raise LissomError(843, "there is no row to compare", remedy="Measure something first: lissom measure.")
    newest = {(row["subject"], row["runtime"]): row for row in rows}
    found = {json.dumps(row["data"], sort_keys=True): row["data"] for row in newest.values()}
    if len(found) > 1:
        names = ", ".join(sorted(_data_name(data) for data in found.values()))
        raise LissomError(844, f"the rows come from different data: {names}", remedy="Compare those of one data set.")
    return list(newest.values())


def names(rows: Sequence[Row]) -> list[str]:
    """A name for each row that no other has: the subject, with the runtime where a subject has several."""
    subjects = [row["subject"] for row in rows]
    return [
        f"{subject} ({row['runtime']})" if subjects.count(subject) > 1 else subject
        for subject, row in zip(subjects, rows, strict=True)
    ]


def find(rows: Sequence[Row], reference: str | None) -> Row | None:
    """The row of the reference, given by its subject or its name as `names` has it.

    Raises LissomError LSM-215 if there is none.
    """
    if reference is None:
        return None
    for key in (names(rows), [row["subject"] for row in rows]):
        if reference in key:
            return rows[key.index(reference)]
    raise LissomError(215, f'no row of "{reference}" to compare with', remedy=nearest(reference, names(rows)))


def reading(row: Row, name: str) -> Reading | None:
    """The reading of that name if it has a value."""
    return next((one for one in row["readings"] if one["name"] == name and one["value"] is not None), None)


def quality(row: Row) -> Reading | None:
    """The quality that the row is judged by: the first one it lists."""
    return next((one for one in row["readings"] if one["name"] in QUALITY and one["value"] is not None), None)


def ratio(row: Row, reference: Row, name: str) -> Ratio | None:
    """`row` divided by `reference` in the reading `name`, or None where one has no value above zero.

    The interval is the widest that both readings allow, which is honest for runs that were not paired; `speedup` and
    `keep`, which are measured in pairs, are narrower and preferred where they exist.
    """
    above, below = reading(row, name), reading(reference, name)
    if above is None or below is None or above["value"] <= 0 or below["value"] <= 0:
        return None
    value = above["value"] / below["value"]
    ends = [_ends(above), _ends(below)]
    if all(low == high for low, high in ends):
        return Ratio(value, None, None)
    (above_low, above_high), (below_low, below_high) = ends
    if above_low <= 0 or below_low <= 0:
        return None
    return Ratio(value, above_low / below_high, above_high / below_low)


def speedup(row: Row, reference: Row) -> Ratio | None:
    """How many times the throughput of the reference: as measured in pairs, else from the two throughputs."""
    return _paired(row, reference, "speedup") or ratio(row, reference, "throughput")


def keep(row: Row, reference: Row) -> Ratio | None:
    """The share of the reference's quality that is kept: as measured in pairs, else from the two qualities."""
    measured = _paired(row, reference, "keep")
    judged = quality(reference)
    if measured or judged is None:
        return measured
    found = ratio(row, reference, judged["name"])
    return found.inverse() if found and judged["better"] == "lower" else found


def _paired(row: Row, reference: Row, name: str) -> Ratio | None:
    """The reading `name`, which is a ratio, unless it was measured against something else than `reference`."""
    found, own = reading(row, name), reading(reference, name)
    if found is None or found["value"] <= 0 or (own is not None and own["value"] != 1):
        return None
    return Ratio(found["value"], found["low"], found["high"])


def _ends(found: Reading) -> tuple[float, float]:
    if found["low"] is None:
        return found["value"], found["value"]
    return found["low"], found["high"]


def _data_name(data: object) -> str:
    if isinstance(data, Mapping):
        return str(data.get("name", "unnamed"))
    return str(data)
