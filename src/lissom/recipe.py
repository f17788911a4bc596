"""Recipe: an ordered list of methods, read from YAML, checked before any work, run step by step, written resolved."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import stat
import time
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from lissom.errors import LissomError, nearest
from lissom.methods import METHODS, Given, Method, Need, Stage
from lissom.methods.options import build, plain
from lissom.strict_yaml import MAX_BYTES, Document, dump, shown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.resources.abc import Traversable

    from transformers import PreTrainedModel

    from lissom.anatomy import Anatomy
    from lissom.edits import Editor

FORMAT = 1
_READY = {"status": "ready", "reason": ""}
_PLANNED = {"status": "planned", "reason": "its methods are not built yet"}
_NAME = re.compile(r"[\w][\w .+()/-]{0,79}")
_TUNE_SHARE = 20  # how much longer than another step one that trains takes, for the progress bar


class StepRecord(TypedDict):
    """What one step was and did."""

    name: str
    options: dict[str, Any]
    seconds: float
    before: int  # parameters
    after: int
    did: dict[str, Any]  # what `Method.apply` said about it; empty for most


class Entry(TypedDict):
    """One line of the catalogue: a published system, or a recipe of lissom's own."""

    id: str
    name: str
    year: int | None
    family: str
    kind: str
    status: str  # ready | planned
    reason: str  # why it is not ready; empty when it is


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Methods in the order in which they run.

    name: a word for cards and reports.
    steps: the methods; their order is checked by `check`.
    """

    name: str
    steps: tuple[Method, ...]

    @classmethod
    def read(cls, source: str | Path) -> Recipe:
        """The recipe in a YAML file, or the packaged recipe of that name.

        A packaged name wins over a file of the same name without a suffix. Raises `LissomError` 301 to 315.
        """
        if isinstance(source, str) and source in (packaged := _packaged()):
            return cls.parse(packaged[source].read_bytes(), source, name=source)
        path = Path(source)
        if isinstance(source, str) and not _looks_like_file(source):
            raise _unknown(source)
        return cls.parse(_bytes(path), str(path), name=path.stem)

    @classmethod
    def parse(cls, text: str | bytes, place: str, *, name: str = "recipe") -> Recipe:
        """The recipe in this YAML text.

        place: stands before the line number in messages. name: of the recipe when the text gives none.
        """
        document = Document(text, place)
        body = document.value
        if not isinstance(body, dict):
            raise LissomError(308, "a recipe is a mapping with lissom, name and steps", place=document.place())
        for key in body:
            if key not in ("lissom", "name", "steps"):
                hint = nearest(key, ("lissom", "name", "steps"))
                raise LissomError(
                    309, f"unknown key {shown(key)} in a recipe", place=document.place((key,)), remedy=hint
                )
        version = body.get("lissom")
        if isinstance(version, bool) or version != FORMAT:
            found = (
                f"the recipe form is {shown(version)}"
                if "lissom" in body
                else "the number of the recipe form is missing"
            )
            raise LissomError(
                307, found, place=document.place(("lissom",)), remedy=f'This version reads "lissom: {FORMAT}".'
            )
        label = body.get("name", name)
        if "name" in body and not (isinstance(label, str) and _NAME.fullmatch(label)):
            cause = f"name {shown(label)} is not a short text of letters, digits and .-_+/()"
            raise LissomError(308, cause, place=document.place(("name",)))
        steps = body.get("steps")
        if not isinstance(steps, list) or not steps:
            raise LissomError(308, "steps is not a list of methods", place=document.place(("steps",)))
        return cls(label, tuple(_step(step, document, i) for i, step in enumerate(steps)))

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raise `LissomError` when the recipe cannot work; nothing is computed.

        316: the order of stages; 317: a step needs data or a teacher that is not given; 312 to 315: options of steps
        that were made in Python; and whatever a method's own `check` raises, with the step as its place.
        """
        self.check_order()
        for place, step in self._placed():
            build(type(step), plain(step), functools.partial(_always, place))
            self._check_needs(place, step, given)
            try:
                step.check(anatomy, given)
            except LissomError as error:
                raise _within(error, place) from error

    def run(self, editor: Editor, given: Given) -> list[StepRecord]:
        """Apply each step in order to the model that `editor` holds.

        `given.report` hears phrases with the fraction of the whole recipe. Raises `LissomError` 901 with the tensor and
        the step when weights are not finite.
        """
        _finite(editor.model, "before the first step")
        shares = [_TUNE_SHARE if step.stage is Stage.TUNE else 1 for step in self.steps]
        records: list[StepRecord] = []
        for i, (place, step) in enumerate(self._placed()):
            part = _Part(
                given, f"step {i + 1} of {len(self.steps)}: {step.name}", sum(shares[:i]), shares[i], sum(shares)
            )
            part.report("", 0.0)
            before, start = parameters(editor.model), time.perf_counter()
            try:
                reader = editor.tokenizer or given.tokenizer
                if i and step.stage is self.steps[i - 1].stage is Stage.BITS:
                    step.check(editor.anatomy(), given)  # less may be left to pack than when all steps were checked
                did = step.apply(editor, dataclasses.replace(given, report=part.report, tokenizer=reader))
            except LissomError as error:
                raise _within(error, place) from error
            _finite(editor.model, f"after {place}")
            part.report("", 1.0)
            records.append(
                {
                    "name": step.name,
                    "options": plain(step),
                    "seconds": time.perf_counter() - start,
                    "before": before,
                    "after": parameters(editor.model),
                    "did": did or {},
                }
            )
        return records

    def as_dict(self) -> dict[str, Any]:
        """The recipe form as plain values, every option resolved."""
        return {"lissom": FORMAT, "name": self.name, "steps": [{step.name: plain(step)} for step in self.steps]}

    def to_yaml(self) -> str:
        """The recipe form as YAML, every option resolved; `parse` gives an equal recipe back."""
        return dump(self.as_dict())

    def write(self, path: str | Path) -> None:
        """Write `to_yaml()` to a file, atomically."""
        from lissom.files import write_text

        write_text(Path(path), self.to_yaml())

    def _placed(self) -> list[tuple[str, Method]]:
        return [(f"{self.name}, step {i} ({step.name})", step) for i, step in enumerate(self.steps, 1)]

    def check_order(self) -> None:
        """Raise LissomError 316 unless stages do not fall; TUNE stays behind what it follows, and before VOCABULARY.

        And where a step could only pack maps that one before it packs for certain.
        """
        self._check_packing()
        keys: list[int] = []
        reached = 0
        for step in self.steps:
            before, reached = reached, int(step.reached()) or reached
            trained_late = step.stage is Stage.TUNE and before >= Stage.VOCABULARY
            keys.append(Stage.VOCABULARY - 1 if trained_late else reached)
        order = sorted(range(len(keys)), key=keys.__getitem__)
        if order == list(range(len(keys))):
            return
        wrong = next(i for i in range(1, len(keys)) if keys[i] < keys[i - 1])
        cause = f"{self.steps[wrong].name} cannot follow {self.steps[wrong - 1].name}"
        remedy = f"Write the steps in this order: {', '.join(self.steps[i].name for i in order)}."
        raise LissomError(316, cause, place=f"{self.name}, step {wrong + 1}", remedy=remedy)

    def _check_packing(self) -> None:
        first = next((i for i, step in enumerate(self.steps) if step.packs_all()), len(self.steps))
        for i, step in enumerate(self.steps[first + 1 :], first + 2):
            if step.only_packs:
                cause = f"{step.name} has nothing left to pack: {self.steps[first].name} packs every linear map"
                raise LissomError(316, cause, place=f"{self.name}, step {i}", remedy="Leave one of them out.")

    @staticmethod
    def _check_needs(place: str, step: Method, given: Given) -> None:
        if Need.TRAIN in step.needs:
            if given.data is None:
                remedy = "Give --data, a folder with a train split or the id of a data set."
                raise LissomError(317, "needs labelled training data", place=place, remedy=remedy)
            given.data.split("train")
        if Need.CALIBRATION in step.needs and given.data is None:
            raise LissomError(317, "needs texts to look at", place=place, remedy="Give --data.")
        if Need.TEACHER in step.needs and given.teacher is None:
            raise LissomError(
                317, "needs the original model as its teacher", place=place, remedy="Give it as given.teacher."
            )


