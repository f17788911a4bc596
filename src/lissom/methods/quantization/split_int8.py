"""Store linear maps as int8, but for the columns whose inputs are far larger than the others.

A column of a map is kept in floating point where one of its inputs reaches the threshold in magnitude on some text. The
rest has one scale a row, and inputs are rounded while the model runs, with one scale a token.
Source: Dettmers et al. 2022, "LLM.int8()", section 3. The paper looks for the columns in each batch anew, and keeps all
weights as int8; here they are found once, on calibration texts.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lissom import edits
from lissom.anatomy import Anatomy, Slot
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Need, Stage
from lissom.nn import Int8Linear, LowRankLinear
from lissom.nn.split import split
from lissom.stats.batches import calibration_batches


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitInt8(Method):
    """Pack every linear map in the blocks to int8, outlying columns apart."""

    name: ClassVar[str] = "split_int8"
    stage: ClassVar[Stage] = Stage.BITS
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    speed: ClassVar[str] = "not faster: whole numbers are multiplied in float32; it only saves space"
    source: ClassVar[str] = "Dettmers et al. 2022, section 3"

    threshold: Annotated[
        float, Field(gt=0, description="magnitude of an input from which its column stays in floating point")
    ] = 6.0
    samples: Annotated[int, Field(ge=1, le=100_000, description="texts on which columns are looked for")] = 128

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-317 when there is nothing to calibrate on."""
        if given.data is None or given.tokenizer is None:
            raise LissomError(317, "split_int8 looks for outlying inputs on texts", remedy="Give --data.")

    def apply(self, editor: Editor, given: Given) -> None:
        """Run the texts, then pack."""
        maps = _maps(editor)
        largest = self._largest(editor, given, maps)
        tensors: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        for path, slot in maps.items():
            weight = slot.weight.detach().float()
            if not bool(torch.isfinite(weight).all()):
                raise LissomError(901, "the weight holds NaN or infinity and cannot be quantized", place=path)
            columns = (largest[path] >= self.threshold).nonzero().flatten() if path in largest else torch.tensor([])
            counts[path] = len(columns)
            tensors |= {f"{path}.{name}": one for name, one in split(weight, columns.long().to(weight.device)).items()}
        if counts:
            editor.apply(edits.PackSplit(columns=counts), tensors)

    def preview(self, editor: Editor, given: Given) -> None:
        """The same structure, as if no input were outlying."""
        if maps := _maps(editor):
            editor.apply(edits.PackSplit(columns=dict.fromkeys(maps, 0)))

    def _largest(self, editor: Editor, given: Given, maps: dict[str, Slot]) -> dict[str, Tensor]:
        """Path -> the largest magnitude of each input, (in,), over all tokens; none of a map that no text reaches."""
        found: dict[str, Tensor] = {}

        def note(path: str, x: Tensor) -> None:
            now = x.detach().float().abs().reshape(-1, x.shape[-1])
            if not bool(torch.isfinite(now).all()):
                raise LissomError(901, "an input holds NaN or infinity on a calibration text", place=path)
            top = now.amax(0) if len(now) else now.new_zeros(x.shape[-1])
            found[path] = torch.maximum(found[path], top) if path in found else top

        if given.data is None or given.tokenizer is None:
            self.check(editor.anatomy(), given)
            return found
        hooks = [slot.watch(lambda x, _, path=path: note(path, x)) for path, slot in maps.items()]  # type: ignore[misc]
        try:
            with torch.no_grad():
                for batch in calibration_batches(
                    given.data,
                    given.tokenizer,
                    samples=self.samples,
                    max_length=given.max_length,
                    seed=given.seed,
                    device=given.device,
                ):
                    editor.model(**batch)
        finally:
            for hook in hooks:
                hook.remove()
        return found


def _maps(editor: Editor) -> dict[str, Slot]:
    """Path -> each map to pack: of a low-rank one its two factors, none that is packed."""
    found: dict[str, Slot] = {}
    for slot in editor.anatomy().linears():
        thin = isinstance(slot.module, LowRankLinear)
        parts = [Slot(editor.model, f"{slot.path}.{name}") for name in ("down", "up")] if thin else [slot]
        found |= {part.path: part for part in parts if not isinstance(part.module, Int8Linear)}
    return found
