"""Latency and throughput of several runners, interleaved, so that a noisy machine cannot favour one.

In each round every runner answers the same texts, the order turning from round to round. What is reported is the median
over the rounds; a ratio is taken within each round first. Intervals are bootstrapped over the rounds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import time
from typing import TYPE_CHECKING

import numpy as np

from lissom.measure.reading import Reading, taken
from lissom.measure.scores import interval

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from lissom.runtime import Runner, Text

    Ask = Callable[[Runner, Sequence[Text]], object]

SINGLES = 32  # texts answered one at a time in a round
WARM = 8  # texts answered before a runner is timed, in every round: another engine has used the caches


@dataclasses.dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds. whole: all texts in batches, (rounds,).  single: one text alone, (rounds, singles)."""

    whole: NDArray[np.float64]
    single: NDArray[np.float64]
    texts: int


def race(
    runners: Mapping[str, Runner],
    texts: Sequence[Text],
    ask: Ask,
    *,
    rounds: int = 5,
    singles: int = SINGLES,
    clock: Callable[[], float] = time.perf_counter,
    report: Callable[[str, float], None] = lambda what, fraction: None,
) -> dict[str, Times]:
    """Seconds of every runner in every round, after one untimed round.

    texts: what every runner answers in a round; the first `singles` of them also one at a time.
    ask: how a runner answers texts.  clock: seconds.  report: called with a phrase and the fraction done.
    """
    names = list(runners)
    alone = texts[:singles]
    whole: dict[str, list[float]] = {name: [] for name in names}
    single: dict[str, list[list[float]]] = {name: [] for name in names}
    for runner in runners.values():
        ask(runner, texts)
    with _no_collector():
        for number in range(rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                report(f"round {number + 1} of {rounds}, {name}", number / rounds)
                runner = runners[name]
                ask(runner, texts[:WARM])
                whole[name].append(_seconds(ask, runner, texts, clock))
                ask(runner, texts[:1])
                single[name].append([_seconds(ask, runner, [text], clock) for text in alone])
    return {name: Times(whole=np.array(whole[name]), single=np.array(single[name]), texts=len(texts)) for name in names}


def speed(times: Times, seed: int) -> list[Reading]:
    """`latency_ms_p50`, `latency_ms_p95` and `throughput` of one runner."""
    _rounds, singles = times.single.shape
    readings = []
    for name, share in (("latency_ms_p50", 50), ("latency_ms_p95", 95)):
        values = np.percentile(times.single * 1000, share, axis=1)
        how = f"Batch of 1, tokenization included; percentile {share} of {singles} texts in each round. "
        readings.append(_median(name, values, how, seed))
    how = f"{times.texts} texts, tokenization included, sorted by length and batched by tokens. "
    readings.append(_median("throughput", times.texts / times.whole, how, seed))
    return readings


def speedup(times: Times, reference: Times, seed: int) -> Reading:
    """Throughput divided by the reference's, round by round."""
    ratios = reference.whole / times.whole
    low, high = interval(ratios, np.median, seed)
    how = f"Median of the ratios of {len(ratios)} interleaved rounds; interval: bootstrap of the rounds."
    if low <= 1 <= high:
        how = f"No difference shown: the interval holds 1. {how}"
    return taken("speedup", float(np.median(ratios)), how, n=len(ratios), low=low, high=high)


def _median(name: str, values: NDArray[np.float64], how: str, seed: int) -> Reading:
    low, high = interval(values, np.median, seed)
    how += (
        f"Median of {len(values)} rounds interleaved over all subjects, after a warm-up; interval: bootstrap of rounds."
    )
    return taken(name, float(np.median(values)), how, n=len(values), low=low, high=high)


def _seconds(ask: Ask, runner: Runner, texts: Sequence[Text], clock: Callable[[], float]) -> float:
    start = clock()
    ask(runner, texts)
    return clock() - start


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    """The garbage collector would stop one runner for what another left behind."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
