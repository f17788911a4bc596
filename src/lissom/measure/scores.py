"""Scores that can be resampled: each statistic takes weights of the examples, so that one formula gives the value, its
bootstrap interval and the interval of a ratio to another model on the same examples.

Bootstrap: 1,000 resamples of the examples, percentiles 2.5 and 97.5 (Efron 1979). Ratios use the same resamples for
both models, so that what is hard for both does not widen the interval.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lissom.measure.reading import Reading

from lissom.measure.reading import taken

TIMES = 1000
_CHUNK = 4_000_000  # numbers in memory at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """One statistic over n examples.

    value: weights (times, n), how often each example is drawn -> the statistic of each draw (times,); NaN where it is
        not defined.
    """

    name: str
    n: int
    how: str
    value: Callable[[NDArray[np.float64]], NDArray[np.float64]]

    def point(self) -> float:
        """The statistic of the examples as they are."""
        return float(self.value(np.ones((1, self.n)))[0])


def additive(
    name: str,
    rows: NDArray[Any],
    finish: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    how: str,
) -> Scores:
    """A statistic of sums. rows: (n, k), what each example adds; finish: sums (times, k) -> (times,)."""
    table = np.asarray(rows, np.float64)
    return Scores(name=name, n=len(table), how=how, value=lambda weights: finish(weights @ table))


def ratio_of_sums(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """First column / second column, NaN where the second is not above 0."""
    return divide(sums[:, 0], sums[:, 1])


def quality_reading(scores: Scores, seed: int) -> Reading:
    """The statistic with its interval."""
    value = scores.point()
    if not np.isfinite(value):
        return taken(scores.name, None, f"Not defined on these {scores.n} examples. {scores.how}", n=scores.n)
    low, high = _percentiles(np.concatenate([scores.value(weights) for weights in resamples(scores.n, seed)]))
    how = f"{scores.how} Interval: {TIMES} bootstrap resamples of {scores.n} examples."
    return taken(scores.name, value, how, n=scores.n, low=low, high=high)


def keep_reading(scores: Scores, reference: Scores, seed: int) -> Reading:
    """Quality divided by the reference's; for perplexity, where less is better, the other way round."""
    lower = scores.name == "perplexity"
    above, below = (reference, scores) if lower else (scores, reference)
    how = f"{'Reference / subject' if lower else 'Subject / reference'} in {scores.name}"
    if scores.n != reference.n:
        return taken("keep", None, f"{how}: the two read {scores.n} and {reference.n} examples, so they do not pair.")
    top, bottom = above.point(), below.point()
    if not (np.isfinite(top) and bottom > 0):
        return taken("keep", None, f"{how}: the divisor is {bottom:.4g}, no ratio.", n=scores.n)
    ratios = np.concatenate(
        [divide(above.value(weights), below.value(weights)) for weights in resamples(scores.n, seed)]
    )
    low, high = _percentiles(ratios)
    how += f". Interval: {TIMES} paired bootstrap resamples of {scores.n} examples."
    return taken("keep", top / bottom, how, n=scores.n, low=low, high=high)


def resamples(n: int, seed: int, times: int = TIMES) -> Iterator[NDArray[np.float64]]:
    """How often each of n examples is drawn, (some, n) at a time, `times` rows in all; the same for the same seed."""
    rng = np.random.default_rng(seed)
    some = max(1, min(times, _CHUNK // max(n, 1)))
    for start in range(0, times, some):
        rows = min(some, times - start)
        drawn = rng.integers(n, size=(rows, n)) + np.arange(rows)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def interval(values: NDArray[Any], statistic: Callable[..., Any], seed: int) -> tuple[float, float]:
    """The bootstrap interval of `statistic(values, axis=1)` over a few repeated measurements. values: (repeats,)."""
    rng = np.random.default_rng(seed)
    drawn = values[rng.integers(len(values), size=(TIMES, len(values)))]
    return _percentiles(statistic(drawn, axis=1))


def _percentiles(values: NDArray[Any]) -> tuple[float, float]:
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def divide(top: NDArray[Any], bottom: NDArray[Any], empty: float = np.nan) -> NDArray[np.float64]:
    """top / bottom, and `empty` where the bottom is not above 0."""
    quotient: NDArray[np.float64] = np.divide(top, bottom, out=np.full(np.shape(top), float(empty)), where=bottom > 0)
    return quotient
