"""Which linear maps a method of this family stores, and which of them a recipe leaves as they are."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated, TypeAlias

from pydantic import Field

from lissom.anatomy import Anatomy, Slot, stored_maps
from lissom.edits import Editor
from lissom.errors import LissomError, nearest
from lissom.nn import Int8Linear

Skip: TypeAlias = Annotated[
    tuple[str, ...],
    Field(description="maps that stay in floating point: paths as `inspect --sensitivity` names them, * for any part"),
]
_FACTORS = ("down", "up", "left", "right")


def unpacked_maps(editor: Editor, skip: Sequence[str] = ()) -> list[Slot]:
    """Every linear map of the blocks that is not packed yet, whole and in order; see `stored_maps` for those in parts.

    skip: patterns of maps to leave out; one behind factors of its inputs also has the name of the whole.
    Raises LissomError LSM-318 when one of them fits no map.
    """
    found = [part for slot in editor.anatomy().linears() for part in stored_maps(slot)]
    names = {slot.path: {slot.path, slot.path.removesuffix(".inner")} for slot in found}
    _refuse_unknown(skip, [name for slot in found for name in sorted(names[slot.path])])
    left = [slot for slot in found if not any(fnmatchcase(name, one) for one in skip for name in names[slot.path])]
    return [slot for slot in left if not isinstance(slot.module, Int8Linear)]


def check_skip(anatomy: Anatomy, skip: Sequence[str]) -> None:
    """Raise LissomError LSM-318 for a pattern that fits no map, and none of the factors that a map may become."""
    paths = [slot.path for slot in anatomy.linears()] if skip else []
    _refuse_unknown(skip, [*paths, *(f"{path}.{name}" for path in paths for name in _FACTORS)], shown=paths)


def _refuse_unknown(skip: Sequence[str], paths: Sequence[str], shown: Sequence[str] | None = None) -> None:
    for one in skip:
        if not any(fnmatchcase(path, one) for path in paths):
            names = paths if shown is None else shown
            if "." not in one:  # not a whole path: the last names are few, and each stands for that map of all blocks
                names = sorted({f"*.{path.rpartition('.')[2]}" for path in names})
            raise LissomError(318, f'no linear map of the blocks is called "{one}"', remedy=nearest(one, names))
