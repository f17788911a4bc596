"""Store linear maps and the token table as int8 and compute with them as such.

Weights: symmetric, one scale an output channel (a table: a row), by the largest magnitude; with 7 bits the codes end at
63, so that two products with 8 bit inputs add up within 16 bits, 2 · 255 · 63 < 2^15: processors with AVX2 and without
VNNI add them so, and ONNX Runtime and oneDNN would let 8 bits overflow there. Activations: asymmetric, one
scale a tensor, either by the range they have while it runs (dynamic; no data is needed), or by a fixed range that is
found on calibration texts (static); maps that read the same input share it. Or symmetric, one scale a token.
Sources: Jacob et al. 2018, section 2; Zafrir et al. 2019, "Q8BERT"; Yao et al. 2022, "ZeroQuant" (tokens); operators
DynamicQuantizeLinear and QuantizeLinear of ONNX; `lissom.stats.ranges` and `token_clipping` for the calibrators.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor

from lissom import edits
from lissom.anatomy import Anatomy, Slot, token_table
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Stage, Trial, check_gradients
from lissom.methods.quantization.maps import Skip, check_skip, unpacked_maps
from lissom.nn.int8 import quantize_rows
from lissom.stats.finite import finite_weight
from lissom.stats.ranges import Calibrator, find_range, histograms, same_inputs, scale_and_zero, token_ranges
from lissom.stats.sensitivity import answers_of
from lissom.stats.token_clipping import clip_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEAST = 8
"""Texts that ranges are found on, at the least."""
_COMPARED = ("classification", "tagging", "question_answering")
_REMEDY = "Give texts of the kind that the model is for, or choose mode: dynamic."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Int8(Method):
    """Pack every linear map in the blocks, and the token table, to int8."""

    name: ClassVar[str] = "int8"
    stage: ClassVar[Stage] = Stage.BITS
    speed: ClassVar[str] = "faster on CPUs with AVX-512 VNNI, AMX or Arm dot products; on others it only saves space"
    source: ClassVar[str] = "Jacob et al. 2018, section 2; Zafrir et al. 2019"

    mode: Annotated[
        Literal["dynamic", "static", "auto"],
        Field(
            description="by what range activations are quantized: that which they have, or one found on texts; auto: "
            "what is fastest here, or neither"
        ),
    ] = "dynamic"
    per: Annotated[
        Literal["tensor", "token"],
        Field(description="dynamic: one scale for all activations that go into a map, or one for each token"),
    ] = "tensor"
    calibrator: Annotated[
        Calibrator | Literal["token_wise"],
        Field(
            description="static: how much of the range that texts show is covered; token_wise: as much as changes "
            "the last hidden states least, which takes minutes and gradients"
        ),
    ] = "percentile"
    loyalty: Annotated[
        float, Field(ge=0, le=1, description="auto: share of texts that must get the answer of the unrounded model")
    ] = 0.985
    samples: Annotated[int, Field(ge=LEAST, le=100_000, description="static: texts that are looked at")] = 128
    embeddings: Annotated[bool, Field(description="also the token table, often half of a small model's bytes")] = True
    bits: Annotated[
        Literal[8, 7],
        Field(description="of the weights of maps: 7 for processors with AVX2 and without VNNI, where 8 can overflow"),
    ] = 8
    skip: Skip = ()

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-317 when ranges are to be found and there are no texts, LSM-318 for an unknown map to skip,
        LSM-315 for a fixed range a token, LSM-713 for `token_wise` on a model that is packed in part."""
        check_skip(anatomy, self.skip)
        if self.mode != "dynamic" and self.per == "token":
            cause = "a range that is fixed beforehand is no token's own"
            raise LissomError(315, cause, place="int8.per", remedy="Write per: tensor, or mode: dynamic.")
        if self.mode != "dynamic" and (given.data is None or given.tokenizer is None):
            cause = f"int8: {{mode: {self.mode}}} finds the ranges of activations on texts"
            raise LissomError(317, cause, remedy="Give --data, or choose mode: dynamic.")
        if self.mode == "auto" and given.data is not None and given.data.task.kind not in _COMPARED:
            task = given.data.task.kind.replace("_", " ")
            cause = f"mode: auto compares answers one by one, and those of {task} are neither alike nor different"
            raise LissomError(315, cause, place="int8.mode", remedy="Choose dynamic or static.")
        if self.mode == "static" and self.calibrator == "token_wise":
            check_gradients(anatomy)

    def packs_all(self) -> bool:
        """Unless some are skipped, or `auto` keeps floats."""
        return self.mode != "auto" and not self.skip

    def apply(self, editor: Editor, given: Given) -> dict[str, Any] | None:
        """Quantize the weights and replace the modules. `auto` says what was tried, and why one was taken."""
        if self.mode == "auto":
            return self._fastest(editor, given)
        slots = unpacked_maps(editor, self.skip)
        tensors = self._ranges(editor, given, slots) if self.mode == "static" and slots else {}
        self._pack(editor, slots, tensors)
        return None

    def _fastest(self, editor: Editor, given: Given) -> dict[str, Any]:
        """Try float32, dynamic, and static with the calibrator that keeps most answers; take one as `_best`."""
        if given.trial is None:
            cause = "mode: auto measures on this machine, and nothing was given to measure with"
            raise LissomError(317, cause, remedy="Run it by compress, with data, or choose dynamic or static.")
        steps = {"dynamic": dataclasses.replace(self, mode="dynamic")}
        models = {"float32": copy.deepcopy(editor.model)}
        models["dynamic"] = _packed(editor, given, steps["dynamic"])
        batches = list(_unseen(given).calibration(editor.model, self.samples))
        best = -1.0
        for calibrator in get_args(Calibrator):
            step = dataclasses.replace(self, mode="static", calibrator=calibrator)
            made = _packed(editor, given, step)
            alike = _agreement(models["float32"], made, batches)
            if alike > best:
                best, models["static"], steps["static"] = alike, made, step
        tried = given.trial(models)
        loyal = [one for one in tried if one.texts_per_s is not None and (one.loyalty or 0.0) >= self.loyalty]
        if not loyal:
            cause = f"no form keeps {self.loyalty:g} of the answers and runs here: {'; '.join(map(Trial.words, tried))}"
            raise LissomError(501, cause, place="int8.mode", remedy="Lower loyalty, or choose dynamic or static.")
        taken, why = _best(loyal)
        if taken.form in steps:
            steps[taken.form].apply(editor, given)
        form = f"static ({steps['static'].calibrator})" if taken.form == "static" else taken.form
        return {
            "taken": f"{form} in {taken.engine}, {why} with loyalty >= {self.loyalty:g}",
            "tried": "; ".join(one.words() for one in tried),
            "trials": {f"{one.form} in {one.engine}": dataclasses.asdict(one) for one in tried},
        }

    def preview(self, editor: Editor, given: Given) -> None:
        """The same structure; ranges are not looked for, and `auto` is shown as dynamic."""
        self._pack(editor, unpacked_maps(editor, self.skip), {})

    def _pack(self, editor: Editor, slots: list[Slot], tensors: dict[str, Tensor]) -> None:
        for slot in slots:
            _quantize(slot.weight, slot.path, tensors, 2 ** (self.bits - 1) - 1)
        table = token_table(editor.model) if self.embeddings else None
        if table is not None:
            _quantize(editor.model.get_submodule(table).weight, table, tensors)  # type: ignore[arg-type]
        linears = tuple(slot.path for slot in slots)
        if linears or table:
            static = self.mode == "static" and bool(linears)
            kept: dict[str, Any] = {"linears": linears, "embeddings": (table,) if table else ()}
            editor.apply(edits.Pack(**kept, static=static, per_token=self.per == "token"), tensors)

    def _ranges(self, editor: Editor, given: Given, slots: list[Slot]) -> dict[str, Tensor]:
        """The scale and zero point of the inputs of each map, by the name of their tensors."""
        batches = self._batches(editor, given)
        groups = same_inputs(editor.model, slots, {name: one[:1] for name, one in batches[0].items()})
        reached = {slot.path for group in groups for slot in group}
        for slot in slots:
            if slot.path not in reached:
                raise LissomError(829, "no calibration text reaches this map", place=slot.path, remedy=_REMEDY)
        tensors: dict[str, Tensor] = {}
        for group, (scale, zero) in zip(groups, self._grids(editor, groups, batches, given), strict=True):
            for slot in group:
                tensors |= {f"{slot.path}.input_scale": scale, f"{slot.path}.input_zero": zero}
        return tensors

    def _grids(
        self, editor: Editor, groups: list[list[Slot]], batches: list[dict[str, Tensor]], given: Given
    ) -> list[tuple[Tensor, Tensor]]:
        """The scale and zero point of each set of maps that read one input."""
        first = [one[0] for one in groups]
        if self.calibrator == "token_wise":
            extremes = token_ranges(editor.model, first, batches)
            for slot, (lows, highs) in zip(first, extremes, strict=True):
                _refuse_constant(float(lows.min()), float(highs.max()), slot)
            return clip_tokens(editor.model, groups, extremes, batches, given.report)
        seen = histograms(editor.model, first, batches)
        for slot, one in zip(first, seen, strict=True):
            _refuse_constant(one.low, one.high, slot)
        return [scale_and_zero(*find_range(one, self.calibrator)) for one in seen]

    def _batches(self, editor: Editor, given: Given) -> list[dict[str, Tensor]]:
        """Calibration texts. Raises LissomError LSM-317 without any, LSM-829 for too few."""
        made = list(given.calibration(editor.model, self.samples))
        texts = sum(len(one["input_ids"]) for one in made)
        if texts < LEAST:
            cause = f"{texts} calibration texts are too few to find ranges on, {LEAST} is the least"
            raise LissomError(829, cause, remedy="Give more texts, or choose mode: dynamic.")
        return made


