"""Spans from BIO tags, as conlleval reads them (Tjong Kim Sang and Buchholz 2000)."""

from __future__ import annotations

from collections.abc import Sequence

Span = tuple[int, int, str]


def spans(tags: Sequence[str]) -> set[Span]:
    """(first word, word after the last, type) of each span.

    A span begins at B-, and also at an I- that follows O or another type; tags without B- or I- are outside.
    """
    found: set[Span] = set()
    start, kind = 0, ""
    for at, tag in enumerate([*tags, "O"]):
        inside = tag[2:] if tag[:2] in ("B-", "I-") else ""
        if kind and (tag.startswith("B-") or inside != kind):
            found.add((start, at, kind))
            kind = ""
        if inside and not kind:
            start, kind = at, inside
    return found


def span_counts(gold: Sequence[int], said: Sequence[int], labels: Sequence[str]) -> tuple[int, int, int]:
    """Spans right, said and there in one sentence. gold, said: tag numbers that point into `labels`."""
    there, found = spans([labels[tag] for tag in gold]), spans([labels[tag] for tag in said])
    return len(there & found), len(found), len(there)
