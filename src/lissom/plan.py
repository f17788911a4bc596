"""What would happen: a model's parts, and what a recipe would leave of them, before anything is trained or written.

The structure that a step leaves does not depend on the weights' values, so each step that does not train is run on a
copy, without the decompositions that only fill in numbers; parameters, bytes and FLOPs are then counted, not estimated.
Latency is measured on this machine for a few seconds, all stages taking turns.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lissom.errors import LissomError
from lissom.methods import METHODS, Given, Method, Need, Stage
from lissom.methods.options import plain
from lissom.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lissom.anatomy import Anatomy
    from lissom.data import Data
    from lissom.edits import Editor
    from lissom.measure import Reading
    from lissom.measure.speed import Times
    from lissom.runtime import Text

_TEXT = "The quick brown fox jumps over the lazy dog, and the dog, being lazy, looks after it for a while."
_TEXTS, _SINGLES, _ROUNDS, _SAMPLES = 16, 6, 3, 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """A model as it stands before or after a step. size_mb: of the weights. latency_ms: median of one text alone."""

    parameters: int
    size_mb: float
    flops: int | None
    latency_ms: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """One step of the recipe: its resolved options, what it leaves, and in words what it does to the speed here."""

    name: str
    options: dict[str, Any]
    after: Shape
    speed: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a recipe would make of a model.

    columns: column that is read -> its name in the data; empty without data.  notes: what a person should know first.
    forms: what the processor does with int8, bf16 and 4-bit groups, see `lissom.forms`.
    """

    recipe: str
    before: Shape
    steps: tuple[PlannedStep, ...]
    columns: dict[str, str]
    notes: tuple[str, ...]
    forms: dict[str, str]

    @property
    def after(self) -> Shape:
        """The model after the last step."""
        return self.steps[-1].after if self.steps else self.before

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "after": dataclasses.asdict(self.after)}


def plan(
    model: str | Path | PreTrainedModel,
    recipe: str | Path | Recipe,
    *,
    data: Any = None,
    columns: Mapping[str, str] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    seed: int = 0,
    threads: int | None = None,
    max_length: int = 128,
    report: Callable[[str, float], None] = lambda phrase, fraction: None,
) -> Plan:
    """Predict what `recipe` would make of `model`; nothing is trained, nothing written, `model` stays as it is.

    data: what `load_data` takes, or Data; without it a step that needs data is noted, and texts are made up.
    columns: as `load_data` takes them.  max_length: tokens a text is cut at, lowered to what the model reads.
    Raises LissomError 3xx when the recipe cannot work on this model, and what loading model and data raises.
    """
    from lissom.anatomy import dissect
    from lissom.compress import data_for, in_float32, readable_length
    from lissom.edits import Editor
    from lissom.forms import forms, warnings
    from lissom.measure.machine import machine

    if isinstance(model, str | Path):
        from lissom.store import load, load_tokenizer

        tokenizer = tokenizer or load_tokenizer(model)
        model = load(model)
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.read(recipe)
    precision = str(model.dtype).removeprefix("torch.")
    model = in_float32(model)
    max_length = readable_length(model, tokenizer, max_length)
    found = None if data is None else data_for(model, data, seed, columns)
    given = Given(data=found, tokenizer=tokenizer, teacher=model, seed=seed, max_length=max_length)
    notes = _check(recipe, dissect(model), given)
    if precision != "float32":
        notes.append(f"The weights are stored as {precision}; a recipe works on them, and saves them, as float32.")
    instructions = machine()["instructions"]
    stages = [Editor(model, tokenizer)]
    for done, step in enumerate(recipe.steps):
        report(f"structure after {step.name}", 0.3 * done / len(recipe.steps))
        stages.append(_after(stages[-1], step, given))
    texts = _texts(found)
    times = _raced(
        stages,
        texts,
        threads=threads,
        max_length=max_length,
        report=lambda what, part: report(what, 0.3 + 0.7 * part),
    )
    shapes = [
        _shape(stage.model, _tokens(stage.tokenizer, texts, max_length), times.get(id(stage.model))) for stage in stages
    ]
    steps = [
        PlannedStep(
            name=step.name,
            options=plain(step),
            after=after,
            speed=_words(step, times, stages[i].model, stages[i + 1].model),
        )
        for i, (step, after) in enumerate(zip(recipe.steps, shapes[1:], strict=True))
    ]
    return Plan(
        recipe=recipe.name,
        before=shapes[0],
        steps=tuple(steps),
        columns={} if found is None else dict(found.columns),
        notes=(*notes, *warnings(recipe.steps, instructions), *_noted(found)),
        forms=forms(instructions),
    )