def _best(loyal: list[Trial]) -> tuple[Trial, str]:
    """The most loyal of those whose interval overlaps with that of the fastest, or it; and why, in words."""
    fastest = max(loyal, key=lambda one: one.texts_per_s or 0.0)
    level = [one for one in loyal if one is fastest or (one.high or 0.0) >= (fastest.low or 0.0)]
    taken = max(level, key=lambda one: (one.loyalty or 0.0, one.texts_per_s or 0.0))
    if taken is fastest:
        return taken, "the fastest"
    return taken, f"as fast as {fastest.form} in {fastest.engine}, whose interval overlaps, and more loyal, of those"


def _unseen(given: Given) -> Given:
    """The same with the validation split alone, where there is one."""
    data = given.data
    if data is None or "validation" not in data.splits:
        return given
    return dataclasses.replace(given, data=dataclasses.replace(data, splits={"validation": data.splits["validation"]}))


def _refuse_constant(low: float, high: float, slot: Slot) -> None:
    if not low < high:
        raise LissomError(829, f"its input is {low:.6g} on every calibration text", place=slot.path, remedy=_REMEDY)


def _packed(editor: Editor, given: Given, step: Int8) -> PreTrainedModel:
    """A copy of the model after `step`."""
    made = Editor(copy.deepcopy(editor.model))
    step.apply(made, given)
    return made.model


def _agreement(one: PreTrainedModel, other: PreTrainedModel, batches: list[dict[str, Tensor]]) -> float:
    """Share of the answers for which two models have the same largest logit."""
    same, count = 0, 0
    with torch.no_grad():
        for batch in batches:
            for first, second in zip(answers_of(one, batch).values(), answers_of(other, batch).values(), strict=True):
                same += int((first.argmax(-1) == second.argmax(-1)).sum())
                count += first[..., 0].numel()
    return same / max(count, 1)


def _quantize(weight: Tensor, path: str, tensors: dict[str, Tensor], largest: int = 127) -> None:
    tensors[f"{path}.weight"], tensors[f"{path}.weight_scale"] = quantize_rows(finite_weight(weight, path), largest)
