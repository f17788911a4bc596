"""Store linear maps as int8 with inputs at fixed scales, of which those from the residual stream have one a group.

In BERT a few channels of the residual stream are far larger than the others. The columns of a map that reads it are
sorted by the largest magnitude that enters them on texts, and cut into groups of the same size, each with a scale and a
zero point: outlying channels share one and cost the others nothing. Other maps are as by `int8: {mode: static}`.
Source: Bondarenko et al. 2021, "Understanding and overcoming the challenges of efficient transformer quantization",
section 4. Differs: groups are for the inputs of maps only, because only those are rounded here (the paper: also for
what feed-forward layers give, and its sum with the residual), but for queries, keys and values as well; channels are
sorted by magnitude, not by range, because every grid holds zero.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lissom import edits
from lissom.anatomy import Anatomy, Slot
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Need, Stage
from lissom.methods.quantization.int8 import LEAST, Int8
from lissom.methods.quantization.maps import check_unpacked, unpacked_maps
from lissom.nn.int8 import quantize_rows
from lissom.nn.low_bit import pack_codes
from lissom.stats.finite import finite_weight
from lissom.stats.folding import stream_readers
from lissom.stats.ranges import Calibrator, Histogram, column_histograms, find_range, largest_inputs, scale_and_zero


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peg(Method):
    """Pack every linear map in the blocks, and the token table, to int8 with fixed input scales, some in groups."""

    name: ClassVar[str] = "peg"
    stage: ClassVar[Stage] = Stage.BITS
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    speed: ClassVar[str] = (
        "in torch maps with groups only save space; exported, they are several small products of whole numbers, "
        "slower than the one of int8: {mode: static}"
    )
    source: ClassVar[str] = "Bondarenko et al. 2021, section 4"

    groups: Annotated[
        int, Field(ge=1, le=256, description="how many scales the inputs from the residual stream have")
    ] = 6
    calibrator: Annotated[Calibrator, Field(description="how much of the range that texts show is covered")] = (
        "percentile"
    )
    samples: Annotated[int, Field(ge=LEAST, le=100_000, description="texts that are looked at")] = 128
    embeddings: Annotated[bool, Field(description="also the token table, as int8")] = True

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-713 when all that it would store is packed already, LSM-317 when there are no texts."""
        check_unpacked(anatomy, table=self.embeddings)
        self._rest().check(anatomy, given)

    def packs_all(self) -> bool:
        """Always."""
        return True

    def apply(self, editor: Editor, given: Given) -> None:
        """Find groups and ranges, pack the maps that read the residual stream, then the others."""
        slots = self._readers(editor)
        batches = self._rest()._batches(editor, given)
        found: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        parts = []
        for slot, top in zip(slots, largest_inputs(editor.model, slots, batches), strict=True):
            if top is None:
                remedy = "Give texts of the kind that the model is for."
                raise LissomError(829, "no calibration text reaches this map", place=slot.path, remedy=remedy)
            parts.append(group_columns(top, self.groups))
        seen = column_histograms(editor.model, slots, parts, self.groups, batches)
        for slot, part, histograms in zip(slots, parts, seen, strict=True):
            grids = [scale_and_zero(*self._range(one)) for one in histograms]
            scale, zero = (torch.stack(values) for values in zip(*grids, strict=True))
            found[slot.path] = (part, scale, zero)
        self._pack(editor, slots, found)
        self._rest().apply(editor, given)

    def preview(self, editor: Editor, given: Given) -> None:
        """The same structure; groups and ranges are not looked for."""
        self._pack(editor, self._readers(editor), {})
        self._rest().preview(editor, given)

    def _range(self, seen: Histogram) -> tuple[float, float]:
        """That of one group; all of it where it holds one value, or none because there are fewer columns."""
        return find_range(seen, self.calibrator) if seen.low < seen.high else (seen.low, seen.high)

    def _rest(self) -> Int8:
        """What packs all that reads something else."""
        return Int8(mode="static", calibrator=self.calibrator, samples=self.samples, embeddings=self.embeddings)

    def _readers(self, editor: Editor) -> list[Slot]:
        """The maps that read the residual stream, or its norm."""
        paths = stream_readers(editor.anatomy())
        whole = paths | {f"{path}.{name}" for path in paths for name in ("down", "inner")}
        return [slot for slot in unpacked_maps(editor) if slot.path in whole]

    def _pack(self, editor: Editor, slots: list[Slot], found: dict[str, tuple[Tensor, Tensor, Tensor]]) -> None:
        """found: path -> group of each column (in,), scale and zero point of each group. Without one: scales of 1."""
        tensors: dict[str, Tensor] = {}
        for slot in slots:
            codes, scale = quantize_rows(finite_weight(slot.weight, slot.path))
            tensors[f"{slot.path}.weight"], tensors[f"{slot.path}.weight_scale"] = pack_codes(codes, 8), scale
            if slot.path in found:
                names = (f"{slot.path}.{name}" for name in ("input_group", "input_scale", "input_zero"))
                tensors |= dict(zip(names, found[slot.path], strict=True))
        if slots:
            editor.apply(edits.PackInputGroups(groups=self.groups, linears=tuple(slot.path for slot in slots)), tensors)


def group_columns(largest: Tensor, groups: int) -> Tensor:
    """The group of each column, uint8: sorted by `largest` (in,), and cut into `groups` of the same size, or nearly."""
    made = torch.empty(len(largest), dtype=torch.uint8, device=largest.device)
    place = torch.arange(len(largest), device=largest.device) * groups // len(largest)
    made[largest.argsort(stable=True)] = place.to(torch.uint8)
    return made
