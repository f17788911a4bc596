"""Store linear maps as int8, but for the columns whose inputs are far larger than the others.

A column of a map is kept in floating point where one of its inputs reaches the threshold in magnitude on some text. The
rest has one scale a row, and inputs are rounded while the model runs, with one scale a token.
Source: Dettmers et al. 2022, "LLM.int8()", section 3. The paper looks for the columns in each batch anew, and keeps all
weights as int8; here they are found once, on calibration texts.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lissom import edits
from lissom.anatomy import Anatomy
from lissom.edits import Editor
from lissom.methods.base import Given, Method, Need, Stage
from lissom.methods.quantization.maps import check_unpacked, unpacked_maps
from lissom.nn.split import split
from lissom.stats.finite import finite_weight
from lissom.stats.ranges import largest_inputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitInt8(Method):
    """Pack every linear map in the blocks to int8, outlying columns apart."""

    name: ClassVar[str] = "split_int8"
    stage: ClassVar[Stage] = Stage.BITS
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    speed: ClassVar[str] = "not faster: whole numbers are multiplied in float32; it only saves space"
    source: ClassVar[str] = "Dettmers et al. 2022, section 3"
    only_packs: ClassVar[bool] = True

    threshold: Annotated[
        float, Field(gt=0, description="magnitude of an input from which its column stays in floating point")
    ] = 6.0
    samples: Annotated[int, Field(ge=1, le=100_000, description="texts on which columns are looked for")] = 128

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-713 when every map is packed already."""
        check_unpacked(anatomy)

    def packs_all(self) -> bool:
        """Always."""
        return True

    def apply(self, editor: Editor, given: Given) -> None:
        """Run the texts, then pack."""
        maps = unpacked_maps(editor)
        largest = largest_inputs(editor.model, maps, given.calibration(editor.model, self.samples))
        tensors: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        reached: dict[int, Tensor] = {}  # by the inputs of all layers that share a weight
        for slot, top in zip(maps, largest, strict=True):
            before = reached.setdefault(
                id(slot.module.weight), torch.zeros(slot.in_features, device=slot.weight.device)
            )
            reached[id(slot.module.weight)] = before if top is None else torch.maximum(before, top)
        for slot in maps:
            path, weight = slot.path, finite_weight(slot.weight, slot.path)
            columns = (reached[id(slot.module.weight)] >= self.threshold).nonzero().flatten()
            counts[path] = len(columns)
            tensors |= {f"{path}.{name}": one for name, one in split(weight, columns).items()}
        if counts:
            editor.apply(edits.PackSplit(columns=counts), tensors)

    def preview(self, editor: Editor, given: Given) -> None:
        """The same structure, as if no input were outlying."""
        if maps := unpacked_maps(editor):
            editor.apply(edits.PackSplit(columns={slot.path: 0 for slot in maps}))
