"""What heads and neurons cost in time: measured on this machine, in torch, for a table from which to choose.

For each kind of layer the whole model is timed with all layers of the kind cut to the same share of their units, in
turns with the uncut one. That is what a kernel really takes: not every unit that goes makes it faster.
Source: Kurtic et al. 2023, "ZipLM: inference-aware structured pruning of language models", section 3.2. Differs: the
model is timed as a whole, where ZipLM times a layer alone, and a layer has its share of what its kind saves.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

import torch

from lissom import edits
from lissom.anatomy import Anatomy, Stack, dissect
from lissom.edits import Editor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS = 16
STEPS = 16
_ROUNDS = 5

Kind = tuple[str, Literal["heads", "cross", "neurons"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saved:
    """shares: of the units that stay, ascending, the last one 1.  seconds: what a batch then takes less, not negative
    and not rising with the share."""

    shares: tuple[float, ...]
    seconds: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitLatency:
    """whole: seconds of the uncut model for `ROWS` texts.  saved: by name of the stack and kind of unit.
    units: path of each reader (o or down) -> its kind, and how many units it has, each run of its block counted."""

    whole: float
    saved: dict[Kind, Saved]
    units: dict[str, tuple[Kind, int]]


def count(units: int, share: float) -> int:
    """How many of `units` a share of them is, one at least."""
    return max(1, round(share * units))


def unit_latency(
    model: PreTrainedModel,
    tokens: int,
    *,
    rounds: int = _ROUNDS,
    report: Callable[[str, float], None] = lambda phrase, fraction: None,
) -> UnitLatency:
    """Time `ROWS` texts of `tokens` tokens through the model and through cut copies of it, in turns; `model` stays."""
    anatomy = dissect(model)
    kinds = list(_kinds(anatomy))
    wholes: list[float] = []
    saved: dict[Kind, Saved] = {}
    for number, (kind, most) in enumerate(kinds):
        steps = min(most, STEPS)
        shares = tuple((step + 1) / steps for step in range(steps))
        seconds = [0.0]
        for place, share in enumerate(reversed(shares[:-1])):
            report(f"time of {' '.join(kind)}", (number + place / steps) / len(kinds))
            cut = Editor(copy.deepcopy(model))
            cut.apply(_cut(cut.anatomy().stack(kind[0]), kind, share))
            whole, less = _race(model, cut.model, tokens, rounds)
            wholes.append(whole)
            seconds.append(max(seconds[-1], less))
        saved[kind] = Saved(shares=shares, seconds=tuple(reversed(seconds)))
    return UnitLatency(whole=statistics.median(wholes or [0.0]), saved=saved, units=_units(anatomy))


def _kinds(anatomy: Anatomy) -> Iterator[tuple[Kind, int]]:
    """Each kind of unit, and how many units its widest layer has."""
    for stack in anatomy.stacks:
        yield (stack.name, "heads"), max(block.attention.kv_heads for block in stack.blocks)
        if cross := [block.cross.kv_heads for block in stack.blocks if block.cross is not None]:
            yield (stack.name, "cross"), max(cross)
        yield (stack.name, "neurons"), max(block.ffn.width for block in stack.blocks)


def _units(anatomy: Anatomy) -> dict[str, tuple[Kind, int]]:
    found: dict[str, tuple[Kind, int]] = {}
    for stack in anatomy.stacks:
        for block in stack.blocks:
            times = stack.order.count(block.index)
            found[block.attention.o.path] = (stack.name, "heads"), times * block.attention.kv_heads
            if block.cross is not None:
                found[block.cross.o.path] = (stack.name, "cross"), times * block.cross.kv_heads
            found[block.ffn.down.path] = (stack.name, "neurons"), times * block.ffn.width
    return found


def _cut(stack: Stack, kind: Kind, share: float) -> edits.Edit:
    """All layers of a kind cut to a share of their units, the first ones."""
    if kind[1] == "neurons":
        widths = (block.ffn.width for block in stack.blocks)
        return edits.KeepNeurons(stack=stack.name, neurons=tuple(tuple(range(count(one, share))) for one in widths))
    cross = kind[1] == "cross"
    found = [block.cross if cross else block.attention for block in stack.blocks]
    heads = tuple(tuple(range(count(one.kv_heads, share))) for one in found if one is not None)
    return edits.KeepHeads(stack=stack.name, heads=heads, cross=cross)


def _race(model: PreTrainedModel, cut: PreTrainedModel, tokens: int, rounds: int) -> tuple[float, float]:
    """Median seconds of `model`, and median of what `cut` takes less."""
    ids = torch.ones((ROWS, tokens), dtype=torch.int64, device=model.device)
    batch = {"input_ids": ids, "attention_mask": ids}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = ids
    times: list[tuple[float, float]] = []
    for _ in itertools.repeat(None, rounds + 1):
        times.append((_seconds(model, batch), _seconds(cut, batch)))
    kept = times[1:]  # the first round warms up
    return statistics.median(a for a, _ in kept), statistics.median(a - b for a, b in kept)


def _seconds(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> float:
    began = time.perf_counter()
    with torch.no_grad():
        model(**batch)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter() - began
