"""Bits that are searched for: groups of rows of each matrix choose among 8, 4, 2 and no bits while it is trained.

The rows of each linear map in the blocks are cut into `groups`. In the first part of the run each group is used as a
mixture of its four forms, p = softmax((a + g) / T), g from Gumbel's distribution and drawn for each batch. The weights
learn from the training rows, the numbers a from the loss of the student on rows that are kept back, by turns:

    a <- AdamW( ∇_a [ loss on kept rows + penalty · max(0, E[bits a weight] / bits - 1) ] )

At the share `search` of the run each group takes its likeliest bits, no bits meaning that its rows are zero, and the
weights are trained on so. Inputs are rounded to 8 bits by the range of the batch, and the token table to 8 bits. At the
end every row is packed in the bits that it has.
Source: Zhao et al. 2021, "Automatic mixed-precision quantization search of BERT" (AQ-BERT), section 3.
Differs: the gradient of a is that at the weights as they are (first order), where the paper looks one step ahead; two
bits are ternary; groups go down further until `bits` a weight are met, where the paper leaves the size to the penalty.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field

from lissom import edits
from lissom.anatomy import is_transposed, token_table
from lissom.nn.fake_quant import FakeWeight, quantize, round_input
from lissom.nn.mixed_bits import Choices, FakeMixed, Runs, fewest_bits, pack_runs, runs_of
from lissom.stats.finite import finite_weight
from lissom.train.during.base import Acting, During
from lissom.train.during.held import drawn
from lissom.train.during.weights import original, trained, transform, untransform
from lissom.train.ramp import Temperature, at

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from lissom.edits import Editor
    from lissom.train.engine import Engine


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchBits(During):
    """Groups of rows choose their bits in training, for `bits` a weight in the mean, and are packed so."""

    name: ClassVar[str] = "search_bits"
    source: ClassVar[str] = "Zhao et al. 2021 (AQ-BERT), section 3"
    speed: ClassVar[str] = (
        "with activations int8 faster on CPUs with AVX-512 VNNI, AMX or Arm dot products, else no faster; "
        "fewer bits than 8 save space on disk, and run as int8"
    )
    order: ClassVar[int] = 80
    labels: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False

    bits: Annotated[float, Field(gt=0, le=8, description="bits a weight of the linear maps, in the mean, at most.")] = (
        4.0
    )
    groups: Annotated[
        int, Field(ge=1, le=4096, description="groups of rows of each matrix, as equal as they can be.")
    ] = 12
    search: Annotated[
        float, Field(gt=0, lt=1, description="share of the run in which bits are searched; then they stay.")
    ] = 0.5
    kept: Annotated[float, Field(gt=0, lt=1, description="share of the training rows that the search alone sees.")] = (
        0.1
    )
    penalty: Annotated[float, Field(ge=0, description="weight of the bits that are too many.")] = 1.0
    temperature: Annotated[Temperature, Field(description="T of the mixture, or a ramp of it.")] = 1.0
    learning_rate: Annotated[float, Field(gt=0, le=10, description="of the choices, at its peak.")] = 2e-2
    activations: Annotated[
        Literal["int8", "none"], Field(description="inputs are rounded to 8 bits, and the packed model computes so.")
    ] = "int8"
    embeddings: Annotated[bool, Field(description="also the token table, in 8 bits.")] = True

    @property
    def packs(self) -> bool:
        """Always: nothing can be trained afterwards."""
        return True

    @property
    def held(self) -> float:
        """The rows that the search sees."""
        return self.kept

    def begin(self, editor: Editor, teacher: PreTrainedModel | None) -> Acting:
        """Put the mixture on each weight, and a quantizer on each input and the token table."""
        return _Searching(editor, self)


class _Searching(Acting):
    """choices: of all groups.  slope: the gradient of the kept rows' loss for them, at the batch at hand."""

    def __init__(self, editor: Editor, options: SearchBits) -> None:
        self.options, self.model, self.progress = options, editor.model, 0.0
        linears = [slot.module for slot in trained(editor.anatomy())]
        path = token_table(editor.model) if options.embeddings else None
        self.tables = [] if path is None else [editor.model.get_submodule(path)]
        self.slope: Tensor | None = None
        sizes = {id(original(one)): _sizes(one, options.groups) for one in linears}
        columns = {id(original(one)): original(one).numel() / sum(sizes[id(original(one))]) for one in linears}
        cost = torch.tensor([rows * columns[key] for key, own in sizes.items() for rows in own])
        self.choices = Choices((cost / cost.sum()).to(editor.model.device))
        self.taken = 0

        def make(module: nn.Module, tensor: Tensor) -> nn.Module:
            own = sizes[id(tensor)]
            which = slice(self.taken, self.taken + len(own))
            self.taken = which.stop
            return FakeMixed(self.choices, which, own, transposed=is_transposed(module))

        self.made = transform(linears, make) + transform(self.tables, lambda _module, _tensor: FakeWeight("int8"))
        rounded = linears if options.activations == "int8" else []
        self.handles = [one.register_forward_pre_hook(round_input) for one in rounded]
        self.at(0.0)

    def at(self, progress: float) -> None:
        self.progress = progress
        self.choices.temperature = at(self.options.temperature, progress)
        if self.settled:
            self.choices.fix(self.options.bits)

    @property
    def settled(self) -> bool:
        return self.progress >= self.options.search

    def before(self, engine: Engine, inputs: Mapping[str, Tensor]) -> None:
        self.slope = None
        if self.settled:
            return
        batch = drawn(engine, "search_bits", "the search")
        self.choices.draw()
        self.choices.live = True
        try:
            with engine.compute_loss_context_manager():
                loss: Tensor = engine.model(**batch)["loss"]
            (self.slope,) = torch.autograd.grad(loss, [self.choices.a])
        finally:
            self.choices.live = False
        self.choices.draw()

    def penalty(self) -> Tensor | None:
        if self.slope is None:
            return None
        a = self.choices.a
        likely = (a / self.choices.temperature).softmax(1)
        many = (self.choices.mean_bits(likely) / self.options.bits - 1).clamp_min(0)
        step = (self.slope * (a - a.detach())).sum()  # nothing, with the gradient `slope`
        return self.options.penalty * many + step

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.choices.a], "lr": self.options.learning_rate}]

    def bake(self) -> None:
        self.choices.fix(self.options.bits)
        for one in self.made:
            one.train(False)
        self._take_out(bake=True)

    def remove(self) -> None:
        self._take_out(bake=False)

    def _take_out(self, *, bake: bool) -> None:
        for handle in self.handles:
            handle.remove()
        untransform(self.model, self.made, bake=bake)

    def end(self, editor: Editor) -> None:
        """Pack the maps row by row, and the table as int8."""
        runs: dict[str, Runs] = {}
        tensors: dict[str, Tensor] = {}
        for slot in trained(editor.anatomy()):
            bits, codes, scale = fewest_bits(finite_weight(slot.weight, slot.path))
            runs[slot.path] = runs_of(bits)
            tensors[f"{slot.path}.weight"] = pack_runs(codes, runs[slot.path])
            tensors[f"{slot.path}.weight_scale"] = scale
        own = cast("Any", runs)
        editor.apply(edits.PackRows(runs=own, rounds=self.options.activations == "int8"), tensors)
        for path, module in list(editor.model.named_modules()):
            if module in self.tables:
                codes, scale = quantize(finite_weight(original(module), path), "int8")
                found = {f"{path}.weight": codes.to(torch.int8), f"{path}.weight_scale": scale}
                editor.apply(edits.Pack(embeddings=(path,)), found)


def _sizes(module: nn.Module, groups: int) -> list[int]:
    """Rows of each group."""
    weight = original(module)
    rows = weight.shape[1 if is_transposed(module) else 0]
    count = min(groups, rows)
    return [rows // count + (i < rows % count) for i in range(count)]
