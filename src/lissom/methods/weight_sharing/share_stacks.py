"""Let the decoder use the maps of the encoder: about half of the weights of the layers, the same executed layers.

Source: Xia et al. 2019, "Tied Transformers: Neural Machine Translation with Shared Encoder and Decoder", section 3:
layer i of both has the same self-attention and feed-forward maps; the attention to the encoder has its own, or those
of self-attention. Differs: starts from a model whose stacks are not tied yet, norms stay the decoder's own, and stacks
of different depth are tied too, decoder layer i of N to encoder layer i · M / N of M.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lissom import edits
from lissom.anatomy import Anatomy
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShareStacks(Method):
    """Tie each decoder layer to an encoder layer."""

    name: ClassVar[str] = "share_stacks"
    stage: ClassVar[Stage] = Stage.SHARE
    speed: ClassVar[str] = "not faster: both stacks are executed as before; smaller on disk and in memory"
    source: ClassVar[str] = "Xia et al. 2019, section 3"

    cross: Annotated[
        Literal["separate", "self"],
        Field(description="maps of the attention to the encoder: its own, or those of self-attention"),
    ] = "separate"
    start: Annotated[
        Literal["encoder", "average"],
        Field(description="values of shared maps: the encoder's, or the mean over the layers that will use them"),
    ] = "encoder"

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-715 for a model without an encoder and a decoder."""
        if {one.name for one in anatomy.stacks} != {"encoder", "decoder"}:
            cause = f"{type(anatomy.model).__name__} has no encoder and decoder to tie"
            raise LissomError(715, cause, remedy="Share layers of its one stack: share_layers.")

    def apply(self, editor: Editor, given: Given) -> None:
        """Choose the values, then tie."""
        anatomy = editor.anatomy()
        self.check(anatomy, given)
        layers, users = (len(anatomy.stack(name).blocks) for name in ("encoder", "decoder"))
        edit = edits.ShareStacks(source=tuple(i * layers // users for i in range(users)), cross=self.cross == "self")
        editor.apply(edit, self._means(anatomy, edit) if self.start == "average" else {})

    def _means(self, anatomy: Anatomy, edit: edits.ShareStacks) -> dict[str, Tensor]:
        """Full name in each encoder layer that is used -> mean over it and the layers that will use it."""
        encoder, decoder = anatomy.stack("encoder").blocks, anatomy.stack("decoder").blocks
        found: dict[str, Tensor] = {}
        for root in dict.fromkeys(edit.source):
            users = [block for block, one in zip(decoder, edit.source, strict=True) if one == root]
            paths = [edits.tied_paths(block) for block in (encoder[root], *users)]
            if edit.cross:
                own = [slot.path for slot in encoder[root].attention.slots()]
                more = [[slot.path for slot in block.cross.slots()] for block in users if block.cross is not None]
                paths += [one + [""] * (len(paths[0]) - len(dict.fromkeys(own))) for one in more]
            for number, path in enumerate(paths[0]):
                states = [anatomy.model.get_submodule(one[number]).state_dict() for one in paths if one[number]]
                for name, value in states[0].items():
                    if value.is_floating_point():
                        found[f"{path}.{name}"] = torch.stack([one[name] for one in states if name in one]).mean(dim=0)
        return found
