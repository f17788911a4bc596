"""Make an encoder compute with whole numbers alone, up to its pooler and head: products, softmax, GELU, layer norm.

Weights: int8, symmetric, one scale an output channel; those of maps that training with `fake_quant` packed are taken as
they are. Activations: int8, symmetric, one fixed scale a tensor, by the range that it has on texts. Sums before a layer
norm have 17 bits and twice the range that texts show. Formulas: `lissom.nn.integer`; the layers:
`lissom.nn.integer_layers`. A text is answered alike in every batch and with any padding, to the last bit.
Source: Kim et al. 2021, "I-BERT".
Differs: ranges are found once on texts, with the activations that the model has in floating point, where I-BERT follows
them with a moving average while it tunes the integer graph; sums before a layer norm have 17 bits, there 22; what
`lissom.nn.integer` says. As there, pooler and head stay in floating point, and so does the map behind ELECTRA's tables.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from lissom.anatomy import Anatomy, Block, Slot, token_table
from lissom.anatomy.dissect import family_of
from lissom.edits import Editor, PackInteger
from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Need, Stage
from lissom.nn import Int8Embedding, Int8Linear
from lissom.nn.int8 import quantize_rows
from lissom.nn.integer import PROBABILITIES, UNIT, dyadic, norm_constants
from lissom.nn.integer_layers import CODE, GELU_SCALE, SUM, Activation
from lissom.stats.finite import finite_weight
from lissom.stats.ranges import Calibrator, find_range, histograms

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

LEAST = 8
"""Texts that ranges are found on, at the least."""
_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
}
"""What a config calls an activation -> which one computes it; the approximations of GELU are as near to it as ours."""
_HEADROOM = 2.0  # times what texts show; a sum that is clipped would spoil the whole layer norm
_REMEDY = "Give texts of the kind that the model is for."


class _Answer(Slot):
    """What comes out of a module, where a range is looked for."""

    def watch(self, fn: Callable[[Tensor, Tensor], None]) -> RemovableHandle:
        """Call `fn(y, x)` at each use."""
        return super().watch(lambda x, y: fn(y, x))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Integer(Method):
    """Replace the layers of an encoder, and its tables, by ones that compute with whole numbers."""

    name: ClassVar[str] = "integer"
    stage: ClassVar[Stage] = Stage.BITS
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    speed: ClassVar[str] = (
        "slower than float32 on CPUs, in torch and in ONNX Runtime: it is for hardware that has whole numbers only"
    )
    source: ClassVar[str] = "Kim et al. 2021 (I-BERT), section 3"

    calibrator: Annotated[Calibrator, Field(description="how much of the range that texts show is covered")] = (
        "percentile"
    )
    samples: Annotated[int, Field(ge=LEAST, le=100_000, description="texts that are looked at")] = 128

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-715 for a model that has no such form."""
        _activation(anatomy)

    def apply(self, editor: Editor, given: Given) -> None:
        """Find ranges, then replace the layers."""
        anatomy = editor.anatomy()
        if _done(anatomy):
            return
        edit = self._edit(editor)
        limits = self._limits(anatomy, edit, given)
        tensors: dict[str, Tensor] = {}
        for block in anatomy.stacks[0].blocks:
            tensors |= _block_tensors(editor.model, block, edit.activation, limits)
        if edit.norm:
            tensors |= _table_tensors(editor.model, edit, limits)
        editor.apply(edit, tensors)

    def preview(self, editor: Editor, given: Given) -> None:
        """The same structure; ranges are not looked for."""
        if not _done(editor.anatomy()):
            editor.apply(self._edit(editor))

    def _edit(self, editor: Editor) -> PackInteger:
        anatomy = editor.anatomy()
        activation, token = _activation(anatomy), _token_table(editor)
        if token is None:
            return PackInteger(activation=activation)
        inside = token.rpartition(".")[0]
        tables = tuple(path for path in anatomy.embeddings if path.startswith(f"{inside}."))
        modules = editor.model.get_submodule(inside).named_children()
        norm = next(f"{inside}.{name}" for name, one in modules if isinstance(one, nn.LayerNorm))
        return PackInteger(activation=activation, tables=tables, norm=norm)

    def _limits(self, anatomy: Anatomy, edit: PackInteger, given: Given) -> dict[str, float]:
        """The largest magnitude of what goes into each module, and, by its path and " out", of what comes out."""
        model = cast("PreTrainedModel", anatomy.model)
        batches = list(given.calibration(model, self.samples))
        texts = sum(len(one["input_ids"]) for one in batches)
        if texts < LEAST:
            cause = f"{texts} calibration texts are too few to find ranges on, {LEAST} is the least"
            raise LissomError(829, cause, remedy="Give more texts.")
        blocks = anatomy.stacks[0].blocks
        norms = [path for block in blocks for path in block.norms] + ([edit.norm] if edit.norm else [])
        sides = [slot for block in blocks for slot in (block.attention.q, block.attention.o, *block.ffn.slots())]
        sides += [Slot(model, path) for path in norms]
        projections = [slot for block in blocks for slot in block.attention.slots()[:3]]
        answers = [_Answer(model, path) for path in (*(slot.path for slot in projections), *norms)]
        limits: dict[str, float] = {}
        for slot, seen in zip((*sides, *answers), histograms(model, [*sides, *answers], batches), strict=True):
            name = f"{slot.path} out" if isinstance(slot, _Answer) else slot.path
            if not seen.low < seen.high:
                raise LissomError(829, f"it is {seen.low:.6g} on every calibration text", place=name, remedy=_REMEDY)
            # wide sums hold everything, codes what the calibrator covers
            calibrator: Calibrator = "min_max" if slot.path in norms and name == slot.path else self.calibrator
            limits[name] = max(abs(end) for end in find_range(seen, calibrator))
        return limits


