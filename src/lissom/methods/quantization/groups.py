"""What the methods that store weights in groups have in common: which maps, and how their codes are stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from lissom import edits
from lissom.anatomy import Anatomy
from lissom.edits import Editor
from lissom.methods.base import Given, Method, Stage
from lissom.methods.quantization.maps import Skip, check_skip, check_unpacked, unpacked_maps
from lissom.nn.grouped import grid, grid_between, groups_of, restore, round_to
from lissom.nn.palette import pack_indices
from lissom.stats.finite import finite_weight

_DRAWS = 20
SPEED = (
    "in torch it only saves space: weights are decoded to float before use; ONNX Runtime multiplies 4 bits as they are"
)


class Stored(NamedTuple):
    """One map: codes (out, in), scale and zero point (out, groups)."""

    codes: Tensor
    scale: Tensor
    zero: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Groups(Method):
    """Store the linear maps of the blocks in few bits, with a scale and a zero point for each group of a row.

    The output projection of a language model and all tables stay in floating point.
    """

    stage: ClassVar[Stage] = Stage.BITS
    speed: ClassVar[str] = SPEED
    only_packs: ClassVar[bool] = True

    bits: Annotated[Literal[2, 3, 4, 8], Field(description="bits a weight")] = 4
    group: Annotated[
        int,
        Field(ge=8, le=4096, description="columns that share a scale and a zero point; the last group may be shorter"),
    ] = 64
    skip: Skip = ()

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-318 for an unknown map to skip, LSM-713 when every other map is packed already."""
        check_skip(anatomy, self.skip)
        check_unpacked(anatomy, self.skip)

    def packs_all(self) -> bool:
        """Unless some are skipped."""
        return not self.skip

    def rounded(self, weight: Tensor, path: str) -> Stored:
        """The nearest codes on the grid from smallest to largest. Raises LissomError LSM-901 for NaN and infinity."""
        scale, zero = grid(finite_weight(weight, path), bits=self.bits, group=self.group)
        return Stored(round_to(weight, scale, zero, bits=self.bits, group=self.group), scale, zero)

    def drawn_in(self, weight: Tensor, path: str, cost: Callable[[Tensor], Tensor], clip: float) -> Stored:
        """The grid of least cost among those whose ends are drawn in by 0 to `clip` of them, in 20 steps.

        cost: of a change of the weight (out, in), for each group (out, groups).
        """
        plain = self.rounded(weight, path)
        rows, columns = weight.shape
        parts = groups_of(columns, self.group)
        blocks = torch.nn.functional.pad(weight, (0, parts * self.group - columns)).reshape(rows, parts, self.group)
        low, high = blocks.amin(-1), blocks.amax(-1)
        scale, zero = plain.scale, plain.zero
        least = cost(restore(*plain, group=self.group) - weight)
        for step in range(1, _DRAWS + 1):
            share = 1 - clip * step / _DRAWS
            new_scale, new_zero = grid_between(low * share, high * share, bits=self.bits)
            codes = round_to(weight, new_scale, new_zero, bits=self.bits, group=self.group)
            error = cost(restore(codes, new_scale, new_zero, group=self.group) - weight)
            better = error < least
            least = torch.where(better, error, least)
            scale, zero = torch.where(better, new_scale, scale), torch.where(better, new_zero, zero)
        return Stored(round_to(weight, scale, zero, bits=self.bits, group=self.group), scale, zero)

    def pack(self, editor: Editor, stored: Iterable[tuple[str, Stored]]) -> None:
        """Put packed layers in the place of the maps. stored: path of a map and its numbers, packed as they come."""
        tensors: dict[str, Tensor] = {}
        paths: dict[str, None] = {}
        for path, one in stored:
            paths[path] = None
            tensors[f"{path}.weight"] = pack_indices(one.codes, self.bits)
            tensors[f"{path}.weight_scale"], tensors[f"{path}.weight_zero"] = one.scale.half(), one.zero.half()
        if paths:
            editor.apply(edits.PackGroups(bits=self.bits, group=self.group, linears=tuple(paths)), tensors)

    def preview(self, editor: Editor, given: Given) -> None:
        """The same structure, rounded to the nearest."""
        maps = unpacked_maps(editor, self.skip)
        self.pack(editor, ((slot.path, self.rounded(slot.weight, slot.path)) for slot in maps))
