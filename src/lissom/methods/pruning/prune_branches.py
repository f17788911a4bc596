"""Remove whole attention and feed-forward layers that add least to the hidden states, which then pass them by.

Source: Lin et al. 2020, "Pruning redundant mappings in Transformer models via spectral-normalized identity prior"
(SNIP), section 3: a mapping F whose largest ‖F(x)‖ over texts is small becomes the identity x + 0. Differs: where the
paper divides weights by their spectral norm to make layers comparable, ‖F(x)‖ is divided by ‖x‖; a share of the
mappings goes, not those below a threshold.

One empty head, with its query heads, and one empty neuron stay in a removed layer, so that the model is still of its
class: with grouped queries that is a good part of an attention layer. Their maps are zero and training leaves them so;
only the bias of what wrote into the hidden states can become a constant again.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from lissom import edits
from lissom.anatomy import Anatomy, Slot, is_transposed, stored_maps
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Need, Stage, refuse_packed
from lissom.stats.importance import branch_norms


@dataclasses.dataclass(frozen=True, kw_only=True)
class Branch:
    """One mapping F of a block that computes x + F(x).

    reader, writer: what F is 0 without, the values or up, and o or down.  units: its key/value heads or neurons.
    uses: how many executed layers have it; more than one where a block repeats (ALBERT).
    """

    stack: str
    kind: Literal["attention", "cross", "ffn"]
    reader: Slot
    writer: Slot
    units: int
    uses: int

    @property
    def empty(self) -> bool:
        """Whether it was removed before."""
        return self.units == 1 and not bool(self.writer.weight.any())


def branches(anatomy: Anatomy) -> Iterator[Branch]:
    """All that can go, in a fixed order: not attention layers that have to keep the same heads (T5, MPNet)."""
    for stack in anatomy.stacks:
        for block in stack.blocks:
            uses = stack.order.count(block.index)
            for one in (block.attention, block.cross):
                if one is not None and not one.tied:
                    kind: Literal["attention", "cross"] = "attention" if one is block.attention else "cross"
                    yield Branch(stack=stack.name, kind=kind, reader=one.v, writer=one.o, units=one.kv_heads, uses=uses)
            ffn = block.ffn
            yield Branch(stack=stack.name, kind="ffn", reader=ffn.up, writer=ffn.down, units=ffn.width, uses=uses)


def _zero(slot: Slot) -> None:
    for part in stored_maps(slot):
        module, rows = part.module, slice(None) if slot.rows is None else slot.rows
        if slot.rows is None or part.out_features > int(slot.rows.max()):  # not the thin map in front of a fused one
            weight, bias = cast("Tensor", module.weight), cast("Tensor | None", module.bias)
            (weight.t() if is_transposed(module) else weight)[rows] = 0
            if bias is not None:
                bias[rows] = 0


def _edit(stack: str, kind: str, kept: tuple[tuple[int, ...], ...]) -> edits.Edit:
    if kind == "ffn":
        return edits.KeepNeurons(stack=stack, neurons=kept)
    return edits.KeepHeads(stack=stack, heads=kept, cross=kind == "cross")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneBranches(Method):
    """Remove the share `ratio` of the attention and feed-forward layers of the model."""

    name: ClassVar[str] = "prune_branches"
    stage: ClassVar[Stage] = Stage.WIDTH
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    speed: ClassVar[str] = "faster in every runtime, in proportion to the layers removed, one head in each left out"
    source: ClassVar[str] = "Lin et al. 2020, section 3"

    ratio: Annotated[
        float, Field(ge=0, lt=1, description="share of the attention and feed-forward layers that is removed")
    ] = 0.25
    samples: Annotated[int, Field(ge=1, description="texts that what layers add is looked at on")] = 256

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-317 without texts, LSM-713 for packed layers, LSM-715 where layers share their maps."""
        if given.data is None or given.tokenizer is None:
            raise LissomError(317, "needs texts to look at", remedy="Give --data.")
        refuse_packed(anatomy, "this step makes layers zero, and a packed one holds no such numbers")
        seen: set[int] = set()
        for branch in branches(anatomy):
            one = id(stored_maps(branch.writer)[-1].module.weight)
            if one in seen:
                cause = "layers share this map, and would all lose it"
                raise LissomError(715, cause, place=branch.writer.path, remedy="Remove layers before they are shared.")
            seen.add(one)

    def apply(self, editor: Editor, given: Given) -> dict[str, Any]:
        """Choose on the model as it is, then cut: no more executed layers than `ratio` says, rounded."""
        anatomy = editor.anatomy()
        found = list(branches(anatomy))
        norms = branch_norms(editor.model, anatomy.stacks, given.calibration(editor.model, self.samples))
        ranked = sorted((one for one in found if not one.empty), key=lambda one: norms[one.writer.path])
        count = int(self.ratio * sum(one.uses for one in found) + 0.5) - sum(one.uses for one in found if one.empty)
        together = itertools.accumulate(one.uses for one in ranked[:-1])  # the last one stays
        gone = [one for one, uses in zip(ranked, together, strict=False) if uses <= count]
        with torch.no_grad():
            for branch in gone:
                _zero(branch.reader)
                _zero(branch.writer)
        paths = {one.writer.path for one in gone}
        for stack in anatomy.stacks:
            for kind in dict.fromkeys(one.kind for one in gone if one.stack == stack.name):
                mine = [one for one in found if (one.stack, one.kind) == (stack.name, kind)]
                kept = tuple((0,) if one.writer.path in paths else tuple(range(one.units)) for one in mine)
                if any(len(keep) < one.units for keep, one in zip(kept, mine, strict=True)):
                    editor.apply(_edit(stack.name, kind, kept))
        return {"removed": sorted(paths)}
