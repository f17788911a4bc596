"""How much each linear map of the blocks suffers when it alone is rounded to few bits.

Weights: symmetric, one scale an output channel. Inputs: 8 bits, asymmetric, one scale a tensor, by the range that a
batch has, as `lissom.nn.int8` does it. Three figures a map, from cheap to telling:

    weight_db   10 log10(sum W² / sum (W - W')²), which needs no data
    output_db   the same of the map's output, with weights and input rounded
    damage      how far the answers of the whole model move when only this map is rounded

Source: rounding one layer at a time is how Nagel et al. 2021, "A White Paper on Neural Network Quantization", look for
what loses the quality (the debugging of their post-training pipeline).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lissom.anatomy import Slot, is_transposed, stored_maps
from lissom.errors import LissomError
from lissom.nn.int8 import quantize_activation, row_scales

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lissom.anatomy import Anatomy

Measure = Literal["kl", "difference", "cosine"]
MEASURES: dict[Measure, str] = {
    "kl": "mean KL divergence of the answers from those of the unrounded model, in nats",
    "difference": "mean absolute change of the answered value",
    "cosine": "mean of 1 - cosine between the hidden states before and after",
}
HALF, FEW = 0.5, 0.1
RULE = "the fewest maps that make up half of the summed damage, if they are fewer than a tenth of all maps"
_ROWS = 8  # texts at once: the answers of a language model are large
_SPLIT = 128  # rows of answers that are compared at once
_FORCED_OUT = -1e4  # a logit whose softmax is 0 in float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlotSensitivity:
    """One linear map. path: its module.  weights: how many.  weight_db, output_db: see the head of this module; None
    where rounding changes nothing.  damage: not negative, in the unit of `Sensitivity.measure`."""

    path: str
    weights: int
    weight_db: float | None
    output_db: float | None
    damage: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """All linear maps of the blocks, the most damaging first.

    bits: of the weights.  measure: a key of MEASURES.  answers: how many the damage is a mean of (texts; tokens for
    language models, taggers and bare encoders).
    keep: the maps to keep in higher precision by `RULE`; empty when none stand out.
    """

    bits: int
    measure: Measure
    answers: int
    slots: tuple[SlotSensitivity, ...]
    keep: tuple[str, ...]

    @property
    def step(self) -> dict[str, Any]:
        """The step of a recipe that rounds to these bits and leaves `keep` as it is; empty when nothing stands out."""
        options = {"skip": list(self.keep)}
        step = {"int8": options} if self.bits == 8 else {"rtn": {"bits": self.bits, **options}}
        return step if self.keep else {}

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "rule": RULE, "step": self.step}


def sensitivity(
    model: PreTrainedModel,
    anatomy: Anatomy,
    batches: Iterable[dict[str, Tensor]],
    *,
    bits: int = 8,
    report: Callable[[str, float], None] = lambda phrase, fraction: None,
) -> Sensitivity:
    """Round one linear map after the other and look at what the model answers; the model is left as it was.

    batches: input_ids and attention_mask (rows, longest) on the model's device, as `calibration_batches` gives them.
    bits: of the weights, 2 to 8; inputs always take 8.
    It takes one pass over the batches a map, and one more. The damages of several maps add up only roughly.
    Raises LissomError LSM-715 when there is nothing to round or the model does not answer texts alone, LSM-901 when
    weights or activations hold NaN or infinity, with the map named.
    """
    slots = _roundable(anatomy)
    if not slots:
        cause = f"{type(model).__name__} has no linear map that is not packed already"
        raise LissomError(715, cause, remedy="Look at the model as it was before.")
    for slot in slots:
        _check(slot.weight, "its weights hold", slot)
    noise = {slot.path: _Noise() for slot in slots}
    totals, answers = dict.fromkeys(noise, 0.0), 0
    measure: Measure = "kl"
    training = model.training
    model.train(False)
    try:
        with torch.no_grad():
            pieces = list(_pieces(batches))
            for number, batch in enumerate(pieces):
                reference = _watched(model, batch, slots, noise, bits)
                for place, slot in enumerate(slots):
                    report(slot.path, (number + place / len(slots)) / len(pieces))
                    measure, far = moved(reference, _rounded(model, batch, slot, bits), batch["attention_mask"])
                    totals[slot.path] += float(far.sum())
                answers += len(far)
    finally:
        model.train(training)
    found = [
        SlotSensitivity(
            path=slot.path,
            weights=slot.weight.numel(),
            weight_db=_weight_noise(slot, bits).decibels(),
            output_db=noise[slot.path].decibels(),
            damage=totals[slot.path] / max(answers, 1),
        )
        for slot in slots
    ]
    found.sort(key=lambda one: -one.damage)
    return Sensitivity(bits=bits, measure=measure, answers=answers, slots=tuple(found), keep=stand_out(found))


def stand_out(found: Sequence[SlotSensitivity]) -> tuple[str, ...]:
    """The maps that `RULE` names. found: the most damaging first."""
    total, reached = sum(one.damage for one in found), 0.0
    if total <= 0:
        return ()
    for count, one in enumerate(found, start=1):
        reached += one.damage
        if reached >= HALF * total:
            return tuple(each.path for each in found[:count]) if count < FEW * len(found) else ()
    return ()


@dataclasses.dataclass
class _Noise:
    """Sums of squares, of a signal and of what rounding adds to it."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, true: Tensor, rounded: Tensor) -> None:
        self.signal += float(true.double().square().sum())
        self.noise += float((true.double() - rounded.double()).square().sum())

    def decibels(self) -> float | None:
        return 10 * math.log10(self.signal / self.noise) if self.signal > 0 and self.noise > 0 else None


