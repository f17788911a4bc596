"""Keep the keys and values of earlier tokens in few bits while a language model generates.

The weights stay as they are. Keys are rounded in groups of tokens, channel by channel, for their outliers stay in the
same channels; values in groups of channels, token by token. A prompt is read without rounding, and the last tokens
always stay whole. It takes no data.
Source: Liu et al. 2024, "KIVI: a tuning-free asymmetric 2bit quantization for KV cache", section 3.2 and algorithm 1.
Deviation: keys and values are packed in the same steps of `group` tokens, so that both keep the last `residual` tokens
whole; the paper packs keys `residual` at a time, down to none, and values one by one.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from lissom import edits
from lissom.anatomy import Anatomy
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class KvCache(Method):
    """Store what a generating model remembers of a text in few bits."""

    name: ClassVar[str] = "kv_cache"
    stage: ClassVar[Stage] = Stage.BITS
    speed: ClassVar[str] = (
        "saves memory while it generates, the more the longer the text; it is not faster: on a CPU each token takes "
        "longer, because what is packed is decoded anew, and the files stay as large as they were; "
        "quality is measured without it, because a text is then read in one go"
    )
    source: ClassVar[str] = "Liu et al. 2024, KIVI, section 3.2 and algorithm 1"

    bits: Annotated[Literal[2, 4, 8], Field(description="bits a value")] = 4
    group: Annotated[
        Literal[16, 32, 64, 128],
        Field(description="tokens of a channel (keys), or channels of a token (values), that share a scale"),
    ] = 64
    residual: Annotated[int, Field(ge=0, le=65_536, description="last tokens that stay as they are")] = 128

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-715 for a model that keeps no cache that could be packed."""
        from transformers import DynamicCache

        from lissom.edits.cache_layer import pack_layers

        model: Any = anatomy.model
        name, remedy = type(model).__name__, "Leave kv_cache out."
        if not model.can_generate():
            raise LissomError(715, f"{name} does not generate, and keeps nothing of earlier tokens", remedy=remedy)
        if not pack_layers(DynamicCache(config=model.config), bits=self.bits, group=self.group, residual=self.residual):
            raise LissomError(715, f"{name} keeps a window of tokens, which does not grow", remedy=remedy)

    def apply(self, editor: Editor, given: Given) -> dict[str, Any]:
        """Set it; it acts when the model generates, reloaded too. Says that quality is measured without it."""
        editor.apply(edits.PackCache(bits=self.bits, group=self.group, residual=self.residual))
        return {"quality": "as measured is that without the packed cache, which acts only while the model generates"}
