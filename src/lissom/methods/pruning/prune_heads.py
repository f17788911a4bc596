"""Remove the attention heads that matter least: rows of q, k and v and columns of o go for good.

Source: Michel et al. 2019, "Are sixteen heads really better than one?", eq. 3. Ours cuts once, not head by head, and
with grouped queries a key/value head goes together with its query heads.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lissom import edits
from lissom.anatomy import Anatomy, Attention, Stack
from lissom.edits import Editor
from lissom.methods.base import Given, Method, Stage
from lissom.methods.pruning.structured import choose, first_order_scores, labelled
from lissom.stats.importance import head_magnitude


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneHeads(Method):
    """Remove the share `ratio` of the attention heads, self- and cross-attention alike."""

    name: ClassVar[str] = "prune_heads"
    stage: ClassVar[Stage] = Stage.WIDTH
    speed: ClassVar[str] = "faster in every runtime, but attention is the smaller part of the work for short texts"
    source: ClassVar[str] = "Michel et al. 2019, eq. 3"

    ratio: Annotated[float, Field(ge=0, lt=1, description="share of the heads that is removed")] = 0.25
    by: Annotated[
        Literal["magnitude", "first-order"], Field(description="how heads are ranked; first-order needs labelled data")
    ] = "magnitude"
    across: Annotated[
        Literal["layer", "model"], Field(description="rank within each layer, or over the whole stack")
    ] = "layer"
    samples: Annotated[int, Field(ge=1, description="texts that first-order importance is measured on")] = 256

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-317 when first-order importance has no labelled data."""
        if self.by == "first-order":
            labelled(given)

    def apply(self, editor: Editor, given: Given) -> None:
        """Choose on the model as it is, then cut."""
        found = editor.anatomy().stacks
        scores = self._scores(editor, given, found)
        for stack in found:
            for cross in (False, True):
                attentions = _attentions(stack, cross)
                if not attentions:
                    continue
                ranked = [scores[one.path] for one in attentions]
                if attentions[0].tied:  # one choice for all layers, by the sum of their scores
                    ranked = [torch.stack(ranked).sum(dim=0)] * len(ranked)
                heads = choose(ranked, self.ratio, across="layer" if attentions[0].tied else self.across)
                if any(len(kept) < one.kv_heads for kept, one in zip(heads, attentions, strict=True)):
                    editor.apply(edits.KeepHeads(stack=stack.name, heads=heads, cross=cross))

    def _scores(self, editor: Editor, given: Given, stacks: tuple[Stack, ...]) -> dict[str, Tensor]:
        every = [one for stack in stacks for cross in (False, True) for one in _attentions(stack, cross)]
        if self.by == "magnitude":
            return {one.path: head_magnitude(one) for one in every}
        return first_order_scores(editor, given, {one.path: (one.o, one.kv_heads) for one in every}, self.samples)


def _attentions(stack: Stack, cross: bool) -> list[Attention]:
    found = [block.cross if cross else block.attention for block in stack.blocks]
    return [one for one in found if one is not None]