def _roundable(anatomy: Anatomy) -> list[Slot]:
    """Every float linear map of the blocks; of a low-rank one its two factors, which are what is packed."""
    found = [part for slot in anatomy.linears() for part in stored_maps(slot)]
    return [slot for slot in found if isinstance(slot.module, nn.Linear) or is_transposed(slot.module)]


def _pieces(batches: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    for batch in batches:
        for start in range(0, len(batch["input_ids"]), _ROWS):
            yield {name: tensor[start : start + _ROWS] for name, tensor in batch.items()}


def rounded_weight(weight: Tensor, bits: int) -> Tensor:
    """`weight` (out, in) after rounding to `bits` bits: symmetric, one scale a row, float32."""
    largest = 2 ** (bits - 1) - 1
    scale = row_scales(weight.float(), largest)[:, None]
    return (weight.float() / scale).round_().clamp_(-largest, largest) * scale


def _rounded_output(slot: Slot, x: Tensor, bits: int) -> Tensor:
    """What the map answers to x (..., in) with weights and input rounded: (..., out) float32."""
    codes, scale, zero = quantize_activation(x.float())
    bias = slot.bias
    return F.linear(
        (codes.float() - zero) * scale, rounded_weight(slot.weight, bits), None if bias is None else bias.float()
    )


def _weight_noise(slot: Slot, bits: int) -> _Noise:
    made = _Noise()
    made.add(slot.weight.detach(), rounded_weight(slot.weight.detach(), bits))
    return made


def _watched(
    model: nn.Module, batch: dict[str, Tensor], slots: list[Slot], noise: dict[str, _Noise], bits: int
) -> dict[str, Tensor]:
    """The model's answers as it is; each map's output is compared with the rounded one on the way."""

    def look(slot: Slot) -> Callable[[Tensor, Tensor], None]:
        def compare(x: Tensor, y: Tensor) -> None:
            _check(x, "its input holds", slot)
            _check(y, "its output holds", slot)
            if x.numel():
                noise[slot.path].add(y, _rounded_output(slot, x, bits))

        return compare

    handles = [slot.watch(look(slot)) for slot in slots]
    try:
        return answers_of(model, batch)
    finally:
        for handle in handles:
            handle.remove()


def _rounded(model: nn.Module, batch: dict[str, Tensor], slot: Slot, bits: int) -> dict[str, Tensor]:
    """The model's answers with this one map rounded. A hook stands in for it, so that no weight is touched."""

    def stand_in(_module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        return _rounded_output(slot, args[0], bits).to(y.dtype) if y.numel() else y

    handle = slot.module.register_forward_hook(stand_in)
    try:
        return answers_of(model, batch)
    finally:
        handle.remove()


def answers_of(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """logits; or start_logits and end_logits; or last_hidden_state."""
    try:
        found = model(**batch, return_dict=True)
    except (TypeError, ValueError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        cause = f"{type(model).__name__} does not answer texts alone ({lines[0][:120]})"
        raise LissomError(715, cause, remedy="Look at its encoder, or at another head.") from error
    for names in (("logits",), ("start_logits", "end_logits"), ("last_hidden_state",)):
        if all(name in found for name in names):
            return {name: found[name].float() for name in names}
    raise LissomError(715, f"{type(model).__name__} answers {', '.join(found)}, and none of them is known")


def moved(before: dict[str, Tensor], after: dict[str, Tensor], mask: Tensor) -> tuple[Measure, Tensor]:
    """How far each answer moved, (answers,), and in what measure. mask: (rows, longest), 1 for a real token."""
    if "start_logits" in before:
        hidden = mask == 0
        each = [
            _kl(before[name].masked_fill(hidden, _FORCED_OUT), after[name].masked_fill(hidden, _FORCED_OUT))
            for name in ("start_logits", "end_logits")
        ]
        return "kl", (each[0] + each[1]) / 2
    if "last_hidden_state" in before:
        was, became = (real_answers(answer["last_hidden_state"], mask) for answer in (before, after))
        return "cosine", (1 - F.cosine_similarity(was, became, dim=-1)).clamp_min(0)
    one, other = (real_answers(answer["logits"], mask) for answer in (before, after))
    if one.shape[-1] == 1:
        return "difference", (one - other).abs()[:, 0]
    return "kl", _kl(one, other)


def real_answers(answer: Tensor, mask: Tensor) -> Tensor:
    """(answers, classes): an answer to each text as it is, one to each token without those at padding.

    answer: (rows, classes) or (rows, longest, classes).  mask: (rows, longest), 1 for a real token.
    """
    if answer.shape[:-1] == mask.shape:
        return answer[mask == 1]
    return answer.reshape(-1, answer.shape[-1])


def _kl(before: Tensor, after: Tensor) -> Tensor:
    """KL(softmax(before) || softmax(after)) of each row of (n, classes).

    In float64, because int8 moves little and this is about its square; a few rows at a time, because those of a
    language model are long.
    """
    found = [before.new_zeros(0, dtype=torch.float64)]
    for one, other in zip(torch.split(before, _SPLIT), torch.split(after, _SPLIT), strict=True):
        p, q = (F.log_softmax(rows.double(), dim=-1) for rows in (one, other))
        found.append((p.exp() * (p - q)).sum(dim=-1).clamp_min(0))
    return torch.cat(found)


def _check(values: Tensor, what: str, slot: Slot) -> None:
    if not bool(torch.isfinite(values).all()):
        remedy = "Its weights are damaged, or a model in float16 needs float32."
        raise LissomError(901, f"{what} NaN or infinity, and no scale rounds that", place=slot.path, remedy=remedy)
