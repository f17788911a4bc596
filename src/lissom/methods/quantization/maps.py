"""Which linear maps a method of this family stores, and which of them a recipe leaves as they are."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, TypeAlias, cast

from pydantic import Field

from lissom.anatomy import Anatomy, Slot, stored_maps, token_table
from lissom.edits import Editor
from lissom.errors import LissomError, nearest
from lissom.methods.base import BEFORE_PACKED
from lissom.nn import Int8Linear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
    found = _stored(editor.anatomy())
    _refuse_unknown(skip, [name for slot in found for name in sorted(_names(slot))])
    return [slot for slot in _without(found, skip) if not isinstance(slot.module, Int8Linear)]


def check_unpacked(anatomy: Anatomy, skip: Sequence[str] = (), *, table: bool = False) -> None:
    """Raise LissomError LSM-713 when maps are left once `skip` is left out, and every one of them is packed already.

    table: whether the token table would be work enough.
    """
    found = _without(_stored(anatomy), skip)
    packed = [slot.module for slot in found if isinstance(slot.module, Int8Linear)]
    if not found or len(packed) < len(found):
        return
    if table and token_table(cast("PreTrainedModel", anatomy.model)) is not None:
        return
    bits = " and ".join(map(str, sorted({int(getattr(one, "bits", 8)) for one in packed})))
    cause = f"nothing is left to do: all {len(found)} linear maps are packed already, to {bits} bits"
    raise LissomError(713, cause, place=found[0].path, remedy=BEFORE_PACKED)


def _stored(anatomy: Anatomy) -> list[Slot]:
    return [part for slot in anatomy.linears() for part in stored_maps(slot)]


def _names(slot: Slot) -> set[str]:
    return {slot.path, slot.path.removesuffix(".inner")}


def _without(found: Sequence[Slot], skip: Sequence[str]) -> list[Slot]:
    return [slot for slot in found if not any(fnmatchcase(name, one) for one in skip for name in _names(slot))]


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
