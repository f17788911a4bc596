"""Product quantization with Quant-Noise: sub-vectors are left out while weights are trained, then tables replace them.

Before the share `start` of the run every linear map in the blocks, and the token table, is used with a share `noise` of
its sub-vectors zero. Then, iteratively, the feed-forward maps, the token table and the attention maps are replaced in
turn, each a third of the rest of the run after the other, by numbers into tables of 256 vectors; which one a sub-vector
has stays, and the vectors are trained on with what is not replaced yet, which keeps its noise. Formulas in
`lissom.nn.vectors`. At the end numbers and tables are packed (`lissom.nn.palette`).
Sources: Fan et al. 2021 (Quant-Noise), sections 3.2 and 4.2; Stock et al. 2020, section 3.3 (iterative, trained).
Differs: a table for each matrix; AdamW where they have SGD for the vectors; no table of 8-bit vectors.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field

from lissom import edits
from lissom.anatomy import Slot, is_transposed, token_table
from lissom.errors import LissomError
from lissom.nn.palette import pack_indices
from lissom.nn.vectors import FakeVectors, indexed
from lissom.stats.finite import finite_weight
from lissom.train.during.base import Acting, During
from lissom.train.during.weights import original, trained, transform, untransform

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from lissom.anatomy import Anatomy
    from lissom.edits import Editor

_BITS: Literal[8] = 8
Vector = Literal[2, 4, 8]
_Share = Annotated[float, Field(ge=0, lt=1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProductQuant(During):
    """Trains with sub-vectors left out, then replaces them by numbers into trained tables of 256 vectors."""

    name: ClassVar[str] = "product_quant"
    source: ClassVar[str] = "Fan et al. 2021 (Quant-Noise), sections 3.2 and 4.2; Stock et al. 2020, section 3.3"
    speed: ClassVar[str] = "not faster: weights are decoded to float before use, so it only saves space on disk"
    order: ClassVar[int] = 80

    vector: Annotated[
        Vector, Field(description="columns of a sub-vector of feed-forward maps and the token table: 8/vector bits.")
    ] = 8
    attention: Annotated[Vector, Field(description="the same of attention maps.")] = 4
    noise: Annotated[
        _Share, Field(description="share of the sub-vectors that is zero in a step, drawn anew, until the tables come.")
    ] = 0.1
    start: Annotated[_Share, Field(description="share of the run after which the first maps get their tables.")] = 0.5
    embeddings: Annotated[bool, Field(description="also the token table.")] = True

    @property
    def packs(self) -> bool:
        """Always: nothing can be trained afterwards."""
        return True

    def check(self, anatomy: Anatomy, teacher: PreTrainedModel | None) -> None:
        """Raises LSM-318 where vectors do not fill the columns of a matrix."""
        for path, columns, size in _sizes(anatomy, self):
            if columns % size:
                cause = f"vectors of {size} do not fill {columns} columns"
                raise LissomError(318, cause, place=path, remedy="Choose smaller ones.")

    def begin(self, editor: Editor, teacher: PreTrainedModel | None) -> Acting:
        """Put the noise, and later the table, on each weight."""
        return _Replacing(editor, self)


def _groups(anatomy: Anatomy, options: ProductQuant) -> list[tuple[Vector, list[Slot]]]:
    """What gets its tables together, in turn, with the size of its vectors."""
    blocks = [block for stack in anatomy.stacks for block in stack.blocks]
    wide = tuple(slot.path for block in blocks for slot in block.ffn.slots())
    every = list(trained(anatomy))
    ffn = [slot for slot in every if slot.path in wide or slot.path.rpartition(".")[0] in wide]
    paths = {slot.path for slot in ffn}
    table = token_table(cast("PreTrainedModel", anatomy.model)) if options.embeddings else None
    found: list[tuple[Vector, list[Slot]]] = [
        (options.vector, ffn),
        (options.vector, [] if table is None else [Slot(anatomy.model, table)]),
        (options.attention, [slot for slot in every if slot.path not in paths]),
    ]
    return [(size, slots) for size, slots in found if slots]


def _sizes(anatomy: Anatomy, options: ProductQuant) -> list[tuple[str, int, int]]:
    """Path, columns and size of a vector of each weight."""
    return [(slot.path, slot.weight.shape[1], size) for size, slots in _groups(anatomy, options) for slot in slots]


class _Replacing(Acting):
    """quantizers: of each module, shared weights have one.  turns: when each gets its table, as a share of the run."""

    def __init__(self, editor: Editor, options: ProductQuant) -> None:
        self.options, self.model = options, editor.model
        groups = _groups(editor.anatomy(), options)
        sizes = {slot.module: size for size, slots in groups for slot in slots}
        self.tables = [one for one in sizes if isinstance(one, torch.nn.Embedding)]

        def make(module: nn.Module, weight: Tensor) -> FakeVectors:
            return FakeVectors(weight, sizes[module], count=2**_BITS, transposed=is_transposed(module))

        self.made = cast("list[FakeVectors]", transform(sizes, make))
        ours = {id(one) for one in self.made}
        chains = {one: list(cast("Any", one).parametrizations.weight) for one in sizes}
        self.quantizers = {one: next(it for it in chain if id(it) in ours) for one, chain in chains.items()}
        share = (1 - options.start) / len(groups)
        self.turns = {
            slot.module: options.start + number * share for number, (_, slots) in enumerate(groups) for slot in slots
        }
        self.at(0.0)

    def at(self, progress: float) -> None:
        self.progress = progress
        for module, quantizer in self.quantizers.items():
            quantizer.noise = self.options.noise
            if progress >= self.turns[module]:
                quantizer.fix(original(module))

    @property
    def settled(self) -> bool:
        return self.progress >= max(self.turns.values())

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": [one.table for one in self.made]}]

    def bake(self) -> None:
        for module, quantizer in self.quantizers.items():
            quantizer.train(False).fix(original(module))
        untransform(self.model, self.made, bake=True)

    def remove(self) -> None:
        untransform(self.model, self.made, bake=False)

    def end(self, editor: Editor) -> None:
        """Pack the maps and tables that the model has by now."""
        anatomy = editor.anatomy()
        for size, slots in _groups(anatomy, self.options):
            tensors: dict[str, Tensor] = {}
            for slot in slots:
                index, table = self._stored(slot, size)
                tensors[f"{slot.path}.weight"] = pack_indices(index, _BITS)
                tensors[f"{slot.path}.weight_table"] = table
                tensors[f"{slot.path}.weight_outliers"] = torch.zeros(0)
                tensors[f"{slot.path}.weight_positions"] = torch.zeros(0, dtype=torch.int32)
            tables = tuple(slot.path for slot in slots if slot.module in self.tables)
            linears = tuple(slot.path for slot in slots if slot.module not in self.tables)
            edit = edits.Palette(bits=_BITS, vector=size, linears=linears, embeddings=tables)
            editor.apply(edit, tensors)

    def _stored(self, slot: Slot, size: int) -> tuple[Tensor, Tensor]:
        """Numbers and table of a weight that was baked; found anew where it has changed since."""
        weight, quantizer = finite_weight(slot.weight, slot.path), self.quantizers.get(slot.module)
        if quantizer is not None:
            index, table = quantizer.index.long(), quantizer.table.detach()
            if table[index].numel() == weight.numel() and torch.equal(table[index].reshape(weight.shape), weight):
                return index, table
        return indexed(weight, size, 2**_BITS)
