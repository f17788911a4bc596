"""The edit that ties the two stacks of an encoder-decoder model."""

from __future__ import annotations

import dataclasses

from torch import nn

from lissom.anatomy import dissect
from lissom.anatomy.parts import Block
from lissom.edits.depth import KeepLayers, share
from lissom.edits.edit import EDIT_MISFIT, Edit
from lissom.errors import LissomError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShareStacks(Edit):
    """Let decoder layers use the linear maps of encoder layers: self-attention and feed-forward. Stored once.

    Norms, position biases and, unless `cross`, the attention to the encoder stay the decoder's own.
    source: for each decoder block the number of the encoder block whose maps it uses.
    cross: whether its attention to the encoder uses the maps of its self-attention too.
    """

    source: tuple[int, ...]
    cross: bool = False

    def apply(self, model: nn.Module) -> None:
        """Tie the tensors; the encoder's are the ones that stay."""
        anatomy = dissect(model)
        encoder, decoder = anatomy.stack("encoder"), anatomy.stack("decoder")
        count = len(encoder.blocks)
        if len(self.source) != len(decoder.blocks) or not all(0 <= one < count for one in self.source):
            cause = f"source {list(self.source)} does not name, for each of the {len(decoder.blocks)} decoder blocks, "
            raise LissomError(EDIT_MISFIT, f"{cause}one of the {count} encoder blocks", place=decoder.path)
        self.settle(model)

    def settle(self, model: nn.Module, later: tuple[Edit, ...] = ()) -> None:
        """Point decoder blocks at their encoder block; where that is gone, at the first that used the same one."""
        anatomy = dissect(model)
        encoder, decoder = anatomy.stack("encoder"), anatomy.stack("decoder")
        source, places = list(self.source), {one: one for one in self.source}
        for edit in later:
            if isinstance(edit, KeepLayers) and edit.stack == "decoder":
                source = [source[i] for i in edit.keep]
            elif isinstance(edit, KeepLayers):
                places = {one: edit.keep.index(now) for one, now in places.items() if now in edit.keep}
        for block, one in zip(decoder.blocks, source, strict=True):
            home = encoder.blocks[places[one]] if one in places else decoder.blocks[source.index(one)]
            if home is not block:
                _tie(model, tied_paths(home), tied_paths(block))
            if self.cross and block.cross is not None:
                own = [slot.path for slot in block.attention.slots()]
                _tie(model, own, [slot.path for slot in block.cross.slots()])


def tied_paths(block: Block) -> list[str]:
    """The linear maps of a block that both stacks have, in a fixed order."""
    return list(dict.fromkeys(slot.path for slot in (*block.attention.slots(), *block.ffn.slots())))


def _tie(model: nn.Module, theirs: list[str], own: list[str]) -> None:
    for source, target in zip(theirs, own, strict=True):
        share(model.get_submodule(source), model.get_submodule(target), target)