def describe(model: PreTrainedModel) -> dict[str, Any]:
    """Family, layers, heads and widths, parameters and bytes by part, and for each method whether it applies."""
    from lissom.anatomy import dissect

    anatomy = dissect(model)
    whole = _shape(model, None, None)
    return {
        "family": anatomy.family,
        "class": type(model).__name__,
        "parameters": whole.parameters,
        "size_mb": whole.size_mb,
        "parts": _parts(model, anatomy),
        "stacks": [
            {
                "name": stack.name,
                "layers": len(stack.order),
                "blocks": [
                    {"heads": block.attention.heads, "kv_heads": block.attention.kv_heads, "width": block.ffn.width}
                    for block in stack.blocks
                ],
            }
            for stack in anatomy.stacks
        ],
        "methods": {name: _applies(METHODS[name], anatomy) for name in METHODS},
    }


def _check(recipe: Recipe, anatomy: Anatomy, given: Given) -> list[str]:
    """`Recipe.check`; what only data would settle becomes a note when there is none."""
    if given.data is not None:
        recipe.check(anatomy, given)
        return []
    recipe.check_order()
    wanting = [step for step in recipe.steps if step.needs & {Need.TRAIN, Need.CALIBRATION}]
    rest = tuple(step for step in recipe.steps if step not in wanting)
    Recipe(recipe.name, rest).check(anatomy, given)
    return [f"{step.name} needs data: give --data to compress." for step in wanting]


def _noted(data: Data | None) -> tuple[str, ...]:
    made_up = "No data: latency and FLOPs are those of one made-up sentence."
    return (made_up,) if data is None else data.notes


def _after(before: Editor, step: Method, given: Given) -> Editor:
    """A copy of the model with the structure that `step` leaves, or `before` itself where that is the same.

    A step that looks at texts looks at very few.
    """
    from lissom.edits import Editor
    from lissom.store.zeros import spared

    if step.stage is Stage.BITS and (refused := _refused(step, before.anatomy(), given)):
        raise refused
    quick = {"samples": _SAMPLES} if any(field.name == "samples" for field in dataclasses.fields(step)) else {}
    copied = copy.deepcopy(before.model)
    editor = Editor(copied, before.tokenizer)
    with _no_decompositions():
        dataclasses.replace(step, **quick).preview(editor, dataclasses.replace(given, tokenizer=before.tokenizer))
    same = editor.model is copied and editor.record == before.record and spared(copied) == spared(before.model)
    return before if same else editor


