"""Rows: everything that is measured of each subject on one data set, with its provenance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lissom.errors import LissomError, nearest
from lissom.measure.exits import exit_layers, leaving
from lissom.measure.flops import flops
from lissom.measure.loyalty import UNCOMPARED, closeness, loyalty
from lissom.measure.machine import machine, versions
from lissom.measure.quality import answer, ask_for, scores_of, texts_of
from lissom.measure.reading import METRICS, Reading, taken
from lissom.measure.scores import keep_reading, quality_reading
from lissom.measure.size import SPARSE, size
from lissom.measure.speed import race, speed, speedup

if TYPE_CHECKING:
    import datasets

    from lissom.data import Data, Task
    from lissom.measure.scores import Scores
    from lissom.runtime import Runner, Text

Report = Callable[[str, float], None]

COMPARED = ("keep", "loyalty", "speedup")  # groups of readings that need a reference


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured of one subject. data: name, split, digest of the data set, n texts."""

    subject: str
    runtime: str
    machine: dict[str, Any]
    versions: dict[str, str]
    seed: int
    data: dict[str, Any]
    readings: tuple[Reading, ...]

    def reading(self, name: str) -> Reading | None:
        """The reading of that name, or None."""
        return next((one for one in self.readings if one.name == name), None)

    def as_dict(self) -> dict[str, Any]:
        """The row as `measure --json` prints it: plain JSON values."""
        return dataclasses.asdict(self) | {"readings": [one.as_dict() for one in self.readings]}


def _silent(what: str, fraction: float) -> None:
    """Reports progress to nobody."""


def measure(
    subjects: Mapping[str, Runner],
    data: Data,
    *,
    split: str = "test",
    reference: str | None = None,
    metrics: Sequence[str] | None = None,
    seed: int = 0,
    rounds: int = 5,
    speed_texts: int = 256,
    report: Report = _silent,
) -> list[Row]:
    """One row a subject, in their order.

    reference: the subject that `keep`, loyalty and `speedup` compare with; without one they are left out.
    metrics: reading names; None takes all that the task has.  rounds, speed_texts: of the timed part; the texts are
        drawn from the split with `seed`, and memory is measured with the same ones.
    report: called with a short phrase and the fraction that is done.
    Raises LissomError LSM-215 for an unknown reference, LSM-216 for an unknown metric, LSM-217 for no rounds,
    LSM-854 for a split without rows.
    """
    if any(runner.sentence is not None for runner in subjects.values()):
        data = data.for_embedding()
    wanted = _wanted(metrics, subjects, reference, data.task.kind)
    if rounds < 1 or speed_texts < 1:
        raise LissomError(217, f"{rounds} rounds of {speed_texts} texts are asked for, at least 1 of 1 is needed")
    groups = {METRICS[name].group for name in wanted}
    rows = data.split(split)
    if not len(rows):
        raise LissomError(854, f"the split {split} has no rows", place=data.name)
    run = _Run(subjects, data.task, rows, reference=reference, seed=seed, report=report)
    if groups & {"quality", "keep", "loyalty"}:
        run.answers(judge=bool(groups & {"quality", "keep"}), compare="loyalty" in groups)
    if groups & {"size", "exits", "flops"}:
        run.sizes(work=bool(groups & {"exits", "flops"}))
    if groups & {"speed", "speedup"}:
        run.speed(rounds, speed_texts)
    if "memory" in groups:
        run.memory(speed_texts)
    report("measured", 1.0)
    about = {"name": data.name, "split": split, "digest": data.digest, "n": len(rows)}
    place, packages = machine(), versions()
    return [
        Row(
            subject=name,
            runtime=runner.name,
            machine=place,
            versions=packages,
            seed=seed,
            data=about,
            readings=_chosen(
                run.readings[name], wanted, explicit=metrics is not None, kind=data.task.kind, itself=name == reference
            ),
        )
        for name, runner in subjects.items()
    ]


