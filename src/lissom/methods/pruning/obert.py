"""Set the weights to zero that the loss misses least to second order, and let their neighbours make up for them.

    score_q = w_q² / (2 [F⁻¹]_qq)        w'_K = w_K + F_KK⁻¹ F_KQ w_Q

F is the empirical Fisher information of every 50 weights that follow each other (`lissom.stats.fisher_blocks`), from
gradients on labelled texts. All maps see the model as it was before the step.
Source: Kurtic et al. 2022, "The optimal BERT surgeon", sections 3 and 4. Differs: ranks within each matrix, so that few
maps are held at once; see `lissom.stats.fisher_blocks` for the rest. Their gradual schedule is this step in turns with
`tune` and its `magnitude: {locked: true}`: recipe `obert`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lissom.anatomy import Anatomy, Slot
from lissom.edits import Editor
from lissom.methods.base import Given, Need, check_labelled
from lissom.methods.pruning.prune_weights import PruneWeights
from lissom.methods.pruning.zeros import Zeros, maps_of
from lissom.stats.batches import cut
from lissom.stats.fisher_blocks import block_fisher, removed, saliency

_HELD = 2**28  # numbers of F at once: 1 GiB


@dataclasses.dataclass(frozen=True, kw_only=True)
class Obert(Zeros):
    """Removal by the curvature of the loss."""

    name: ClassVar[str] = "obert"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    source: ClassVar[str] = "Kurtic et al. 2022, sections 3 and 4"

    samples: Annotated[
        int, Field(ge=1, le=100_000, description="labelled texts, or blocks of running text, to take gradients on")
    ] = 512
    size: Annotated[int, Field(ge=1, le=512, description="weights of a block, whose F is inverted")] = 50
    damp: Annotated[float, Field(gt=0, le=1, description="share of the mean of F's diagonal added to it")] = 0.01

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-821 without labels, and what `Zeros.check` raises."""
        super().check(anatomy, given)
        check_labelled(given, "take sparsegpt, which needs none")

    def apply(self, editor: Editor, given: Given) -> None:
        """Take gradients for some maps, choose, and go on with the next ones."""
        texts = list(cut(given.calibration(editor.model, self.samples, labelled=True), 1))
        made: list[tuple[Slot, Tensor]] = []
        maps = maps_of(editor.anatomy())
        for slots in self._together(maps):
            given.report(slots[0].path, len(made) / len(maps))
            fishers = block_fisher(editor.model, slots, texts, size=self.size, damp=self.damp)
            made += [(slot, self.solve(slot.weight.detach(), fishers.pop(slot.path))) for slot in slots]
        with torch.no_grad():
            for slot, weight in made:
                slot.weight.copy_(weight)

    def preview(self, editor: Editor, given: Given) -> None:
        """As many zeros, by magnitude."""
        PruneWeights(ratio=self.ratio, pattern=self.pattern).preview(editor, given)

    def solve(self, weight: Tensor, fisher: Tensor) -> Tensor:
        """The weight (out, in) float32 with zeros. fisher: (blocks, size, size), row after row."""
        gone = self.lowest(saliency(weight, fisher)) | (weight == 0)
        return removed(weight, fisher, gone) if bool(gone.any()) else weight

    def _together(self, maps: list[Slot]) -> Iterator[list[Slot]]:
        held: list[Slot] = []
        for slot in maps:
            if held and sum(one.weight.numel() for one in (*held, slot)) * self.size > _HELD:
                yield held
                held = []
            held.append(slot)
        if held:
            yield held