@contextmanager
def _no_decompositions() -> Iterator[None]:
    """Singular value decompositions give ones of the right shapes: their numbers are not looked at."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Shapes(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.linalg.svd:
                empty = torch.linalg.svd(args[0].to("meta"), *args[1:], **(kwargs or {}))
                return type(empty)(torch.ones_like(one, device=args[0].device) for one in empty)
            return func(*args, **(kwargs or {}))

    with Shapes():
        yield


def _shape(model: nn.Module, tokens: int | None, times: Times | None) -> Shape:
    from lissom.measure.flops import model_flops
    from lissom.measure.size import in_memory, parameters

    counted = model_flops(model, tokens).value if tokens else None
    latency = None if times is None else _median(times)
    return Shape(
        parameters=_whole(parameters(model)) or 0,
        size_mb=in_memory(model).value or 0.0,
        flops=None if counted is None else int(counted),
        latency_ms=latency,
    )


def _whole(reading: Reading) -> int | None:
    return None if reading.value is None else int(reading.value)


def _median(times: Times) -> float:
    import numpy as np

    return float(np.median(times.single) * 1000)


def _texts(data: Data | None) -> list[Text]:
    """A few texts of the data, from the split that is measured; else one made-up sentence several times."""
    from lissom.compress import measured_split
    from lissom.measure.quality import texts_of

    if data is None:
        return [_TEXT] * _TEXTS
    rows = data.split(measured_split(data))
    return texts_of(rows.select(range(min(_TEXTS, len(rows)))), data.task)


def _tokens(tokenizer: PreTrainedTokenizerBase | None, texts: Sequence[Text], max_length: int) -> int:
    """The median length of the texts in tokens; 32 without a tokenizer."""
    import statistics

    if tokenizer is None:
        return 32
    lengths = [
        len(
            tokenizer(*(text if isinstance(text, tuple) else (text,)), is_split_into_words=isinstance(text, list))[
                "input_ids"
            ]
        )
        for text in texts
    ]
    return min(max_length, round(statistics.median(lengths)))


def _raced(
    stages: Sequence[Editor],
    texts: Sequence[Text],
    *,
    threads: int | None,
    max_length: int,
    report: Callable[[str, float], None],
) -> dict[int, Times]:
    """Seconds of each different stage, by the id of its model; empty without a tokenizer."""
    from lissom.measure.speed import race
    from lissom.runtime import TorchRunner

    if stages[0].tokenizer is None:
        return {}
    different = {str(id(stage.model)): stage for stage in stages}
    runners = {
        name: TorchRunner(stage.model, stage.tokenizer, threads=threads, max_length=max_length)
        for name, stage in different.items()
    }
    times = race(
        runners,
        texts,
        rounds=_ROUNDS,
        singles=_SINGLES,
        ask=lambda runner, asked: runner.forward(runner.pad(runner.encode(asked))),
        report=lambda what, fraction: report("latency on this machine", fraction),
    )
    return {int(name): one for name, one in times.items()}


def _words(step: Method, times: dict[int, Times], before: PreTrainedModel, after: PreTrainedModel) -> str:
    """What was seen here, then what the method says of itself."""
    from lissom.measure.speed import speedup

    if step.stage is Stage.TUNE and before is after:
        return f"trains; neither shape nor speed change ({step.words()})"
    if before is after or id(after) not in times:
        return step.words()
    found = speedup(times[id(after)], times[id(before)], seed=0)
    if found.value is None or found.low is None or found.high is None or found.low <= 1 <= found.high:
        return f"no difference shown here in torch ({step.words()})"
    if found.low > 1:
        return f"{found.value:.2g} times as fast here in torch ({step.words()})"
    return f"SLOWER here in torch: {found.value:.2g} times the throughput ({step.words()})"


def _parts(model: nn.Module, anatomy: Anatomy) -> dict[str, int]:
    """Parameters of embeddings, attention, feed-forward layers, head and the rest; a shared one counts once."""
    from lissom.measure.size import stored
    from lissom.nn.low_bit import weights_held

    wanted = {id(one): one.numel() for one in stored(model)} | weights_held(model)
    blocks = [block for stack in anatomy.stacks for block in stack.blocks]
    attentions = [one for block in blocks for one in (block.attention, block.cross) if one is not None]
    places = {
        "embeddings": list(anatomy.embeddings),
        "attention": [slot.path for one in attentions for slot in one.slots()],
        "feed-forward": [slot.path for block in blocks for slot in block.ffn.slots()],
        "head": [slot.path for slot in anatomy.head],
    }
    found = {}
    for part, paths in places.items():
        tensors = [one for path in paths for one in model.get_submodule(path).state_dict(keep_vars=True).values()]
        found[part] = sum(wanted.pop(id(one), 0) for one in tensors)
    return {**found, "other": sum(wanted.values())}


def _refused(step: Method, anatomy: Anatomy, given: Given) -> LissomError | None:
    """What `check` has against this model, if anything; data may be given later."""
    try:
        step.check(anatomy, given)
    except LissomError as error:
        return None if error.code == "LSM-317" else error
    return None


def _applies(kind: type[Method], anatomy: Anatomy) -> str:
    """ "yes", "yes, with data", or why not; with the options that a method has when none are given."""
    data = kind.needs & {Need.TRAIN, Need.CALIBRATION}
    if not anatomy.stacks and Stage.DEPTH <= kind.stage <= Stage.SHARE:
        return f"no: {anatomy.family} has no layers"
    required = [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    try:
        kind(**dict.fromkeys(required, 1)).check(anatomy, Given())
    except LissomError as error:
        if not data or error.code != "LSM-317":
            return f"no: {error.cause}"
    return "yes, with data" if data else "yes"