class _Run:
    """One call of `measure`: what all its parts need, and the readings so far."""

    def __init__(
        self,
        subjects: Mapping[str, Runner],
        task: Task,
        rows: datasets.Dataset,
        *,
        reference: str | None,
        seed: int,
        report: Report,
    ) -> None:
        self.subjects, self.task, self.rows, self.texts = subjects, task, rows, texts_of(rows, task)
        self.reference, self.seed, self.report = reference, seed, report
        self.readings: dict[str, list[Reading]] = {name: [] for name in subjects}

    def answers(self, *, judge: bool, compare: bool) -> None:
        """From one pass of every subject over the split: quality and keep if `judge`, loyalty if `compare`.

        Where the split has no labels, quality and keep say so.
        """
        if judge and self.task.column not in self.rows.column_names:
            judge = False
            names = (self.task.metric,) if self.reference is None else (self.task.metric, "keep")
            for found in self.readings.values():
                found.extend(taken(name, None, "Not taken: this split has no labels.") for name in names)
            if not compare:
                return
        said = {}
        for number, (name, runner) in enumerate(self.subjects.items()):
            self.report(f"answers of {name}", 0.4 * number / len(self.subjects))
            said[name] = answer(runner, self.texts, self.task)
        scores = {name: scores_of(one, self.rows, self.task) for name, one in said.items() if judge}
        if self.task.metric == "cosine" and self.reference in scores:  # the reference is all that they are judged by
            scores = {name: [closeness(one, said[self.reference])] for name, one in said.items()}
        for name, found in self.readings.items():
            found.extend(quality_reading(one, self.seed) for one in scores.get(name, ()))
            if self.reference in scores:
                found.append(self._keep(name, scores[name][0], scores[self.reference][0]))
            if compare and self.reference is not None:
                found.extend(loyalty(said[name], said[self.reference], self.task, self.seed))

    def _keep(self, name: str, own: Scores, reference: Scores) -> Reading:
        """Quality divided by the reference's. Perplexity counts tokens: that of other tokens is no share of it."""
        if own.name == "perplexity":
            known = [self.subjects[one].tokenizer for one in (name, str(self.reference))]
            sizes = [one.get_vocab_size() for one in known if one is not None]
            if len(set(sizes)) > 1:
                how = f"Perplexity counts tokens, and the two read by {sizes[0]:,} and {sizes[1]:,} of them: no ratio."
                return taken("keep", None, how)
        return keep_reading(own, reference, self.seed)

    def sizes(self, *, work: bool) -> None:
        """Bytes and parameters; if `work`, executed layers and operations, for which texts that leave early do so."""
        for name, runner in self.subjects.items():
            self.readings[name] += size(runner)
            if work:
                counts = leaving(runner, self.texts)
                self.readings[name] += [exit_layers(runner, counts, self.seed), flops(runner, self.texts, counts)]

    def speed(self, rounds: int, count: int) -> None:
        """Latency, throughput and speedup of all subjects in one interleaved race."""
        times = race(
            self.subjects,
            self._sample(count),
            ask_for(self.task.kind),
            rounds=rounds,
            report=lambda what, fraction: self.report(what, 0.4 + 0.45 * fraction),
        )
        for name, found in self.readings.items():
            threads = _threads(self.subjects[name])
            found.extend(dataclasses.replace(one, how=one.how + threads) for one in speed(times[name], self.seed))
            if self.reference is not None:
                found.append(speedup(times[name], times[self.reference], self.seed))

    def memory(self, count: int) -> None:
        """Peak memory of every subject, one process after the other."""
        from lissom.measure.memory import peak_memory  # also a program, which must not be imported before it runs

        for number, (name, runner) in enumerate(self.subjects.items()):
            self.report(f"peak memory of {name}", 0.85 + 0.15 * number / len(self.subjects))
            self.readings[name].append(peak_memory(runner, self._sample(count), self.task.kind))

    def _sample(self, count: int) -> list[Text]:
        """`count` texts in a random order, the same for the same seed."""
        order = np.random.default_rng(self.seed).permutation(len(self.texts))[:count]
        return [self.texts[int(number)] for number in order]


def _threads(runner: Runner) -> str:
    """How many CPU threads a pass of the runner takes, as a sentence; empty where the engine does not tell."""
    count = getattr(runner, "threads", None)
    if count is None and hasattr(runner, "model"):
        import torch

        count = torch.get_num_threads()
    return "" if count is None else f" CPU threads: {count}."


def _wanted(
    metrics: Sequence[str] | None, subjects: Mapping[str, Runner], reference: str | None, kind: str
) -> list[str]:
    """The reading names to take: those that are named, else those that a task of this kind has."""
    if reference is not None and reference not in subjects:
        raise LissomError(
            215, f'the reference "{reference}" is not among the subjects', remedy=nearest(reference, subjects)
        )
    for name in metrics or ():
        if name not in METRICS:
            raise LissomError(216, f'there is no metric "{name}"', remedy=nearest(name, METRICS))
    left_out = set() if reference is not None else set(COMPARED)
    if metrics is None and kind in UNCOMPARED:
        left_out.add("loyalty")
    return [name for name in metrics or METRICS if METRICS[name].group not in left_out]


def _idle(reading: Reading) -> bool:
    """Whether nobody who did not ask for it misses it: zeros of a model that is not sparse, layers without exits."""
    if reading.name == "exit_layers":
        return reading.value is None
    return reading.name == "sparsity" and (reading.value is None or reading.value < SPARSE)


def _chosen(found: list[Reading], wanted: list[str], *, explicit: bool, kind: str, itself: bool) -> tuple[Reading, ...]:
    """The readings that were asked for; one that the task does not have says so, if it was named.

    itself: the subject is the reference; what compares with the reference is 1 by definition.
    """
    by_name = {one.name: one for one in found if one.name in wanted and (explicit or not _idle(one))}
    for name in wanted if explicit else ():
        by_name.setdefault(name, taken(name, None, f"Not taken: no measure of {kind.replace('_', ' ')}."))
    if itself:
        for name, one in by_name.items():
            if METRICS[name].group in COMPARED and one.value is not None:
                by_name[name] = taken(name, 1.0, "1 by definition: this subject is the reference.", low=1.0, high=1.0)
    return tuple(by_name.values())
