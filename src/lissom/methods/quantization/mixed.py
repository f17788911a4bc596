"""Store linear maps in few bits, more of them where rounding does more damage, within a budget.

The damage d(b) of b bits is measured for every map on calibration texts, and the widths of least summed damage within
the budget are found exactly (`lissom.stats.widths`). With e the change of a row of the weight when it is rounded to b
bits, and H = 2 Σ xᵀx of the inputs (so that e H eᵀ is twice the squared change of the row's outputs):

    answers   Σ_r F_r · e_r H e_rᵀ: F_r is how much the answers move with output r, to second order
    hessian   Ω · Σ |e|²: Ω = |mean| + std of the top eigenvalue of the task's loss on ten slices of the texts, of 8
              at most, one a block, whose maps get the same width; needs labels

Sources: Shen et al. 2020, "Q-BERT", section 3.1 (Ω; the paper ranks blocks by it and sets widths by hand); Dong et al.
2020, "HAWQ-V2", section 3 (curvature times squared change, under a budget); `lissom.stats.curvature` for F.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from lissom.anatomy import Anatomy, Slot
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Need, Stage, check_labelled
from lissom.methods.quantization.gptq import Gptq
from lissom.methods.quantization.groups import SPEED, Groups
from lissom.methods.quantization.hqq import Hqq
from lissom.methods.quantization.maps import Skip, check_skip, check_unpacked, unpacked_maps
from lissom.methods.quantization.rtn import Rtn
from lissom.nn.grouped import groups_of, restore
from lissom.nn.shared import once
from lissom.stats.blocks import walk
from lissom.stats.curvature import answer_weights, block_weights, omegas
from lissom.stats.hessian import hessians_of
from lissom.stats.widths import choose_widths

Width = Literal[2, 3, 4, 8]
Damages = Mapping[str, Sequence[float]]
_MB = 1_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixed(Method):
    """Choose the bits of each map by measured damage under a budget, then store them in groups."""

    name: ClassVar[str] = "mixed"
    stage: ClassVar[Stage] = Stage.BITS
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    speed: ClassVar[str] = SPEED
    only_packs: ClassVar[bool] = True
    source: ClassVar[str] = "Shen et al. 2020, section 3.1; Dong et al. 2020, section 3"

    bits: Annotated[
        float, Field(ge=2, le=8, description="bits a weight on average, without scales and zero points")
    ] = 4
    size_mb: Annotated[
        float | None, Field(gt=0, description="instead: size of all of the model's tensors, 1 MB = 10^6 bytes")
    ] = None
    choices: Annotated[tuple[Width, ...], Field(min_length=1, description="widths that a map can get")] = (2, 3, 4, 8)
    by: Annotated[Literal["answers", "hessian"], Field(description="what damage is; hessian needs labels")] = "answers"
    codes: Annotated[
        Literal["gptq", "hqq", "rtn"], Field(description="the method that then rounds the maps of each width")
    ] = "gptq"
    group: Annotated[
        int,
        Field(ge=8, le=4096, description="columns that share a scale and a zero point; the last group may be shorter"),
    ] = 64
    samples: Annotated[int, Field(ge=1, le=100_000, description="texts, or blocks of running text, to look at")] = 128
    skip: Skip = ()

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-318 for a budget below the smallest width, or an unknown map to skip, LSM-713 when every other map
        is packed already, LSM-821 when the hessian has no labels."""
        check_skip(anatomy, self.skip)
        check_unpacked(anatomy, self.skip)
        if self.by == "hessian":
            check_labelled(given, "choose by: answers")
        if self.size_mb is None and self.bits < min(self.choices):
            cause = f"an average of {self.bits:g} bits, and the smallest of the choices is {min(self.choices)}"
            raise LissomError(318, cause, place="bits", remedy="Allow fewer bits in choices, or more on average.")

    def packs_all(self) -> bool:
        """Unless some are skipped."""
        return not self.skip

    def apply(self, editor: Editor, given: Given) -> dict[str, Any]:
        """Measure, choose, and store one width after the other. Says the width of each map."""
        maps = unpacked_maps(editor, self.skip)
        widths = self._chosen(editor, maps, self._damages(editor, given, maps)) if maps else {}
        for bits in sorted(set(widths.values())):
            others = tuple(path for path, own in widths.items() if own != bits)
            self._coder(bits, (*self.skip, *others)).apply(editor, given)
        sizes = {slot.path: slot.weight.numel() for slot in maps}
        mean = sum(sizes[path] * bits for path, bits in widths.items()) / max(sum(sizes.values()), 1)
        counts = {f"maps_of_{bits}_bits": count for bits, count in sorted(Counter(widths.values()).items())}
        return {"average_bits": mean, **counts, "bits": widths}

    def preview(self, editor: Editor, given: Given) -> None:
        """The same structure, with the change of the weights for damage: widths may go to other maps in the end."""
        maps = unpacked_maps(editor, self.skip)
        alone = {slot.path: [float(one.square().sum()) for one in self._changes(slot)] for slot in maps}
        widths = self._chosen(editor, maps, alone) if maps else {}
        for bits in sorted(set(widths.values())):
            others = tuple(path for path, own in widths.items() if own != bits)
            self._coder(bits, (*self.skip, *others)).preview(editor, given)

    def _coder(self, bits: Width, skip: tuple[str, ...]) -> Groups:
        if self.codes == "gptq":
            return Gptq(bits=bits, group=self.group, samples=self.samples, skip=skip)
        return (Hqq if self.codes == "hqq" else Rtn)(bits=bits, group=self.group, skip=skip)

    def _changes(self, slot: Slot) -> list[Tensor]:
        """What rounding to each of the choices does to a weight: (out, in) float32 each."""
        weight, changes = slot.weight.detach().float(), []
        for bits in self.choices:
            stored = Rtn(bits=bits, group=self.group).rounded(weight, slot.path)
            changes.append(restore(*stored, group=self.group) - weight)
        return changes

    def _damages(self, editor: Editor, given: Given, maps: list[Slot]) -> Damages:
        """Path of each map -> its damage at each of the choices."""
        if self.by == "hessian":
            return self._bent(editor, given, maps)
        batches = list(given.calibration(editor.model, self.samples))
        rows = answer_weights(editor.model, maps, batches, seed=given.seed)
        found: dict[str, list[float]] = {}
        for step in walk(editor.anatomy(), batches):
            given.report(step.block.path, 0.5 * len(found) / len(maps))
            own = [slot for slot in maps if slot.path.startswith(f"{step.block.path}.")]
            hessians = hessians_of(step, own)
            for slot in own:
                hessian = hessians.get(slot.path)
                found[slot.path] = [
                    0.0 if hessian is None else float(rows[slot.path] @ _row_errors(change, hessian))
                    for change in self._changes(slot)
                ]
                if not all(map(math.isfinite, found[slot.path])):
                    raise LissomError(901, "the answers bend by NaN or infinity with its outputs", place=slot.path)
        return found

    def _bent(self, editor: Editor, given: Given, maps: list[Slot]) -> Damages:
        """Ω times the squared change; all maps of a block have the damage of the block, see `_units`."""
        batches = list(given.calibration(editor.model, self.samples, labelled=True))
        weights = block_weights(editor.anatomy())
        found = omegas(editor.model, weights, batches, seed=given.seed, report=given.report)
        return {
            slot.path: [
                found.get(_block(slot, weights), 0.0) * float(one.square().sum()) for one in self._changes(slot)
            ]
            for slot in maps
        }

    def _chosen(self, editor: Editor, maps: list[Slot], damages: Damages) -> dict[str, Width]:
        """Path -> bits. Raises LissomError LSM-318 for a size that no choice meets."""
        units = self._units(editor, maps)
        sizes = {slot.path: slot.weight.numel() for slot in maps}
        budget = self._budget(editor, maps)
        costs = [[bits * sum(sizes[path] for path in unit) for bits in self.choices] for unit in units]
        harms = [[sum(damages[path][k] for path in unit) for k in range(len(self.choices))] for unit in units]
        try:
            chosen = choose_widths(costs, harms, budget)
        except ValueError as error:
            least = (min(self.choices) * sum(sizes.values()) - budget) / 8 / _MB
            cause = f"{least:.3f} MB more than the budget are needed, even at {min(self.choices)} bits a weight"
            raise LissomError(318, cause, place="bits" if self.size_mb is None else "size_mb") from error
        return {path: self.choices[k] for unit, k in zip(units, chosen, strict=True) for path in unit}

    def _units(self, editor: Editor, maps: list[Slot]) -> list[list[str]]:
        """The maps that get the same width: those of one weight; or those of a block, and what shares with it."""
        blocks = [block.path for stack in editor.anatomy().stacks for block in stack.blocks]
        first: dict[int, str] = {}
        together: dict[str, list[str]] = {}
        for slot in maps:
            own = slot.path if self.by != "hessian" else _block(slot, blocks)
            together.setdefault(first.setdefault(id(slot.module.weight), own), []).append(slot.path)
        return list(together.values())

    def _budget(self, editor: Editor, maps: list[Slot]) -> int:
        """Bits that all codes together may take."""
        weights = sum(slot.weight.numel() for slot in maps)
        if self.size_mb is None:
            return int(self.bits * weights + 1e-6)
        every = once(editor.model.state_dict(keep_vars=True).values())
        rest = sum(one.nbytes for one in every) - sum(4 * slot.weight.numel() for slot in maps)
        scales = sum(slot.out_features * (4 * groups_of(slot.in_features, self.group) + 1) for slot in maps)
        return int(8 * (self.size_mb * _MB - rest - scales))  # a row of codes ends with a whole byte


def _block(slot: Slot, blocks: Sequence[str] | Mapping[str, Any]) -> str:
    return next((path for path in blocks if slot.path.startswith(f"{path}.")), "")


def _row_errors(change: Tensor, hessian: Tensor) -> Tensor:
    """e H eᵀ of each row: (out,)."""
    return ((change @ hessian) * change).sum(1).clamp_min(0)
