"""Rows as `lissom measure` writes them, with numbers that are easy to check."""

from __future__ import annotations

from typing import Any

READINGS = {  # name: (unit, better, reference (value, low, high), result (value, low, high))
    "accuracy": ("", "higher", (0.921, 0.902, 0.938), (0.913, 0.893, 0.931)),
    "keep": ("", "higher", (1.0, None, None), (0.9913, 0.981, 1.002)),
    "label_loyalty": ("", "higher", (1.0, None, None), (0.962, 0.948, 0.974)),
    "size_mb": ("MB", "lower", (90.9, None, None), (18.94, None, None)),
    "parameters": ("numbers", "lower", (22713216, None, None), (17389824, None, None)),
    "flops": ("FLOP", "lower", (1356000000, None, None), (678000000, None, None)),
    "latency_ms_p50": ("ms", "lower", (12.31, 12.1, 12.6), (1.82, 1.79, 1.86)),
    "throughput": ("texts/s", "higher", (185.2, 181, 190), (1129.4, 1102, 1160)),
    "speedup": ("x", "higher", (1.0, None, None), (6.1, 5.9, 6.3)),
}


def row(subject: str = "original", *, which: int = 0, runtime: str = "torch", **changes: Any) -> dict[str, Any]:
    """A whole row: `which` 0 has the numbers of the reference, 1 those of the result."""
    readings = [
        reading(name, *values[which], unit=unit, better=better) for name, (unit, better, *values) in READINGS.items()
    ]
    found = {
        "subject": subject,
        "runtime": runtime,
        "machine": {"cpu": "Xeon", "cores": 2},
        "versions": {"torch": "2.13.0", "lissom": "0.1.0"},
        "seed": 0,
        "data": {"name": "sst2", "split": "test", "rows": 872},
        "readings": readings,
    }
    return found | changes


def reading(
    name: str,
    value: float | None,
    low: float | None = None,
    high: float | None = None,
    *,
    unit: str = "",
    better: str = "higher",
    how: str = "",
) -> dict[str, Any]:
    """One reading; a `how` is made up from the name unless given."""
    how = how or f"how {name} was taken"
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "low": low,
        "high": high,
        "n": 872,
        "better": better,
        "how": how,
    }


def pair() -> list[dict[str, Any]]:
    """The reference and the result."""
    return [row(), row("result", which=1, runtime="onnxruntime")]
