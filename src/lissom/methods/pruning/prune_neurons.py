"""Remove the intermediate neurons that matter least: rows of up (and gate) and columns of down go for good.

Source: Molchanov et al. 2017, "Pruning convolutional neural networks for resource efficient inference", eq. 8, for
the first-order score; McCarley et al. 2019 for feed-forward layers of BERT.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from lissom import edits
from lissom.anatomy import Stack
from lissom.edits import Editor
from lissom.methods.base import Given
from lissom.methods.pruning.structured import NEEDS, StructuredPruning, choose, scores
from lissom.stats.importance import neuron_magnitude


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneNeurons(StructuredPruning):
    """Remove the share `ratio` of the intermediate neurons."""

    name: ClassVar[str] = "prune_neurons"
    speed: ClassVar[str] = "faster in every runtime, in proportion to the feed-forward work removed"
    source: ClassVar[str] = "Molchanov et al. 2017, eq. 8; McCarley et al. 2019"

    by: Annotated[
        Literal["magnitude", "output", "first-order", "fisher"], Field(description=f"how units are ranked; {NEEDS}")
    ] = "magnitude"

    def apply(self, editor: Editor, given: Given) -> None:
        """Choose on the model as it is, then cut."""
        found = editor.anatomy().stacks
        ranked = self._scores(editor, given, found)
        cuts: list[edits.KeepNeurons] = []
        kept: dict[str, tuple[int, tuple[int, ...]]] = {}
        for stack in found:
            neurons = choose([ranked[block.path] for block in stack.blocks], self.ratio, across=self.across)
            fewer = {
                block.ffn.down.path: (block.ffn.width, stay)
                for block, stay in zip(stack.blocks, neurons, strict=True)
                if len(stay) < block.ffn.width
            }
            if fewer:
                kept.update(fewer)
                cuts.append(edits.KeepNeurons(stack=stack.name, neurons=neurons))
        self.fit(editor, given, kept)
        for cut in cuts:
            editor.apply(cut)

    def _scores(self, editor: Editor, given: Given, stacks: tuple[Stack, ...]) -> dict[str, Tensor]:
        blocks = [block for stack in stacks for block in stack.blocks]
        if self.by == "magnitude":
            return {block.path: neuron_magnitude(block.ffn) for block in blocks}
        slots = {block.path: (block.ffn.down, block.ffn.width) for block in blocks}
        return scores(self.by, editor, given, slots, self.samples)
