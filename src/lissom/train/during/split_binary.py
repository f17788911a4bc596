"""Splitting: each ternary weight becomes the sum of two binary ones, which are then trained further and packed.

The weights at the beginning are those that were trained as ternary ones (`fake_quant` with `pack: false`). They are
split so that the two binary matrices compute exactly what the ternary one did (formulas in `lissom.nn.fake_levels`),
and both are trained. A map ends as two bits a weight, of which each is a sign with a scale of its own; the token table
stays ternary, which takes the same two bits.
Source: Bai et al. 2021 (BinaryBERT), section 3. Differs: the paper lays the halves beside each other as a model of
twice the width, where here they are two planes of one map, which is the same sum; it splits the token table too; inputs
of 8 bits have the range of the batch, as they run, and those of 4 bits a trained scale and shift.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field

from lissom import edits
from lissom.anatomy import Slot, is_transposed, token_table
from lissom.nn.fake_levels import FakePlanes, split_ternary
from lissom.nn.fake_quant import FakeWeight, quantize, round_input
from lissom.nn.low_bit import pack_codes
from lissom.train.during.base import Acting, During
from lissom.train.during.input_levels import InputLevels
from lissom.train.during.weights import original, trained, transform, untransform

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from lissom.edits import Editor

_FOUR_BITS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitBinary(During):
    """Splits ternary weights into two binary ones, trains both, and packs them at the end."""

    name: ClassVar[str] = "split_binary"
    source: ClassVar[str] = "Bai et al. 2021 (BinaryBERT), section 3"
    speed: ClassVar[str] = "no faster: it saves space on disk, and computes with two int8 products for one"
    order: ClassVar[int] = 80
    differentiable: ClassVar[bool] = False
    alone: ClassVar[bool] = True

    scales: Annotated[
        Literal["row", "matrix"],
        Field(description="how many a binary matrix has, one a row or one; as the ternary weights had."),
    ] = "row"
    activations: Annotated[
        Literal["int8", "int4", "none"],
        Field(description="inputs are rounded to 8 bits by their range, or to 4 by a trained scale; or neither."),
    ] = "int8"
    embeddings: Annotated[bool, Field(description="also the token table, which stays ternary.")] = True

    @property
    def packs(self) -> bool:
        """Always: nothing can be trained afterwards."""
        return True

    def begin(self, editor: Editor, teacher: PreTrainedModel | None) -> Acting:
        """Split the weights, and put a quantizer on each weight and on each input."""
        return _Splitting(editor, self)

    def planes(self, module: nn.Module, weight: Tensor) -> FakePlanes:
        """Leaves the first half in `weight`, and gives what adds the second one."""
        transposed, by_row = is_transposed(module), self.scales == "row"
        rows = weight.detach().t() if transposed else weight.detach()
        first, second = (one.t() if transposed else one for one in split_ternary(rows.float(), by_row=by_row))
        with torch.no_grad():
            weight.copy_(first)
        return FakePlanes(second.contiguous(), by_row=by_row, transposed=transposed)


class _Splitting(Acting):
    """kept: module -> codes and scales of its planes, or of the table, when they were baked."""

    def __init__(self, editor: Editor, options: SplitBinary) -> None:
        self.options, self.model = options, editor.model
        self.linears = [slot.module for slot in trained(editor.anatomy())]
        path = token_table(editor.model) if options.embeddings else None
        self.tables = [] if path is None else [editor.model.get_submodule(path)]
        self.made = cast("list[FakePlanes]", transform(self.linears, options.planes))
        self.coded = transform(self.tables, lambda _module, _weight: FakeWeight("ternary"))
        four = options.activations == "int4"
        self.levels = InputLevels(self.linears, _FOUR_BITS) if four else None
        rounded = self.linears if options.activations == "int8" else []
        self.handles = [one.register_forward_pre_hook(round_input) for one in rounded]
        self.kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def bake(self) -> None:
        for module in self.linears:
            planes = next(one for one in cast("Any", module).parametrizations.weight if one in self.made)
            self.kept[module] = planes.planes(original(module))
        for table in self.tables:
            self.kept[table] = quantize(original(table).detach().float(), "ternary")
        self._hooks_out()
        untransform(self.model, [*self.made, *self.coded], bake=True)
        self.made, self.coded = [], []

    def remove(self) -> None:
        """The halves are added up again, which gives the weights as they were before."""
        self._hooks_out()
        for one in self.made:
            one.on = False
        untransform(self.model, self.made, bake=True)
        untransform(self.model, self.coded, bake=False)

    def _hooks_out(self) -> None:
        for handle in self.handles:
            handle.remove()
        if self.levels is not None:
            self.levels.remove()

    def end(self, editor: Editor) -> None:
        """Pack the planes of the maps, and the table."""
        tensors: dict[str, Tensor] = {}
        paths: list[str] = []
        for slot in trained(editor.anatomy()):
            codes, scale = self.kept[slot.module]
            paths.append(slot.path)
            tensors |= {f"{slot.path}.weight": pack_codes(codes, 1), f"{slot.path}.weight_scale": scale}
            if self.levels is not None:
                tensors |= self.levels.stored(slot.path, slot.module)
        bits, rounds = (None if self.levels is None else _FOUR_BITS), self.options.activations == "int8"
        editor.apply(edits.PackBinary(planes=2, linears=tuple(paths), rounds=rounds, bits=bits), tensors)
        for table in self.tables:
            pack_table(editor, table, *self.kept[table], bits=2)


def pack_table(editor: Editor, table: nn.Module, codes: Tensor, scale: Tensor, *, bits: Literal[1, 2]) -> None:
    """Store the token table in `bits` bits. codes: (rows, columns).  scale: (rows,)."""
    slot = next(Slot(editor.model, name) for name, one in editor.model.named_modules() if one is table)
    made = {f"{slot.path}.weight": pack_codes(codes, bits), f"{slot.path}.weight_scale": scale}
    editor.apply(edits.PackBits(bits=bits, embeddings=(slot.path,)), made)