@dataclasses.dataclass(frozen=True)
class _Part:
    """Turns the progress of one step into that of the recipe."""

    given: Given
    title: str
    done: int
    share: int
    whole: int

    def report(self, what: str, fraction: float) -> None:
        phrase = f"{self.title}, {what}" if what else self.title
        self.given.report(phrase, (self.done + self.share * fraction) / self.whole)


def catalogue() -> list[Entry]:
    """Every packaged recipe of lissom's own, then every published system, with whether it can be run."""
    ready = set(_packaged())
    systems = json.loads((resources.files("lissom") / "recipes" / "catalogue.json").read_text("utf-8"))
    published = {one["id"] for one in systems}
    own = [
        {"id": name, "name": name, "year": None, "family": "lissom", "kind": "recipe"}
        for name in sorted(ready - published)
    ]
    return [_PLANNED | one | (_READY if one["id"] in ready else {}) for one in [*own, *systems]]


def parameters(model: PreTrainedModel) -> int:
    """Numbers that a saved model holds, shared ones once; packed weights and their scales count like any other."""
    from lissom.nn.low_bit import weights_held

    stored, held = model.state_dict().keys(), weights_held(model)
    packed = sum(held.get(id(one), one.numel()) for name, one in model.named_buffers() if name in stored)
    return packed + sum(p.numel() for p in model.parameters())


