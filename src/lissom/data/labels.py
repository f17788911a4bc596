"""From the labels as they stand in a file to indices in the order of the model's outputs, or to numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from lissom.data.read import is_missing, shown
from lissom.errors import LissomError

Value = int | float | str

MISSING = -1  # how GLUE and SNLI mark a row without a label
_MISSING_SHARE = 0.05  # above it, -1 is more likely a class of its own
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?")


def plain(value: object) -> Value | None:
    """A cell as int, float or text, alike for every file format; None when it holds no label.

    Raises ValueError with the cause, as a phrase, when it can be no label.
    """
    if is_missing(value):
        return None
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, str):
        value = value.strip()
        if _INTEGER.fullmatch(value):
            return int(value)
        return float(value) if _NUMBER.fullmatch(value) and math.isfinite(float(value)) else value
    if isinstance(value, float):
        if math.isinf(value):
            raise ValueError("is infinite")
        return value
    if isinstance(value, int):
        return value
    raise ValueError(f"is {shown(value)}: a nested value, not one label")


def is_generic(names: Sequence[str]) -> bool:
    """Whether a model's names are the placeholders LABEL_0, LABEL_1, ... of transformers."""
    return all(re.fullmatch(r"LABEL_\d+", name) for name in names)


def is_number(values: Iterable[Value], declared: Sequence[str] | None, model_labels: Sequence[str] | None) -> bool:
    """Whether labels are quantities to predict and no classes: some are floats and nobody has named classes."""
    values = set(values)
    if any(isinstance(value, str) for value in values) or declared:
        return False
    if model_labels is not None:
        return len(model_labels) == 1
    return any(isinstance(value, float) for value in values)


def index_labels(
    values: Iterable[Value], rows: int, declared: Sequence[str] | None, model_labels: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[Value, int]]:
    """The names in the order of the outputs, and the index of every value that has one.

    values: all that occur, without -1 that means missing.  rows: how many labelled ones there are.
    declared: names from `meta.json` or the features; integers then are indices into them.
    Raises LissomError 813 when the values are no set of classes, 820 when they do not fit the model's.
    """
    values = set(values)
    indices = all(not isinstance(value, str) and value == int(value) for value in values)
    names = tuple(declared or (model_labels if model_labels and (indices or not is_generic(model_labels)) else ()))
    if not names:
        ordered = _ordered(values)
        if len(ordered) > 50 and len(ordered) > rows / 2:
            cause = f"{len(ordered)} different labels in {rows} rows are no set of classes"
            remedy = 'Name the label column: columns={"label": ...}, or --column label=NAME.'
            raise LissomError(813, cause, remedy=remedy)
        names = tuple(str(value) for value in ordered)
        index = {value: at for at, value in enumerate(ordered)}
    else:
        index = _among(values, names)
    if model_labels is None or names == tuple(model_labels):
        return names, index
    order = _order(names, model_labels)
    final = names if is_generic(model_labels) else tuple(model_labels)
    return final, {value: order[at] for value, at in index.items()}


def _among(values: set[Value], names: Sequence[str]) -> dict[Value, int]:
    """The index of each value that is a name, or a number that counts the names from 0.

    Where names are digits themselves ("1" to "5"), numbers are taken in the sense that fits more of them.
    """
    by_name = {name.casefold(): at for at, name in enumerate(names)}
    named: dict[Value, int] = {
        value: by_name[str(value).casefold()] for value in values if str(value).casefold() in by_name
    }
    counted: dict[Value, int] = {
        value: int(value)
        for value in values
        if not isinstance(value, str) and value == int(value) and 0 <= value < len(names)
    }
    numbers = sum(not isinstance(value, str) for value in named)
    return named if numbers > len(counted) else named | counted


def _ordered(values: set[Value]) -> list[Value]:
    """Distinct labels, numbers by size, anything else as text."""
    numbers = [value for value in values if not isinstance(value, str)]
    return sorted(numbers) if len(numbers) == len(values) else sorted(values, key=str)


def _order(names: Sequence[str], model_labels: Sequence[str]) -> list[int]:
    """For each name, its index among the model's labels."""
    both = f"The data has {', '.join(names)}; the model has {', '.join(model_labels)}."
    if len(names) != len(model_labels):
        cause = f"the data has {len(names)} labels, the model has {len(model_labels)}"
        raise LissomError(820, cause, remedy=both)
    if is_generic(model_labels):
        return list(range(len(names)))
    ours, theirs = ([re.sub(r"[\W_]", "", name.casefold()) for name in side] for side in (names, model_labels))
    if sorted(ours) != sorted(theirs) or len(set(ours)) < len(ours):
        cause = "the labels of the data are not those of the model"
        raise LissomError(820, cause, remedy=f"{both} Give the data's label_names in meta.json the model's names.")
    return [theirs.index(name) for name in ours]


def too_many_missing(missing: int, rows: int) -> bool:
    """Whether -1 is so frequent among integer labels without names that it may be a class."""
    return missing > _MISSING_SHARE * rows
