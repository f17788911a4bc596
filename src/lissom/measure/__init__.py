"""Measuring runners: one file a quantity, every value with its interval and how it was taken.

rows = measure({"original": runner, "small": other}, data, reference="original")
"""

from lissom.measure.reading import METRICS, Metric, Reading
from lissom.measure.row import Row, measure

__all__ = ["METRICS", "Metric", "Reading", "Row", "measure"]
