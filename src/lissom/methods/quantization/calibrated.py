"""What the methods that choose codes by the inputs of the maps have in common: block after block, on texts."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lissom.anatomy import Anatomy, Slot
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.base import Given, Need
from lissom.methods.quantization.groups import Groups, Stored
from lissom.methods.quantization.maps import unpacked_maps
from lissom.nn.grouped import restore
from lissom.stats.blocks import walk
from lissom.stats.hessian import Hessians


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibrated(Groups):
    """Store maps in groups, with codes chosen for H = 2 Σ xᵀx of their inputs, after the blocks before are rounded."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})

    samples: Annotated[
        int, Field(ge=1, le=100_000, description="texts, or blocks of running text, to calibrate on")
    ] = 128

    @abstractmethod
    def chosen(self, slots: list[Slot], hessians: dict[str, Tensor], anatomy: Anatomy) -> dict[str, Stored]:
        """Codes, scales and zero points for the maps of one block that texts reach, and whose weights may be scaled.

        hessians: path of each of `slots` -> H (in, in), not to be changed.
        """

    def apply(self, editor: Editor, given: Given) -> None:
        """Choose codes block by block, then pack."""
        maps, batches = unpacked_maps(editor, self.skip), list(given.calibration(self.samples))
        if not maps:
            return
        anatomy = editor.anatomy()
        stored: dict[str, Stored] = {}
        for step in walk(anatomy, batches):
            given.report(step.block.path, len(stored) / len(maps))
            own = [slot for slot in maps if slot.path.startswith(f"{step.block.path}.")]
            found = Hessians(own)
            try:
                step.run(lambda mask, found=found: setattr(found, "mask", mask))  # type: ignore[misc]
            finally:
                found.close()
            hessians = {slot.path: one for slot in own if (one := found.of(slot.path)) is not None}
            for path, one in hessians.items():
                if not bool(torch.isfinite(one).all()):
                    raise LissomError(901, "an input holds NaN or infinity on a calibration text", place=path)
            made = self.chosen([slot for slot in own if slot.path in hessians], hessians, anatomy)
            for slot in own:  # the blocks after it see what will be stored
                one_stored = made.get(slot.path) or self.rounded(slot.weight, slot.path)
                with torch.no_grad():
                    slot.weight.copy_(restore(*one_stored, group=self.group))
                stored[slot.path] = one_stored
        stored |= {slot.path: self.rounded(slot.weight, slot.path) for slot in maps if slot.path not in stored}
        self.pack(editor, stored)
