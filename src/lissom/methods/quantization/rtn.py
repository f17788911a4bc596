"""Store weights in few bits by rounding each to the nearest value of its group's grid.

    scale = (max(w, 0) - min(w, 0)) / (2^bits - 1)    zero = round(-min(w, 0) / scale)    code = round(w / scale + zero)

No data is needed. It is what the other methods of this kind are compared with.
Source: Nagel et al. 2021, "A white paper on neural network quantization", section 2.2.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from lissom.edits import Editor
from lissom.methods.base import Given
from lissom.methods.quantization.groups import Groups


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rtn(Groups):
    """Round to nearest."""

    name: ClassVar[str] = "rtn"
    source: ClassVar[str] = "Nagel et al. 2021, section 2.2"

    def apply(self, editor: Editor, given: Given) -> None:
        """Round and pack every map of the blocks."""
        self.preview(editor, given)