def _packaged() -> dict[str, Traversable]:
    folder = resources.files("lissom") / "recipes"
    return {file.name.removesuffix(".yaml"): file for file in folder.iterdir() if file.name.endswith(".yaml")}


def _looks_like_file(source: str) -> bool:
    return source.endswith((".yaml", ".yml")) or "/" in source or "\\" in source or Path(source).is_file()


def _unknown(name: str) -> LissomError:
    entries = {entry["id"]: entry for entry in catalogue()}
    if name in entries:
        remedy = "`lissom recipes` lists the ready ones. A YAML file of your own works as well."
        return LissomError(311, f"the recipe {shown(name)} is planned: {entries[name]['reason']}", remedy=remedy)
    hint = nearest(name, entries)
    if not hint.startswith("Did"):
        hint = "`lissom recipes` lists the known ones; a file name ends in .yaml."
    return LissomError(301, f"no recipe is called {shown(name)}", remedy=hint)


def _bytes(path: Path) -> bytes:
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise LissomError(302, "not a file", place=str(path))
        if facts.st_size > MAX_BYTES:
            raise LissomError(302, f"{facts.st_size} bytes, a recipe has at most {MAX_BYTES}", place=str(path))
        return path.read_bytes()
    except FileNotFoundError as error:
        remedy = "`lissom recipes` lists the packaged ones."
        raise LissomError(301, "there is no such recipe file", place=str(path), remedy=remedy) from error
    except (OSError, ValueError) as error:
        raise LissomError(
            302, f"cannot be read: {getattr(error, 'strerror', None) or error}", place=str(path)
        ) from error


def _step(step: Any, document: Document, index: int) -> Method:
    """`{method: options}`, `{method: null}` or only `method`."""
    base: tuple[str | int, ...] = ("steps", index)
    if isinstance(step, str):
        step = {step: None}
    if not isinstance(step, dict) or len(step) != 1:
        cause = f"a step is one method with its options, as in `- svd: {{ratio: 0.5}}`; found {shown(step)}"
        raise LissomError(308, cause, place=document.place(base))
    ((name, options),) = step.items()
    if name not in METHODS:
        raise LissomError(
            310, f"unknown method {shown(name)}", place=document.place((*base, name)), remedy=nearest(name, METHODS)
        )
    if options is None:
        options = {}
    if not isinstance(options, dict):
        cause = f"the options of {name} are a mapping, as in `- {name}: {{}}`; found {shown(options)}"
        raise LissomError(308, cause, place=document.place((*base, name)))
    return build(METHODS[name], options, lambda path: document.place((*base, name, *path)))


def _always(place: str, _: tuple[str | int, ...]) -> str:
    return place


def _within(error: LissomError, place: str) -> LissomError:
    """The same error, with the step before its place."""
    where = f"{place}: {error.place}" if error.place else place
    return type(error)(int(error.code.removeprefix("LSM-")), error.cause, place=where, remedy=error.remedy)


def _finite(model: PreTrainedModel, when: str) -> None:
    """Raise `LissomError` 901 when a weight is NaN or infinite."""
    import torch

    tensors: Sequence[tuple[str, torch.Tensor]] = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        if tensor.is_floating_point() and not tensor.is_meta and name.endswith(("weight", "bias", "scale")):
            bad = int((~torch.isfinite(tensor)).sum())
            if bad:
                raise LissomError(901, f"{bad} of {tensor.numel()} values are NaN or infinite {when}", place=name)
