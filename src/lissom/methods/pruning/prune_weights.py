"""Set the weights that matter least to zero, all at once and without training.

    magnitude   |w_ij|
    wanda       |w_ij| · ‖x_j‖
    ria         (|w_ij| / Σ_k |w_ik| + |w_ij| / Σ_k |w_kj|) · ‖x_j‖^½

‖x_j‖ is the norm of input j over the calibration tokens; a block is measured on what the pruned blocks before it give.
Sources: Han et al. 2015, section 3.1 (magnitude); Sun et al. 2024, "A simple and effective pruning approach for large
language models", eq. 1 (wanda, which compares within each row); Zhang et al. 2024, "Plug-and-play", eq. 5 (ria).
Differs: the channels of ria are not permuted for N:M.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lissom.anatomy import Anatomy, Slot
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.base import Given
from lissom.methods.pruning.zeros import Zeros, block_by_block, lowest_of_each, maps_of, remove
from lissom.stats.hessian import powers_of
from lissom.train.during.masks import lowest_of

_TEXTS = ("wanda", "ria")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneWeights(Zeros):
    """Remove the weights of the lowest score; the others keep their values."""

    name: ClassVar[str] = "prune_weights"
    source: ClassVar[str] = "Han et al. 2015, section 3.1; Sun et al. 2024, eq. 1; Zhang et al. 2024, eq. 5"

    by: Annotated[
        Literal["magnitude", "wanda", "ria", "random"],
        Field(description="how weights are ranked; wanda and ria need data"),
    ] = "magnitude"
    across: Annotated[
        Literal["row", "matrix", "model"] | None,
        Field(description="rank within each row, each matrix, or over all; default: row for wanda, else matrix"),
    ] = None

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-317 when wanda or ria has no data, LSM-318 for a ranking over the model that looks at texts or has
        a pattern."""
        super().check(anatomy, given)
        if self.by in _TEXTS and (given.data is None or given.tokenizer is None):
            raise LissomError(317, f"by: {self.by} looks at texts", remedy="Give --data, or choose by: magnitude.")
        if self.across == "model" and (self.by in _TEXTS or self.pattern is not None):
            what = "a pattern holds in each row" if self.pattern is not None else f"{self.by} goes block by block"
            raise LissomError(318, f"across: model ranks all maps together, and {what}", place="across")

    def apply(self, editor: Editor, given: Given) -> None:
        """Remove, block by block where texts are looked at."""
        if self.by not in _TEXTS:
            self._plainly(editor, given.seed if self.by == "random" else None)
            return
        for step, slots in block_by_block(editor, given, self.samples):
            powers = powers_of(step, slots)
            for slot in slots:
                norm = powers[slot.path].sqrt() if slot.path in powers else torch.ones(slot.in_features)
                remove(slot, self.gone(scores(slot.weight, norm, self.by)))

    def preview(self, editor: Editor, given: Given) -> None:
        """As many zeros, by magnitude."""
        self._plainly(editor, None)

    def gone(self, scores: Tensor) -> Tensor:
        """Which weights of a matrix go, bool. scores: (out, in)."""
        if self.kept_of is None and (self.across or ("row" if self.by == "wanda" else "matrix")) == "row":
            columns = scores.shape[1]
            return lowest_of_each(scores, int(self.ratio * columns + 0.5), columns)
        return self.lowest(scores)

    def _plainly(self, editor: Editor, seed: int | None) -> None:
        """Without texts: by magnitude, or at random with `seed`."""
        maps = maps_of(editor.anatomy())
        generator = None if seed is None else torch.Generator().manual_seed(seed)

        def ranked(slot: Slot) -> Tensor:
            weight = slot.weight.detach()
            return weight.abs() if generator is None else torch.rand(weight.shape, generator=generator)

        if self.across == "model":
            for slot, gone in zip(maps, lowest_of(list(map(ranked, maps)), self.ratio, together=True), strict=True):
                remove(slot, gone)
            return
        for slot in maps:
            remove(slot, self.gone(ranked(slot)))


def scores(weight: Tensor, norm: Tensor, by: str) -> Tensor:
    """What each weight matters by its inputs, (out, in) float32. weight: (out, in). norm: (in,), ‖x_j‖."""
    size, norm = weight.detach().float().abs(), norm.to(weight.device)
    if by == "wanda":
        return size * norm
    share = size / size.sum(1, keepdim=True).clamp_min(1e-12) + size / size.sum(0).clamp_min(1e-12)
    return share * norm.sqrt()