def _token_table(editor: Editor) -> str | None:
    """Path of the token table where it can be stored alone, or already is so in int8."""
    table: nn.Module = editor.model.get_input_embeddings()
    if type(table) is Int8Embedding:
        return next((str(name) for name, module in editor.model.named_modules() if module is table), None)
    return token_table(editor.model)


def _done(anatomy: Anatomy) -> bool:
    return any(isinstance(edit, PackInteger) for edit in Editor(anatomy.model).record.edits)  # type: ignore[arg-type]


def _activation(anatomy: Anatomy) -> Activation:
    """Raises LissomError LSM-715 for another kind of model, or another activation."""
    config: Any = anatomy.model.config
    blocks = anatomy.stacks[0].blocks if len(anatomy.stacks) == 1 else ()
    remedy = "Use int8."
    known = family_of(anatomy.model).integer
    if not known or getattr(config, "is_decoder", False):
        cause = f"only encoders like BERT and RoBERTa have a form in whole numbers, not {config.model_type}"
        cause += " as a decoder" if known else ""
        raise LissomError(715, cause, place="integer", remedy=remedy)
    if config.hidden_act not in _ACTIVATIONS:
        cause = f'the activation "{config.hidden_act}" has no form in whole numbers, but {", ".join(_ACTIVATIONS)}'
        raise LissomError(715, cause, place="integer", remedy=remedy)
    for block in blocks:
        for slot in block.slots():
            if type(slot.module) not in (nn.Linear, Int8Linear):
                cause = f"{type(slot.module).__name__} has no form in whole numbers"
                raise LissomError(715, cause, place=slot.path, remedy="Leave out the step that made it.")
    if len({id(block.ffn.up.module.weight) for block in blocks}) < len(blocks):
        cause = "layers that share weights cannot each have scales of their own"
        raise LissomError(715, cause, place="integer", remedy=remedy)
    return _ACTIVATIONS[config.hidden_act]


def _scale(limit: float, largest: int = CODE) -> Tensor:
    return torch.tensor(max(limit, 1e-12) / largest, dtype=torch.float32)


def _unit(limit: float) -> float:
    """The power of two in which a sum has 17 bits."""
    return 2.0 ** -math.floor(math.log2(SUM / (_HEADROOM * max(limit, 1e-12))))


def _dyadic(path: str, ratio: Tensor | float) -> dict[str, Tensor]:
    try:
        b, c = dyadic(torch.as_tensor(ratio, dtype=torch.float64))
    except ValueError as error:
        raise LissomError(829, str(error), place=path, remedy=_REMEDY) from error
    return {f"{path}.multiplier": b, f"{path}.shift": c}


