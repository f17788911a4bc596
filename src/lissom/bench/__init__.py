"""Rows of measurements on disk, and what people read from them: a table, a Pareto front, a report."""
