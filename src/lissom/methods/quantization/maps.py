"""Which linear maps a method of this family stores."""

from __future__ import annotations

from lissom.anatomy import Slot
from lissom.edits import Editor
from lissom.nn import Int8Linear, LowRankLinear


def unpacked_maps(editor: Editor) -> list[Slot]:
    """Every linear map of the blocks that is not packed yet, whole and in order; of one of low rank its two factors."""
    found = []
    for slot in editor.anatomy().linears():
        thin = isinstance(slot.module, LowRankLinear)
        paths = [f"{slot.path}.{name}" for name in ("down", "up")] if thin else [slot.path]
        found += [Slot(editor.model, path) for path in paths]
    return [slot for slot in found if not isinstance(slot.module, Int8Linear)]
