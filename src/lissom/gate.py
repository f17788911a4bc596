"""Gates: conditions on readings, as in "keep>=0.99,size_mb<=20". What cannot be evaluated counts as not met."""

from __future__ import annotations

import dataclasses
import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lissom.errors import GateNotMet, LissomError

_CONDITION = re.compile(r"\s*([a-z][a-z0-9_]*)\s*(<=|>=|==|<|>)\s*(\S+?)\s*")
_COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt, "==": operator.eq}


@dataclasses.dataclass(frozen=True)
class Condition:
    """`name` compared with `limit`."""

    name: str
    compare: str
    limit: float

    def __str__(self) -> str:
        return f"{self.name}{self.compare}{self.limit:g}"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One condition and what was found.

    value: of the reading, None when it is missing.  text: a sentence without the final full stop.
    """

    condition: Condition
    value: float | None
    met: bool
    text: str


def parse(gate: str) -> tuple[Condition, ...]:
    """The conditions of a gate, separated by commas.

    Raises LissomError 205 for what is not `name<op>number`.
    """
    found = []
    for part in gate.split(","):
        match = _CONDITION.fullmatch(part)
        limit = _number(match[3]) if match else None
        if match is None or limit is None:
            remedy = 'Write it as in --gate "keep>=0.99,size_mb<=20".'
            raise LissomError(
                205, f'"{part.strip()}" is no condition: name, one of <= >= < > ==, number', remedy=remedy
            )
        found.append(Condition(match[1], match[2], limit))
    return tuple(found)


def evaluate(conditions: Iterable[Condition], readings: Iterable[Mapping[str, Any]]) -> tuple[Verdict, ...]:
    """A verdict for each condition.

    readings: as in a row, with `name`, `value`, `low`, `high`. A reading that is missing, or has no value, is not met.
    """
    found = {reading["name"]: reading for reading in readings}
    return tuple(_verdict(condition, found) for condition in conditions)


def require(verdicts: Sequence[Verdict]) -> None:
    """Raise GateNotMet 501 (a limit is crossed) or 502 (a reading is missing) unless every condition is met."""
    failed = [verdict for verdict in verdicts if not verdict.met]
    if failed:
        code = 502 if all(verdict.value is None for verdict in failed) else 501
        raise GateNotMet(code, "the gate is not met: " + "; ".join(verdict.text for verdict in failed))


def _verdict(condition: Condition, found: Mapping[str, Mapping[str, Any]]) -> Verdict:
    reading = found.get(condition.name)
    value = None if reading is None else reading["value"]
    if reading is None or value is None:
        known = ", ".join(sorted(name for name, one in found.items() if one["value"] is not None)) or "nothing"
        return Verdict(condition, None, False, f"{condition.name} was not measured (there is: {known})")
    met = bool(_COMPARE[condition.compare](value, condition.limit))
    low, high = reading.get("low"), reading.get("high")
    interval = "" if low is None or high is None else f" (95 % interval {low:.4g} to {high:.4g})"
    says = f"{condition.compare} {condition.limit:g}"
    text = f"{condition.name} is {value:.4g}{interval}, {says} is {'met' if met else 'asked for'}"
    return Verdict(condition, value, met, text)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
