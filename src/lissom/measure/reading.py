"""One measured value, and the table of everything that can be measured."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

Better = Literal["higher", "lower", "none"]
Group = Literal["quality", "keep", "loyalty", "size", "exits", "flops", "speed", "speedup", "memory"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """What a reading name means. group: the readings that one piece of work gives together."""

    unit: str
    better: Better
    group: Group
    what: str


METRICS: dict[str, Metric] = {
    "accuracy": Metric(unit="", better="higher", group="quality", what="share of texts (of words, for tagging) right"),
    "f1": Metric(
        unit="",
        better="higher",
        group="quality",
        what="F1: of label 1 for two labels, macro for more, of whole spans for tagging, of words for answers",
    ),
    "mcc": Metric(unit="", better="higher", group="quality", what="Matthews correlation"),
    "pearson": Metric(unit="", better="higher", group="quality", what="Pearson correlation"),
    "spearman": Metric(unit="", better="higher", group="quality", what="Spearman rank correlation"),
    "perplexity": Metric(unit="", better="lower", group="quality", what="exp of the mean loss of the next token"),
    "keep": Metric(unit="x", better="higher", group="keep", what="quality divided by the reference's"),
    "label_loyalty": Metric(
        unit="", better="higher", group="loyalty", what="share of texts with the label that the reference gives"
    ),
    "probability_loyalty": Metric(
        unit="",
        better="higher",
        group="loyalty",
        what="1 - mean base-2 Jensen-Shannon distance to the reference's probabilities",
    ),
    "cosine": Metric(
        unit="", better="higher", group="loyalty", what="mean cosine of the embeddings of texts with the reference's"
    ),
    "size_mb": Metric(unit="MB", better="lower", group="size", what="bytes of the weight files / 1,000,000"),
    "parameters": Metric(unit="numbers", better="lower", group="size", what="stored numbers, shared ones once"),
    "sparsity": Metric(
        unit="", better="none", group="size", what="share of zeros among the weights of the linear maps in the blocks"
    ),
    "exit_layers": Metric(
        unit="layers", better="lower", group="exits", what="mean number of layers that are executed for a text"
    ),
    "flops": Metric(unit="FLOP", better="lower", group="flops", what="multiply and add operations for one text"),
    "latency_ms_p50": Metric(unit="ms", better="lower", group="speed", what="median time for one text alone"),
    "latency_ms_p95": Metric(unit="ms", better="lower", group="speed", what="95th percentile for one text alone"),
    "throughput": Metric(unit="texts/s", better="higher", group="speed", what="texts a second in batches"),
    "speedup": Metric(unit="x", better="higher", group="speedup", what="throughput divided by the reference's"),
    "peak_memory_mb": Metric(unit="MB", better="lower", group="memory", what="peak resident memory of a process"),
}
"""Reading name -> what it is. The order is the order of readings in a row."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """One measured value with its 95 % interval.

    value: None when it could not be taken; then `how` says why.  low, high: the interval, both None without one.
    n: how many texts, rounds or runs it rests on.  how: one or two sentences, enough to take it again.
    """

    name: str
    value: float | None
    unit: str
    low: float | None = None
    high: float | None = None
    n: int = 0
    better: Better
    how: str

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.name} n/a ({self.how})"
        interval = "" if self.low is None else f" ({number(self.low)} to {number(self.high)})"
        return f"{self.name} {number(self.value)}{' ' + self.unit if self.unit else ''}{interval}"

    def as_dict(self) -> dict[str, Any]:
        """The fields as `measure --json` prints them."""
        return dataclasses.asdict(self)


def taken(
    name: str, value: float | None, how: str, *, n: int = 0, low: float | None = None, high: float | None = None
) -> Reading:
    """A reading with unit and direction from METRICS. The interval is widened to hold the value if need be."""
    metric = METRICS[name]
    if value is not None and low is not None and high is not None:
        low, high = min(low, value), max(high, value)
    return Reading(name=name, value=value, unit=metric.unit, low=low, high=high, n=n, better=metric.better, how=how)


def number(value: float | None) -> str:
    """Four significant digits, whole numbers whole, thousands apart: `0.9132`, `17,389,824`, `n/a`."""
    if value is None:
        return "n/a"
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