def _rows(module: nn.Module, path: str) -> tuple[Tensor, Tensor]:
    """The codes and scales of a map or table: those that it has, or the nearest."""
    if isinstance(module, Int8Linear | Int8Embedding):
        return module.codes(), module.weight_scale
    return quantize_rows(finite_weight(cast("Tensor", module.weight), path))


def _map(slot: Slot, scale: Tensor, out: Tensor | float) -> dict[str, Tensor]:
    """A map that reads codes of `scale` and answers in units of `out`."""
    codes, rows = _rows(slot.module, slot.path)
    unit = rows.double() * scale.double()
    bias = torch.zeros_like(unit) if slot.bias is None else slot.bias.detach().double() / unit
    limit = 2**30
    return {
        f"{slot.path}.weight": codes,
        f"{slot.path}.weight_scale": rows,
        f"{slot.path}.bias": bias.round().clamp(-limit, limit).to(torch.int32),
        f"{slot.path}.input_scale": scale,
        **_dyadic(f"{slot.path}.rescale", unit / float(out)),
    }


def _norm(model: nn.Module, path: str, out: Tensor) -> dict[str, Tensor]:
    norm: Any = model.get_submodule(path)
    try:
        multiplier, offset, shift = norm_constants(norm.weight.detach(), norm.bias.detach(), float(out))
    except ValueError as error:
        raise LissomError(829, str(error), place=path, remedy=_REMEDY) from error
    named = {"multiplier": multiplier, "offset": offset, "shift": shift, "output_scale": out}
    return {f"{path}.{name}": value for name, value in named.items()}


def _block_tensors(
    model: nn.Module, block: Block, activation: Activation, limits: dict[str, float]
) -> dict[str, Tensor]:
    attention, ffn = block.attention, block.ffn
    entry, middle = _scale(limits[attention.q.path]), _scale(limits[ffn.up.path])
    context, inner = _scale(limits[attention.o.path]), _scale(limits[ffn.down.path])
    q, k, v = (_scale(limits[f"{slot.path} out"]) for slot in attention.slots()[:3])
    made: dict[str, Tensor] = {}
    for slot, out in zip(attention.slots()[:3], (q, k, v), strict=True):
        made |= _map(slot, entry, out)
    score = float(q) * float(k) / math.sqrt(attention.head_dim)
    made |= _dyadic(f"{attention.path}.scores", score / UNIT)
    made |= _dyadic(f"{attention.path}.context", float(v) / PROBABILITIES / float(context))
    made[f"{attention.path}.output_scale"] = context
    made |= _map(ffn.up, middle, UNIT if activation == "gelu" else inner)
    parent = ffn.up.path.rpartition(".")[0]
    made[f"{parent}.output_scale"] = inner
    if activation == "gelu":
        made |= _dyadic(f"{parent}.rescale", GELU_SCALE / float(inner))
    for slot, scale, before in ((attention.o, context, entry), (ffn.down, inner, middle)):
        parent = slot.path.rpartition(".")[0]
        norm = next(path for path in block.norms if path.rpartition(".")[0] == parent)
        unit = _unit(limits[norm])
        made |= _map(slot, scale, unit) | _dyadic(f"{parent}.residual", float(before) / unit)
        made |= {f"{parent}.residual_scale": before, **_norm(model, norm, _scale(limits[f"{norm} out"]))}
    return made


def _table_tensors(model: nn.Module, edit: PackInteger, limits: dict[str, float]) -> dict[str, Tensor]:
    made = _norm(model, edit.norm, _scale(limits[f"{edit.norm} out"]))
    stored = {path: _rows(model.get_submodule(path), path) for path in edit.tables}
    unit = _unit(max(limits[edit.norm], *(CODE * float(rows.max()) for _, rows in stored.values())))
    made[f"{edit.norm}.unit"] = torch.tensor(unit)
    for path, (codes, rows) in stored.items():
        made |= {f"{path}.weight": codes, f"{path}.weight_scale": rows, f"{path}.unit": torch.tensor(unit)}
        made |= _dyadic(path, rows.double() / unit)
    return made
