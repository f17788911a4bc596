"""A model's record as JSON: in `lissom.json`, and in `config.json` where a loader needs it."""

from __future__ import annotations

from typing import Any

from lissom.edits import Record, edit_from_json
from lissom.errors import LissomError
from lissom.store.config import check_bounds, names_code


def record_to_json(record: Record) -> dict[str, Any]:
    """A record as plain JSON values."""
    return {"restore": record.restore, "edits": [edit.to_json() for edit in record.edits]}


def record_from_json(value: Any) -> Record:
    """A record from what `record_to_json` gave. Reads untrusted files.

    Raises LissomError LSM-452 for an edit that is none, LSM-431 to 433 for a restored config entry that is refused.
    """
    restore, edits = value.get("restore", {}), value.get("edits", [])
    if not isinstance(restore, dict) or not isinstance(edits, list) or len(edits) > 1000:
        raise LissomError(452, "restore is not a map or edits is not a list of at most 1000")
    code = [key for key in restore if names_code(key) or isinstance(restore[key], str | dict)]
    if code:
        raise LissomError(431, f'the record would set the config entry "{code[0][:80]}"', place="lissom.json")
    check_bounds(restore, "lissom.json")
    return Record(edits=tuple(edit_from_json(edit) for edit in edits), restore=restore)
