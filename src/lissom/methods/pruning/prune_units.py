"""Remove heads and neurons under one budget of work, and fit what is left, without training.

Each head and each neuron gets a gate m = 1 on the texts, and I = Σ (∂L/∂m)² over them says how much it matters: heads
and neurons are then chosen together, so that the summed I of what goes is least within the budget; swapped within each
layer by the layer's full Fisher information; and what reads them is fitted, layer by layer, so that each layer adds
what it added before. The gates end in the weights, and the shapes shrink.

With `latency` the budget is time as measured on this machine, from a table of what each width saves.

Source: Kwon et al. 2022, "A fast post-training pruning framework for Transformers", sections 4.1 to 4.3; Kurtic et al.
2023, "ZipLM", section 3.2, for the table. Differs: see
`lissom.stats.unit_search` and `lissom.stats.refit`; by default whole columns are fitted, not one factor a unit.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lissom import edits
from lissom.anatomy import Anatomy, Slot
from lissom.anatomy.parts import Block
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Need, Stage, check_gradients, check_labelled
from lissom.stats.importance import gate_slopes, head_magnitude, neuron_magnitude
from lissom.stats.refit import refit
from lissom.stats.unit_cost import unit_flops
from lissom.stats.unit_latency import unit_latency
from lissom.stats.unit_search import fastest, rearrange, search
from lissom.train.during.units import Part, attentions, parts

_LOOKING = 0.6  # share of the work that measuring takes
_USUAL = 32  # tokens of a text where there is none to look at


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneUnits(Method):
    """Keep the heads and neurons that matter most within a share of the work, or of the time."""

    name: ClassVar[str] = "prune_units"
    stage: ClassVar[Stage] = Stage.WIDTH
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    speed: ClassVar[str] = "faster in every runtime, in proportion to the work removed"
    source: ClassVar[str] = "Kwon et al. 2022, sections 4.1 to 4.3"

    flops: Annotated[
        float, Field(gt=0, le=1, description="share of the blocks' operations that stays, attention's products counted")
    ] = 0.7
    latency: Annotated[
        float | None,
        Field(
            gt=0, le=1, description="instead: share of the model's time in torch on this machine that stays, measured"
        ),
    ] = None
    length: Annotated[
        int | None,
        Field(ge=1, description="tokens of the text that is counted or timed; null: the data's median"),
    ] = None
    by: Annotated[
        Literal["answers", "labels"],
        Field(description="whose likelihood matters: of the model's own answers, or of the labels"),
    ] = "answers"
    refit: Annotated[
        Literal["weights", "gates", "none"],
        Field(description="what is fitted afterwards: the columns that read the units, one factor a unit, or nothing"),
    ] = "weights"
    samples: Annotated[int, Field(ge=1, description="texts that importance is measured on")] = 512
    refit_samples: Annotated[int, Field(ge=1, description="texts that the fit looks at")] = 256

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-713 for packed layers, LSM-318 for a budget that nothing meets, LSM-821 for labels that miss."""
        check_gradients(anatomy)
        if self.by == "labels":
            check_labelled(given, "choose by: answers")
        if self.latency is None:
            found = parts(anatomy)
            self._by_flops(anatomy, found, [torch.ones(part.units) for part in found], self.length or _USUAL)

    def apply(self, editor: Editor, given: Given) -> dict[str, Any]:
        """Measure, choose, swap, fit and cut. Says for how many tokens operations were counted."""
        batches = list(given.calibration(editor.model, self.samples, labelled=self.by == "labels"))
        tokens = self._tokens(batches)
        found = parts(editor.anatomy())
        slopes = self._slopes(editor, given, found, batches)
        kept = self._chosen(editor, given, found, [one.square().sum(dim=0) for one in slopes], tokens)
        kept = [rearrange(one, slope) for one, slope in zip(kept, slopes, strict=True)]
        keep = {slot.path: one for part, one in zip(found, kept, strict=True) for slot in part.readers}
        texts = [] if self.refit == "none" else list(given.calibration(editor.model, self.refit_samples))
        told = lambda path, done: given.report(f"fit {path}", _LOOKING + (1 - _LOOKING) * done)  # noqa: E731
        refit(editor.anatomy(), texts, keep, kind=self.refit, report=told)
        cut(editor, keep)
        return {"tokens": tokens}

    def preview(self, editor: Editor, given: Given) -> None:
        """As many operations less, with the size of weights for importance: other units may go in the end."""
        anatomy = editor.anatomy()
        found = parts(anatomy)
        size = {slot.path: one for stack in anatomy.stacks for block in stack.blocks for slot, one in _sizes(block)}
        sizes = [torch.stack([size[slot.path] for slot in part.readers]).sum(dim=0).square() for part in found]
        texts = () if self.length or given.data is None else given.calibration(editor.model, 64)
        kept = self._chosen(editor, given, found, sizes, self._tokens(list(texts)))
        cut(editor, {slot.path: one for part, one in zip(found, kept, strict=True) for slot in part.readers})

    def _tokens(self, batches: Sequence[Mapping[str, Tensor]]) -> int:
        each = [tokens for one in batches for tokens in one["attention_mask"].sum(dim=1).tolist()]
        return self.length or round(statistics.median(each or [_USUAL]))

    def _slopes(
        self, editor: Editor, given: Given, found: Sequence[Part], batches: Sequence[dict[str, Tensor]]
    ) -> list[Tensor]:
        """For each part, (texts, units)."""
        slots = {slot.path: (slot, part.units) for part in found for slot in part.readers}
        each = gate_slopes(editor.model, slots, batches, answers=self.by == "answers", seed=given.seed)
        rows: list[list[Tensor]] = [[] for _ in found]
        for number, slopes in enumerate(each):
            given.report("what heads and neurons do", _LOOKING * number / len(batches))
            for part, texts in zip(found, rows, strict=True):
                texts.append(torch.stack([slopes[slot.path] for slot in part.readers]).sum(dim=0))
        return [torch.cat(one) for one in rows]

    def _chosen(
        self, editor: Editor, given: Given, found: Sequence[Part], importance: Sequence[Tensor], tokens: int
    ) -> list[Tensor]:
        """The units that stay, for each part. Raises LSM-318 when one unit a layer is more than the budget."""
        if self.latency is None:
            return self._by_flops(editor.anatomy(), found, importance, tokens)
        table = unit_latency(editor.model, tokens, report=given.report)
        try:
            return fastest(table, [[slot.path for slot in part.readers] for part in found], importance, self.latency)
        except ValueError as error:
            cause = f"latency {self.latency:g} is less than one head and one neuron a layer take here, {error}"
            raise LissomError(318, cause, place="latency", remedy="Raise it, or drop layers first.") from None

    def _by_flops(
        self, anatomy: Anatomy, found: Sequence[Part], importance: Sequence[Tensor], tokens: int
    ) -> list[Tensor]:
        cost = unit_flops(anatomy, tokens)
        costs = [sum(cost.units[slot.path] for slot in part.readers) for part in found]
        fixed = cost.total - sum(one * part.units for one, part in zip(costs, found, strict=True))
        try:
            return search(importance, costs, [part.heads for part in found], self.flops * cost.total - fixed)
        except ValueError:
            least = (sum(costs) + fixed) / cost.total
            cause = f"flops {self.flops:g} is less than one head and one neuron a layer need, {least:.3g}"
            raise LissomError(318, cause, place="flops", remedy="Raise it, or drop layers first.") from None


def _sizes(block: Block) -> list[tuple[Slot, Tensor]]:
    """The norm of the weights of each unit, for each reader of a block."""
    heads = [one for one in (block.attention, block.cross) if one is not None]
    return [(block.ffn.down, neuron_magnitude(block.ffn)), *((one.o, head_magnitude(one)) for one in heads)]


def cut(editor: Editor, keep: dict[str, Tensor]) -> None:
    """Remove the units that go. keep: path of o or down -> (units,) bool."""
    numbers = {path: tuple(one.nonzero().flatten().tolist()) for path, one in keep.items()}
    for stack in editor.anatomy().stacks:
        for cross in (False, True):
            found = attentions(stack, cross)
            heads = tuple(numbers[one.o.path] for one in found)
            if any(len(kept) < one.kv_heads for kept, one in zip(heads, found, strict=True)):
                editor.apply(edits.KeepHeads(stack=stack.name, heads=heads, cross=cross))
        neurons = tuple(numbers[block.ffn.down.path] for block in stack.blocks)
        if any(len(kept) < block.ffn.width for kept, block in zip(neurons, stack.blocks, strict=True)):
            editor.apply(edits.KeepNeurons(stack=stack.name, neurons=neurons))
