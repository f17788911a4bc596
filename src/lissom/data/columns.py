"""Which column of a data set is what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lissom.errors import LissomError, nearest

# Normalised names that belong together, most specific first, each with the spellings that are found by themselves.
# The spellings in one row of a group go together: `premise` pairs with `hypothesis`, never with `sentence2`.
_GROUPS: tuple[tuple[tuple[str, ...], tuple[tuple[str, ...], ...]], ...] = (
    (
        ("tokens", "tags"),
        tuple((tokens, tags) for tokens in ("tokens", "words") for tags in ("ner_tags", "tags", "pos_tags")),
    ),
    (("question", "context", "answers"), (("question", "context", "answers"),)),
    (
        ("text", "text_b"),
        (
            ("text_a", "text_b"),
            ("text", "text_b"),
            ("sentence1", "sentence2"),
            ("premise", "hypothesis"),
            ("question1", "question2"),
            ("question", "sentence"),
            ("question", "passage"),
        ),
    ),
    (
        ("text", "target"),
        (
            ("text", "target"),
            ("source", "target"),
            ("src", "tgt"),
            ("document", "summary"),
            ("article", "highlights"),
            ("dialogue", "summary"),
        ),
    ),
    (("text",), (("text",), ("sentence",), ("content",))),
)
_LABEL = ("label", "labels")
NORMALISED = ("text", "text_b", "target", "label", "tokens", "tags", "question", "context", "answers")


def map_columns(found: Sequence[str], asked: Mapping[str, str] | None, place: str) -> dict[str, str]:
    """Normalised name -> name in the source, for all columns that are used.

    found: the columns that exist.  asked: what the user says; it wins over the usual names.
    Raises LissomError 818 for a column or a normalised name that is not there, 819 when no text is found.
    """
    asked = dict(asked or {})
    for role, name in asked.items():
        if role not in NORMALISED:
            raise LissomError(818, f'"{role}" is no normalised column', remedy=nearest(role, NORMALISED))
        if name not in found:
            raise LissomError(818, f'there is no column "{name}"', place=place, remedy=nearest(name, found))
    free = {name.strip().casefold(): name for name in reversed(found) if name not in asked.values()}
    mapping = _content(free, asked)
    if not mapping:
        cause = f"no text column among: {', '.join(found)}"
        remedy = 'Name it: columns={"text": ...}, or --column text=NAME.'
        raise LissomError(819, cause, place=place, remedy=remedy)
    if "text" in mapping and "target" not in mapping:
        named = asked.get("label") or next((free[usual] for usual in _LABEL if usual in free), None)
        if named:
            mapping["label"] = named
    stray = [role for role in asked if role not in mapping]
    if stray:
        cause = f'"{stray[0]}" does not go with {", ".join(mapping)}'
        raise LissomError(818, cause, place=place, remedy="Give the columns of one task.")
    return mapping


def _content(free: Mapping[str, str], asked: Mapping[str, str]) -> dict[str, str]:
    """The columns that hold what the model reads."""
    if "text" in asked:  # a text of the user's own stands alone unless a second one is named
        return {role: asked[role] for role in ("text", "text_b", "target") if role in asked}
    labelled = "label" in asked or any(usual in free for usual in _LABEL)
    for roles, spellings in _GROUPS:
        if "target" in roles and labelled:  # then a column of that name is something else
            continue
        for spelling in spellings:
            names = [asked.get(role) or free.get(usual) for role, usual in zip(roles, spelling, strict=True)]
            if all(names):
                return {role: name for role, name in zip(roles, names, strict=True) if name}
    return {}
