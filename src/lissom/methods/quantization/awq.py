"""Store weights in few bits, after channels with large inputs were made large in the weights, which rounds them finer.

Channel j of an input is divided by s_j = m_j^a and the columns that read it are multiplied by it, with the a in 0, 1/20
.. 1 of the smallest error of the outputs. Then the ends of each group are drawn in where that lowers the error of its
part of the output. Errors are Σ e H eᵀ over the rows e of a map's change, H = 2 Σ xᵀx, the squared change of outputs.
m is the root mean square of the channel (the paper: the mean magnitude), and s is scaled to √(max s · min s) = 1.

The factors go into what feeds the maps, where that is exact (`lissom.stats.folding`); elsewhere only ends are drawn in,
which queries and keys are spared where they are maps of their own.
Source: Lin et al. 2024, "AWQ", section 3.2 and equation 5; the search for ends is that of the authors' code.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lissom.anatomy import Anatomy, Slot
from lissom.methods.quantization.calibrated import Calibrated
from lissom.methods.quantization.groups import Stored
from lissom.nn.grouped import groups_of, restore
from lissom.stats.blocks import Step
from lissom.stats.folding import Feed, feeders, fold
from lissom.stats.hessian import hessians_of

_STEPS = 20  # of the exponent, as published


@dataclasses.dataclass(frozen=True, kw_only=True)
class Awq(Calibrated):
    """Activation-aware weight quantization."""

    name: ClassVar[str] = "awq"
    source: ClassVar[str] = "Lin et al. 2024, section 3.2"

    clip: Annotated[
        float, Field(ge=0, lt=1, description="how far the ends of a group may be drawn in at most, as a share; 0: not")
    ] = 0.5

    def chosen(self, step: Step, slots: list[Slot], anatomy: Anatomy) -> dict[str, Stored]:
        """Scale the channels, then find the ends of the groups."""
        seen = hessians_of(step, slots)
        slots = [slot for slot in slots if slot.path in seen]
        for feed in feeders(anatomy):
            if all(slot.path in seen for slot in feed.slots):
                scale = self._scales(feed, seen)
                fold(feed, scale)
                wide = scale[feed.columns.to(scale.device)]
                seen |= {slot.path: seen[slot.path] / (wide[:, None] * wide) for slot in feed.slots}
        found = (one for stack in anatomy.stacks for block in stack.blocks for one in (block.attention, block.cross))
        spared = {slot.path for one in found if one is not None for slot in (one.q, one.k) if not slot.fused}
        return {slot.path: self.ends(slot, seen[slot.path], clip=slot.path not in spared) for slot in slots}

    def _scales(self, feed: Feed, hessians: dict[str, Tensor]) -> Tensor:
        """The factors of least error: (feed.size,) float32, positive. All slots of a feed read the same input."""
        hessian = hessians[feed.slots[0].path]
        columns = feed.columns.to(hessian.device)
        power = torch.zeros(feed.size, device=hessian.device)
        power = power.scatter_reduce(0, columns, hessian.diagonal(), "amax").clamp_min(1e-8).sqrt()
        weights = [(slot, slot.weight.detach().float()) for slot in feed.slots]
        best, least = torch.ones_like(power), torch.inf
        for step in range(_STEPS + 1):
            scale = power ** (step / _STEPS)
            scale = (scale / (scale.max() * scale.min()).sqrt()).clamp(1e-4, 1e4)
            wide = scale[columns]
            error = 0.0
            for slot, weight in weights:
                rounded = restore(*self.rounded(weight * wide, slot.path), group=self.group) / wide
                error += output_error(rounded - weight, hessian)
            if error < least:
                best, least = scale, error
        return best

    def ends(self, slot: Slot, hessian: Tensor, *, clip: bool) -> Stored:
        """Codes for a weight, with the ends of each group where its part of the output changes least."""
        weight = slot.weight.detach().float()
        if not clip or not self.clip:
            return self.rounded(weight, slot.path)
        inside = _diagonal_blocks(hessian, self.group)
        return self.drawn_in(weight, slot.path, lambda change: _part_errors(change, inside, self.group), self.clip)


def output_error(change: Tensor, hessian: Tensor) -> float:
    """Twice the squared change of a map's outputs over the tokens of H, for a change of its weight (out, in)."""
    return float(((change @ hessian) * change).sum())


def _diagonal_blocks(hessian: Tensor, group: int) -> Tensor:
    """(groups, group, group): H of the columns of each group, with zeros where the last one is shorter."""
    parts = groups_of(len(hessian), group)
    short = parts * group - len(hessian)
    wide = torch.nn.functional.pad(hessian, (0, short, 0, short)).reshape(parts, group, parts, group)
    at = torch.arange(parts, device=hessian.device)
    return wide[at, :, at]


def _part_errors(change: Tensor, inside: Tensor, group: int) -> Tensor:
    """The error that each group of each row makes by itself: (out, groups)."""
    parts = len(inside)
    blocks = torch.nn.functional.pad(change, (0, parts * group - change.shape[1])).reshape(len(change), parts, group)
    return torch.einsum("rpi,pij,rpj->rp", blocks, inside, blocks)
