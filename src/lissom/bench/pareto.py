"""The Pareto front: what no other choice beats in every respect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

Better = Literal["higher", "lower"]


def pareto(points: Sequence[Sequence[float]], better: Sequence[Better]) -> list[bool]:
    """Which of `points` are on the front: no other point is at least as good everywhere and better somewhere.

    points: one sequence of values a point, finite, as long as `better`.  better: the good direction of each value.
    Equal points are on the front together.

    >>> pareto([(0.90, 10), (0.90, 20), (0.80, 30), (0.70, 5)], ["higher", "higher"])
    [False, True, True, False]
    """
    signs = [1.0 if direction == "higher" else -1.0 for direction in better]
    scores = [tuple(sign * value for sign, value in zip(signs, point, strict=True)) for point in points]
    return [not any(_beats(other, score) for other in scores) for score in scores]


def _beats(other: tuple[float, ...], score: tuple[float, ...]) -> bool:
    return other != score and all(a >= b for a, b in zip(other, score, strict=True))
