"""A number that changes while a model is trained: weights, temperatures, probabilities, sparsities."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

_Share = Annotated[float, Field(ge=0, le=1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ramp:
    """From `start` to `end` between the shares `begin` and `finish` of the run; constant before and after.

    linear: in equal steps. cubic: end + (start - end) · (1 - t)³, fast at first (Zhu and Gupta 2017, eq. 1).
    step: `start` before `finish`, `end` from there on. Raises ValueError when `begin` lies behind `finish`.
    """

    start: float
    end: float
    begin: _Share = 0.0
    finish: _Share = 1.0
    shape: Literal["linear", "cubic", "step"] = "linear"

    def __post_init__(self) -> None:
        if self.begin > self.finish:
            raise ValueError(f"begin {self.begin:g} lies behind finish {self.finish:g}")

    def at(self, progress: float) -> float:
        """The number when the share `progress` (0 to 1) of the run is done."""
        if progress >= self.finish:
            return self.end
        if progress <= self.begin or self.shape == "step":
            return self.start
        t = (progress - self.begin) / (self.finish - self.begin)
        left = (1 - t) ** 3 if self.shape == "cubic" else 1 - t
        return self.end + (self.start - self.end) * left


def at(value: float | Ramp, progress: float) -> float:
    """`value` when the share `progress` of the run is done; a plain number stays what it is."""
    return value.at(progress) if isinstance(value, Ramp) else value


def _shares(ramp: Ramp) -> Ramp:
    if not (0 <= ramp.start <= 1 and 0 <= ramp.end <= 1):
        raise ValueError("start and end lie between 0 and 1")
    return ramp


def _positive(ramp: Ramp) -> Ramp:
    if ramp.start <= 0 or ramp.end <= 0:
        raise ValueError("start and end lie above 0")
    return ramp


def _never_negative(ramp: Ramp) -> Ramp:
    if ramp.start < 0 or ramp.end < 0:
        raise ValueError("start and end are not below 0")
    return ramp


def _once_positive(ramp: Ramp) -> Ramp:
    if ramp.start == ramp.end == 0:
        raise ValueError("start and end are both 0, so that it never counts")
    return _never_negative(ramp)


Probability = _Share | Annotated[Ramp, AfterValidator(_shares)]
"""The type of an option: a probability, or a ramp of it."""
Part = Annotated[float, Field(gt=0, le=1)] | Annotated[Ramp, AfterValidator(_shares)]
"""The type of an option: a share of a whole, not nothing of it, or a ramp of it."""
Positive = Annotated[float, Field(gt=0)] | Annotated[Ramp, AfterValidator(_positive)]
"""The type of an option: a number above 0, or a ramp of such numbers."""
NotNegative = Annotated[float, Field(ge=0)] | Annotated[Ramp, AfterValidator(_never_negative)]
"""The type of an option: a number from 0, or a ramp of such numbers."""
Weight = Annotated[float, Field(gt=0)] | Annotated[Ramp, AfterValidator(_once_positive)]
"""The type of an option: what a loss is multiplied by, or a ramp of it that may begin or end at 0."""
Temperature = Annotated[float, Field(gt=0, le=100)] | Annotated[Ramp, AfterValidator(_positive)]
"""The type of an option: what scores are divided by before a softmax, or a ramp of it."""
