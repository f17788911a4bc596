"""Interleaving and arithmetic of speed, with fake runners and a fake clock: no time is read."""

import gc

import numpy as np
import pytest

from lissom.measure.speed import WARM, Times, race, speed, speedup
from tests.measure.fakes import Fake

TEXTS = [f"text {number}" for number in range(20)]


def ask(runner: Fake, texts: list[str]) -> object:
    return runner.predict(texts)


class Clock:
    """Stands still until a runner works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def runner(self, seconds_a_text: float) -> Fake:
        def work(texts: int) -> None:
            self.now += seconds_a_text * texts

        return Fake(on_call=work)


def test_speed_is_what_the_clock_says() -> None:
    clock = Clock()
    runners = {"slow": clock.runner(0.02), "fast": clock.runner(0.005)}

    times = race(runners, TEXTS, ask, rounds=4, singles=10, clock=clock)

    p50, p95, throughput = speed(times["slow"], seed=0)
    assert (p50.name, p95.name, throughput.name) == ("latency_ms_p50", "latency_ms_p95", "throughput")
    assert p50.value == pytest.approx(20)
    assert p95.value == pytest.approx(20)
    assert throughput.value == pytest.approx(50)
    assert throughput.low == pytest.approx(50)
    assert throughput.n == 4
    ratio = speedup(times["fast"], times["slow"], seed=0)
    assert ratio.value == pytest.approx(4)
    assert ratio.how.startswith("Median of the ratios of 4 interleaved rounds")


def test_every_round_asks_everybody_the_same_and_turns_the_order() -> None:
    log: list[tuple[str, int]] = []
    runners = {name: Fake(called=name, log=log) for name in "abc"}

    race(runners, TEXTS, ask, rounds=3, singles=2, clock=lambda: 0.0)

    assert log[:3] == [("a", 20), ("b", 20), ("c", 20)]  # warm-up
    one = [WARM, 20, 1, 1, 1]
    expected = [(name, count) for order in ("abc", "bca", "cab") for name in order for count in one]
    assert log[3:] == expected


def test_percentiles_are_taken_within_a_round_and_the_median_over_rounds() -> None:
    single = np.array([[0.001] * 19 + [0.101], [0.003] * 20, [0.002] * 20])
    times = Times(whole=np.array([1.0, 2.0, 4.0]), single=single, texts=8)

    p50, p95, throughput = speed(times, seed=0)

    assert p50.value == pytest.approx(2)
    assert p95.value == pytest.approx(3)  # of 6, 3 and 2 ms
    assert throughput.value == pytest.approx(4)
    assert throughput.low == pytest.approx(2)
    assert throughput.high == pytest.approx(8)


def test_noise_is_no_difference() -> None:
    single = np.ones((4, 1))
    reference = Times(whole=np.array([1.0, 1.1, 0.9, 1.0]), single=single, texts=1)
    noisy = Times(whole=np.array([1.1, 1.0, 1.0, 0.9]), single=single, texts=1)

    reading = speedup(noisy, reference, seed=0)

    assert reading.low < 1 < reading.high
    assert reading.how.startswith("No difference shown: the interval holds 1.")


def test_a_slow_spell_of_the_machine_does_not_change_the_ratio() -> None:
    """Both are three times slower in the second half; pairs within a round cancel it."""
    weather = np.array([1.0, 1.0, 3.0, 3.0])
    single = np.ones((4, 1))

    reading = speedup(
        Times(whole=weather, single=single, texts=1), Times(whole=2 * weather, single=single, texts=1), seed=0
    )

    assert (reading.value, reading.low, reading.high) == (2, 2, 2)


def test_the_collector_is_off_while_the_clock_runs_and_on_again_after() -> None:
    seen: list[bool] = []

    race({"a": Fake(on_call=lambda texts: seen.append(gc.isenabled()))}, TEXTS, ask, rounds=1, clock=lambda: 0.0)

    assert seen[0]
    assert not any(seen[1:])
    assert gc.isenabled()


def test_the_collector_is_on_again_after_a_failure() -> None:
    calls: list[int] = []

    def fail(texts: int) -> None:
        calls.append(texts)
        if len(calls) > 1:
            raise RuntimeError("out")

    with pytest.raises(RuntimeError, match="out"):
        race({"a": Fake(on_call=fail)}, TEXTS, ask, rounds=1)
    assert gc.isenabled()


def test_progress_is_reported_each_round() -> None:
    seen: list[tuple[str, float]] = []

    race({"a": Fake()}, TEXTS, ask, rounds=2, report=lambda what, fraction: seen.append((what, fraction)))

    assert seen == [("round 1 of 2, a", 0.0), ("round 2 of 2, a", 0.5)]
