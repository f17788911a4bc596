"""What the methods that choose codes by the inputs of the maps have in common: block after block, on texts."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lissom.anatomy import Anatomy, Slot
from lissom.edits import Editor
from lissom.methods.base import Given, Need
from lissom.methods.quantization.groups import Groups, Stored
from lissom.methods.quantization.maps import unpacked_maps
from lissom.nn.grouped import restore
from lissom.stats.batches import cut
from lissom.stats.blocks import Step, walk


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibrated(Groups):
    """Store maps in groups, with codes chosen on texts for one block after the other, once those before are rounded."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    targets: ClassVar[bool] = False  # whether `chosen` looks at the cases of a step

    samples: Annotated[
        int, Field(ge=1, le=100_000, description="texts, or blocks of running text, to calibrate on")
    ] = 128

    @property
    def rows(self) -> int:
        """Texts that run at once."""
        return 8

    @abstractmethod
    def chosen(self, step: Step, slots: list[Slot], anatomy: Anatomy) -> dict[str, Stored]:
        """Codes, scales and zero points for the maps of one block, which may be scaled; maps left out are rounded."""

    def apply(self, editor: Editor, given: Given) -> None:
        """Choose codes block by block, then pack."""
        maps, batches = unpacked_maps(editor, self.skip), list(given.calibration(editor.model, self.samples))
        if maps:
            self.pack(editor, self._all(editor.anatomy(), maps, list(cut(batches, self.rows)), given))

    def _all(
        self, anatomy: Anatomy, maps: list[Slot], batches: list[dict[str, Tensor]], given: Given
    ) -> Iterator[tuple[str, Stored]]:
        done: set[str] = set()
        for step in walk(anatomy, batches, targets=self.targets):
            given.report(step.block.path, len(done) / len(maps))
            own = [slot for slot in maps if slot.path.startswith(f"{step.block.path}.")]
            made = self.chosen(step, own, anatomy)
            for slot in own:  # the blocks after it see what will be stored
                one = made.get(slot.path) or self.rounded(slot.weight, slot.path)
                with torch.no_grad():
                    slot.weight.copy_(restore(*one, group=self.group))
                done.add(slot.path)
                yield slot.path, one
        for slot in maps:
            if slot.path not in done:
                yield slot.path, self.rounded(slot.weight, slot.path)
