"""How structure changes: edits as plain data, and the editor that applies them."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lissom.edits.binary import LevelAttention, PackBinary
from lissom.edits.cache import PackCache
from lissom.edits.depth import KeepLayers, Parts, ShareLayers, check_depth, chosen, how_many, shared_paths
from lissom.edits.edit import EDIT_MISFIT, Edit, Record
from lissom.edits.editor import Editor
from lissom.edits.exits import AddExits, SetExits, exit_stack, exits_of, rule_misfit
from lissom.edits.grouped import PackGroups
from lissom.edits.hidden import KeepHidden
from lissom.edits.input_groups import PackInputGroups
from lissom.edits.integer import PackInteger
from lissom.edits.kronecker import Kronecker
from lissom.edits.linear import Factorize, MultiplyOut, Pack, PackBits
from lissom.edits.lora import AddLora
from lissom.edits.mixed import PackRows
from lissom.edits.norms import DropMeans, MapAfterNorm
from lissom.edits.palette import Palette
from lissom.edits.scaled import ScaleInputs
from lissom.edits.split import PackSplit
from lissom.edits.stacks import ShareStacks, tied_paths
from lissom.edits.table import FactorizeTable
from lissom.edits.tensor_train import TensorTrain
from lissom.edits.untie import Untie
from lissom.edits.vocabulary import KeepVocab
from lissom.edits.width import KeepHeads, KeepNeurons
from lissom.errors import LissomError, nearest

EDITS: dict[str, type[Edit]] = {
    edit.__name__: edit
    for edit in (
        *(KeepLayers, ShareLayers, ShareStacks, KeepHeads, KeepNeurons, KeepHidden, KeepVocab),
        *(DropMeans, MapAfterNorm, Untie),
        *(Factorize, FactorizeTable, TensorTrain, Kronecker, MultiplyOut, ScaleInputs, AddLora),
        *(Pack, PackBits, PackBinary, PackRows, PackGroups, PackSplit, PackInputGroups, Palette),
        *(LevelAttention, PackInteger, PackCache),
        *(AddExits, SetExits),
    )
}
"""Name in a stored record -> class. All kinds of structural change there are."""


def edit_from_json(value: Any) -> Edit:
    """An edit from what `Edit.to_json` gave. Reads untrusted files: unknown kinds, fields and types are refused.

    Raises LissomError LSM-452.
    """
    kind = value.get("edit") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in EDITS:
        raise LissomError(452, f"unknown kind of edit {str(kind)[:40]!r}", remedy=nearest(str(kind), EDITS))
    fields = {key: one for key, one in value.items() if key != "edit"}
    adapter = TypeAdapter(EDITS[kind])
    try:
        return adapter.validate_json(json.dumps(fields), strict=True)
    except RecursionError:
        raise LissomError(452, "the values are nested too deeply", place=f"edits.{kind}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(one)[:40] for one in ("edits", kind, *first["loc"]))
        raise LissomError(452, f"{first['msg']}", place=place) from None


__all__ = [
    "EDITS",
    "EDIT_MISFIT",
    "AddExits",
    "AddLora",
    "DropMeans",
    "Edit",
    "Editor",
    "Factorize",
    "FactorizeTable",
    "KeepHeads",
    "KeepHidden",
    "KeepLayers",
    "KeepNeurons",
    "KeepVocab",
    "Kronecker",
    "LevelAttention",
    "MapAfterNorm",
    "MultiplyOut",
    "Pack",
    "PackBinary",
    "PackBits",
    "PackCache",
    "PackGroups",
    "PackInputGroups",
    "PackInteger",
    "PackRows",
    "PackSplit",
    "Palette",
    "Parts",
    "Record",
    "ScaleInputs",
    "SetExits",
    "ShareLayers",
    "ShareStacks",
    "TensorTrain",
    "Untie",
    "check_depth",
    "chosen",
    "edit_from_json",
    "exit_stack",
    "exits_of",
    "how_many",
    "rule_misfit",
    "shared_paths",
    "tied_paths",
]
