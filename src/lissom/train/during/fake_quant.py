"""Fake quantization: weights and inputs are rounded while they are trained, so that the model bears being packed.

Every linear map in the blocks computes with the weight that will be stored (formulas in `lissom.nn.fake_quant`) and
with its input rounded to 8 bits by the range of the batch, as int8 layers round it, or by a running range, which the
packed model keeps (`activations: running`, Prato et al. 2020, FullyQT); gradients go straight through. At
the end the codes that were trained are packed: int8 as by the method `int8`, fewer bits as in `lissom.nn.low_bit`.
Sources: Zafrir et al. 2019 (Q8BERT); Zhang et al. 2020 (TernaryBERT), section 3.1; Bai et al. 2021 (BinaryBERT) for its
binary weights, without the splitting of ternary ones; Esser et al. 2020 (LSQ), as Jin et al. 2021 (KDLSQ-BERT) use it
for weights; Tao et al. 2022 (QuantGPT), dynamic scaling; Fan et al. 2021 (Quant-Noise).
Differs: by default inputs have the range of the batch at hand, because that is what runs: Q8BERT keeps a moving average
of the largest value, KDLSQ-BERT learns their step. What is rounded are the linear maps of the layers, with their
inputs, and the token table: not pooler and head, the products of attention, norms, or the tables of positions and
types. Q8BERT and TernaryBERT have one scale a matrix (`scales: matrix`); here each row has its own by default, at 4
bytes a row.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field

from lissom import edits
from lissom.anatomy import Slot, is_transposed, token_table
from lissom.errors import LissomError
from lissom.nn.fake_quant import FakeWeight, Kind, LearnedFakeWeight, RunningRange, on_grid, quantize, rounded_input
from lissom.nn.low_bit import pack_codes
from lissom.stats.finite import finite_weight
from lissom.train.during.base import Acting, During
from lissom.train.during.weights import original, trained, transform, untransform
from lissom.train.ramp import Probability, at

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from lissom.anatomy import Anatomy
    from lissom.edits import Editor

_RANGE = "input_range"
_BITS: dict[Kind, Literal[1, 2, 4, 8]] = {"int8": 8, "int4": 4, "ternary": 2, "binary": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FakeQuant(During):
    """Rounds weights and inputs of the linear maps while they are trained, and packs them at the end."""

    name: ClassVar[str] = "fake_quant"
    source: ClassVar[str] = (
        "Zafrir et al. 2019 (Q8BERT); Zhang et al. 2020 (TernaryBERT); Esser et al. 2020 (LSQ); "
        "Tao et al. 2022 (QuantGPT); Fan et al. 2021 (Quant-Noise); Prato et al. 2020 (FullyQT)"
    )
    speed: ClassVar[str] = (
        "with activations int8 faster on CPUs with AVX-512 VNNI, AMX or Arm dot products, else no faster; "
        "fewer bits than 8 save space on disk, and run as int8"
    )
    order: ClassVar[int] = 80
    differentiable: ClassVar[bool] = False

    weights: Annotated[Kind, Field(description="what they are stored as: 8, 4, 2 or 1 bits each.")] = "int8"
    steps: Annotated[
        Literal["range", "learned", "relative"],
        Field(
            description="scales from the weights; or one trained a matrix (LSQ); or trained times mean|w| (QuantGPT)."
        ),
    ] = "range"
    scales: Annotated[
        Literal["row", "matrix"], Field(description="how many: one a row or one a matrix; a table has one a row.")
    ] = "row"
    activations: Annotated[
        Literal["int8", "running", "none"],
        Field(
            description="inputs are rounded to 8 bits by the range of the batch, or by a running one that is fixed at "
            "the end (weights int8 only), and the packed model computes so; or neither."
        ),
    ] = "int8"
    embeddings: Annotated[bool, Field(description="also the token table, in the bits of the weights.")] = True
    start: Annotated[float, Field(ge=0, lt=1, description="share of the run before which nothing is rounded.")] = 0.0
    noise: Annotated[
        Probability,
        Field(description="share of the weights that is rounded in a step, drawn anew (Quant-Noise); or a ramp."),
    ] = 1.0
    pack: Annotated[
        bool,
        Field(description="at the end; false leaves the weights unrounded, for a later step that rounds them anew."),
    ] = True

    @property
    def packs(self) -> bool:
        """Nothing can be trained after the weights were packed."""
        return self.pack

    @property
    def unpacked(self) -> bool:
        """Without `pack`."""
        return not self.pack

    def check(self, anatomy: Anatomy, teacher: PreTrainedModel | None) -> None:
        """Raises LSM-319 for binary weights with trained steps, and for fixed ranges of inputs with few bits."""
        if self.weights == "binary" and self.steps != "range":
            cause = "binary weights have no step to train: their scale is mean|w|"
            raise LissomError(319, cause, place="fake_quant.steps", remedy="Write steps: range.")
        if self.activations == "running" and self.weights != "int8":
            cause = f"fixed ranges of inputs are stored with int8 weights only, not with {self.weights}"
            raise LissomError(319, cause, place="fake_quant.activations", remedy="Write activations: int8.")

    def begin(self, editor: Editor, teacher: PreTrainedModel | None) -> Acting:
        """Put a quantizer on each weight and on each input."""
        return _Quantizing(editor, self)

    def quantizer(self, module: nn.Module, weight: Tensor) -> FakeWeight:
        """What stands between a stored weight and its use in `module`."""
        transposed = is_transposed(module)
        if self.steps == "range":
            by_row = self.scales == "row" or _is_table(module)
            return FakeWeight(self.weights, by_row=by_row, transposed=transposed)
        return LearnedFakeWeight(self.weights, weight, relative=self.steps == "relative", transposed=transposed)


def _is_table(module: nn.Module) -> bool:
    return isinstance(module, torch.nn.Embedding)


class _Quantizing(Acting):
    """quantizers: of each module; shared weights have one.

    kept: module -> the scales of its weight when it was baked, (rows,) or (1,). Other edits come between that and the
    packing; they move modules and cut them. Where rows were cut, those that are left tell their scale themselves.
    """

    def __init__(self, editor: Editor, options: FakeQuant) -> None:
        self.options, self.model = options, editor.model
        linears = [slot.module for slot in trained(editor.anatomy())]
        path = token_table(editor.model) if options.embeddings else None
        self.tables = [] if path is None else [editor.model.get_submodule(path)]
        self.made = cast("list[FakeWeight]", transform([*linears, *self.tables], options.quantizer))
        self.quantizers = {one: self._of(one) for one in (*linears, *self.tables)}
        self.kept: dict[nn.Module, Tensor] = {}
        self.ranges: dict[nn.Module, RunningRange] = {}
        if options.activations == "running":
            owners = {id(original(one)): RunningRange().to(original(one).device) for one in linears}
            for one in linears:  # shared weights share the fixed range as well
                self.ranges[one] = owners[id(original(one))]
                one.add_module(_RANGE, self.ranges[one])
        rounded = linears if options.activations != "none" else []
        self.handles = [one.register_forward_pre_hook(self._round) for one in rounded]
        self.at(0.0)

    def _of(self, module: nn.Module) -> FakeWeight:
        ours = {id(one) for one in self.made}
        chain: list[FakeWeight] = list(cast("Any", module).parametrizations.weight)
        return next(one for one in chain if id(one) in ours)

    def _round(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        running = self.ranges.get(module)
        if running is not None and module.training:
            running.follow(args[0])
        return ((running or rounded_input)(args[0]), *args[1:]) if self.settled else None

    def at(self, progress: float) -> None:
        self.progress = progress
        for one in self.made:
            one.on, one.noise = self.settled, at(self.options.noise, progress)
        for module, quantizer in self.quantizers.items():
            if isinstance(quantizer, LearnedFakeWeight) and not self.settled:
                quantizer.reset(original(module))  # the step suits the weights when rounding starts

    @property
    def settled(self) -> bool:
        return self.progress >= self.options.start

    def groups(self) -> list[dict[str, Any]]:
        steps = [one.step for one in self.made if isinstance(one, LearnedFakeWeight)]
        return [{"params": steps}] if steps else []

    def bake(self) -> None:
        if not self.options.pack:
            self.remove()
            return
        for one in self.made:
            one.train(False).on = True
        self.kept = {module: one.scales(original(module)) for module, one in self.quantizers.items()}
        self._take_out(bake=True)

    def remove(self) -> None:
        self._take_out(bake=False)

    def _take_out(self, *, bake: bool) -> None:
        for handle in self.handles:
            handle.remove()
        for module in self.ranges:
            module._modules.pop(_RANGE, None)
        untransform(self.model, self.made, bake=bake)

    def end(self, editor: Editor) -> None:
        """Pack the maps and tables that the model has by now."""
        if not self.options.pack:
            return
        tables = [Slot(editor.model, name) for name, one in editor.model.named_modules() if one in self.tables]
        places: dict[tuple[Literal[1, 2, 4, 8], bool, bool], dict[str, list[str]]] = {}
        tensors: dict[str, Tensor] = {}
        for field, slots in (("linears", trained(editor.anatomy())), ("embeddings", tables)):
            for slot in slots:
                codes, scale = self._codes(slot)
                bits = _BITS[self.options.weights]
                if bits == 1 and bool((codes == 0).any()):  # something made zeros of what was binary
                    bits = 2
                whole = bits == 8 and (self.options.activations != "none" or field == "embeddings")
                running = self.ranges.get(slot.module)
                if running is not None:
                    tensors[f"{slot.path}.input_scale"], tensors[f"{slot.path}.input_zero"] = running.grid()
                tensors[f"{slot.path}.weight"] = codes.to(torch.int8) if whole else pack_codes(codes, bits)
                tensors[f"{slot.path}.weight_scale"] = scale
                where = places.setdefault((bits, whole, running is not None), {})
                where.setdefault(field, []).append(slot.path)
        for (bits, whole, static), found in places.items():
            paths: dict[str, Any] = {field: tuple(one) for field, one in found.items()}
            rounds = self.options.activations == "int8"
            edit = edits.Pack(**paths, static=static) if whole else edits.PackBits(bits=bits, rounds=rounds, **paths)
            own = {path for one in paths.values() for path in one}
            editor.apply(edit, {name: one for name, one in tensors.items() if name.rpartition(".")[0] in own})

    def _codes(self, slot: Slot) -> tuple[Tensor, Tensor]:
        """The codes and scales (rows,) of a weight that was baked; found anew where it no longer lies on its grid."""
        weight, scale = finite_weight(slot.weight, slot.path), self.kept.get(slot.module)
        if scale is not None and len(scale) in (1, len(weight)):
            codes = on_grid(weight, scale, self.options.weights)
            if codes is not None:
                return codes, scale.expand(len(weight))
        return quantize(weight, self.options.weights)
