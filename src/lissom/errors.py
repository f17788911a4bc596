"""Every failure that a user can meet: a stable code, where it happened, why, and what to do.

The first digit of a code is its group, and the group decides the exit status of the command line. A code never
changes its meaning; `docs/errors.md` lists them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_EXIT_BY_GROUP = {2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 7: 7, 8: 4, 9: 1}


class LissomError(Exception):
    """A failure that is explained in one line: what, where, why, what to do.

    code: three digits; the first is the group (2 usage, 3 recipe, 4 unsafe or broken file, 5 gate, 6 resources,
        7 missing or unsupported, 8 data, 9 numerics and parity).
    cause: what was found and what was expected, as a sentence without the final full stop.
    place: file, line, row, tensor or layer that the cause is about; may be empty.
    remedy: what to do now, as a sentence; may be empty.
    """

    def __init__(self, code: int, cause: str, *, place: str = "", remedy: str = "") -> None:
        if code // 100 not in _EXIT_BY_GROUP:
            raise ValueError(f"error code {code} is in no known group")
        self.code = f"LSM-{code}"
        self.cause = cause
        self.place = place
        self.remedy = remedy
        self.exit_code = _EXIT_BY_GROUP[code // 100]
        super().__init__(str(self))

    def __str__(self) -> str:
        where = f"{self.place}: " if self.place else ""
        then = f" {self.remedy}" if self.remedy else ""
        return f"{self.code} {where}{self.cause}.{then}"

    def as_dict(self) -> dict[str, str | int]:
        """The fields that `--json` prints."""
        return {
            "code": self.code,
            "place": self.place,
            "message": self.cause,
            "remedy": self.remedy,
            "exit": self.exit_code,
        }


class UnsupportedFamily(LissomError):
    """The model's architecture has no record in `anatomy/families.py`."""


class GateNotMet(LissomError):
    """A result was produced, measured, and is not good enough."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that helps with a misspelt `name`: the nearest known names, then the whole list when it is short."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    if close:
        return "Did you mean " + " or ".join(f'"{one}"' for one in close) + "?"
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"Known: {shown}." if names else ""
