"""Keep every number in 16 bits: bfloat16 or float16.

Sources: Kalamkar et al. 2019, "A study of BFLOAT16 for deep learning training"; IEEE 754-2008, binary16.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Stage

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Half(Method):
    """Round all weights that are floating point to 16 bits; packed ones and their scales stay as they are."""

    name: ClassVar[str] = "half"
    stage: ClassVar[Stage] = Stage.BITS
    speed: ClassVar[str] = (
        "bf16 is faster in torch on CPUs with AVX-512 BF16 or AMX and on GPUs, except for single short texts, and fp16 "
        "on GPUs; elsewhere, and in ONNX Runtime, they run in float32 or slower: they save space"
    )
    source: ClassVar[str] = "Kalamkar et al. 2019; IEEE 754-2008"

    kind: Annotated[
        Literal["bf16", "fp16"],
        Field(description="bf16 keeps the range of float32 and 8 bits of precision, fp16 11 bits up to 65,504"),
    ] = "bf16"

    def apply(self, editor: Editor, given: Given) -> None:
        """Convert the model. Raises LissomError LSM-901 for a weight that is infinite in 16 bits, or is so already."""
        dtype = _DTYPES[self.kind]
        for name, one in editor.model.named_parameters():
            if not bool(torch.isfinite(one.to(dtype)).all()):
                cause = f"a weight of magnitude {one.abs().max().item():.3g} has no finite value in {self.kind}"
                raise LissomError(901, cause, place=name, remedy="Use kind: bf16, or mend the model.")
        implied = [
            (module, name, module.get_buffer(name))
            for module in editor.model.modules()
            for name in module._non_persistent_buffers_set
        ]
        nn.Module.to(editor.model, dtype)
        for module, name, exact in implied:  # rotary frequencies are computed anew on loading, and in float32
            module._buffers[name] = exact
