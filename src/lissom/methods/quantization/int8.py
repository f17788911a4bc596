"""Store linear maps and the token table as int8 and compute with them as such.

Weights: symmetric, one scale an output channel (a table: a row), by the largest magnitude. Activations: quantized
while it runs, asymmetric, one scale a tensor, as ONNX Runtime's dynamic quantization does. No data is needed.
Sources: Jacob et al. 2018, section 2; Zafrir et al. 2019, "Q8BERT"; operator DynamicQuantizeLinear of ONNX.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from lissom import edits
from lissom.anatomy import Slot, token_table
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Stage
from lissom.nn import Int8Linear, LowRankLinear
from lissom.nn.int8 import quantize_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Int8(Method):
    """Pack every linear map in the blocks, and the token table, to int8."""

    name: ClassVar[str] = "int8"
    stage: ClassVar[Stage] = Stage.BITS
    speed: ClassVar[str] = "faster on CPUs with AVX-512 VNNI, AMX or Arm dot products; on others it only saves space"
    source: ClassVar[str] = "Jacob et al. 2018, section 2; Zafrir et al. 2019"

    mode: Annotated[
        Literal["dynamic"], Field(description="when activations are quantized: while it runs, by the range they have")
    ] = "dynamic"
    embeddings: Annotated[bool, Field(description="also the token table, often half of a small model's bytes")] = True

    def apply(self, editor: Editor, given: Given) -> None:
        """Quantize the weights and replace the modules."""
        slots = [one for whole in editor.anatomy().linears() for one in _plain(editor.model, whole)]
        tensors: dict[str, Tensor] = {}
        for slot in slots:
            _quantize(slot.weight, slot.path, tensors)
        table = token_table(editor.model) if self.embeddings else None
        if table is not None:
            _quantize(editor.model.get_submodule(table).weight, table, tensors)  # type: ignore[arg-type]
        linears = tuple(slot.path for slot in slots)
        if linears or table:
            editor.apply(edits.Pack(linears=linears, embeddings=(table,) if table else ()), tensors)


def _plain(model: PreTrainedModel, slot: Slot) -> list[Slot]:
    """The maps to pack: the slot itself, its two factors where it is of low rank, nothing where it is packed."""
    module = slot.module
    if isinstance(module, Int8Linear):
        return []
    if isinstance(module, LowRankLinear):
        parts = [Slot(model, f"{slot.path}.{name}") for name in ("down", "up")]
        return [part for part in parts if not isinstance(part.module, Int8Linear)]
    return [slot]


def _quantize(weight: Tensor, path: str, tensors: dict[str, Tensor]) -> None:
    try:
        tensors[f"{path}.weight"], tensors[f"{path}.weight_scale"] = quantize_rows(weight)
    except ValueError as error:
        raise LissomError(901, str(error), place=path) from error
