"""Remove the attention heads that matter least: rows of q, k and v and columns of o go for good.

Source: Michel et al. 2019, "Are sixteen heads really better than one?", eq. 3; Voita et al. 2019, "Analyzing multi-head
self-attention", section 5.1, for attention. Ours cuts once, not head by head, and with grouped queries a key/value head
goes together with its query heads.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from lissom import edits
from lissom.anatomy import Attention, Stack
from lissom.edits import Editor
from lissom.methods.base import Given
from lissom.methods.pruning.structured import StructuredPruning, choose, scores
from lissom.stats.importance import attention_mass, head_magnitude


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneHeads(StructuredPruning):
    """Remove the share `ratio` of the attention heads, self- and cross-attention alike."""

    name: ClassVar[str] = "prune_heads"
    speed: ClassVar[str] = "faster in every runtime, but attention is the smaller part of the work for short texts"
    source: ClassVar[str] = "Michel et al. 2019, eq. 3"

    def apply(self, editor: Editor, given: Given) -> None:
        """Choose on the model as it is, then cut."""
        found = editor.anatomy().stacks
        importance = self._scores(editor, given, found)
        cuts: list[edits.KeepHeads] = []
        kept: dict[str, tuple[int, tuple[int, ...]]] = {}
        for stack in found:
            for cross in (False, True):
                attentions = _attentions(stack, cross)
                if not attentions:
                    continue
                ranked = [importance[one.path] for one in attentions]
                if attentions[0].tied:  # one choice for all layers, by the sum of their scores
                    ranked = [torch.stack(ranked).sum(dim=0)] * len(ranked)
                heads = choose(ranked, self.ratio, across="layer" if attentions[0].tied else self.across)
                fewer = {
                    one.o.path: (one.kv_heads, stay)
                    for one, stay in zip(attentions, heads, strict=True)
                    if len(stay) < one.kv_heads
                }
                if fewer:
                    kept.update(fewer)
                    cuts.append(edits.KeepHeads(stack=stack.name, heads=heads, cross=cross))
        self.fit(editor, given, kept)
        for cut in cuts:
            editor.apply(cut)

    def _scores(self, editor: Editor, given: Given, stacks: tuple[Stack, ...]) -> dict[str, Tensor]:
        every = [one for stack in stacks for cross in (False, True) for one in _attentions(stack, cross)]
        if self.by == "magnitude":
            return {one.path: head_magnitude(one) for one in every}
        if self.by == "attention":
            return attention_mass(editor.model, stacks, given.calibration(editor.model, self.samples))
        return scores(self.by, editor, given, {one.path: (one.o, one.kv_heads) for one in every}, self.samples)


def _attentions(stack: Stack, cross: bool) -> list[Attention]:
    found = [block.cross if cross else block.attention for block in stack.blocks]
    return [one for one in found if one is not None]
