"""The main verb: a model, a recipe and data in; a smaller model with its evidence out."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lissom import gate
from lissom.anatomy import dissect, is_bare, positions, sentence_of
from lissom.data import Data, Task, load_data
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.files import inside, read_json
from lissom.measure import Row, measure
from lissom.measure.loyalty import UNCOMPARED
from lissom.measure.size import SPARSE, in_memory, sparsity, stored
from lissom.methods import Given
from lissom.methods.base import Trial
from lissom.recipe import Recipe, StepRecord
from lissom.runtime import TorchRunner
from lissom.store import load, load_tokenizer, save
from lissom.trial import tried

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lissom.export import Artifact

    Teacher = str | Path | PreTrainedModel

ORIGINAL, TEACHER, COMPRESSED = "original", "teacher", "compressed"
_MEASURED = 0.1  # share of the progress bar that measuring takes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What `compress` gives back.

    rows: readings of `reference` and "compressed", both in torch, on `split`; empty without data.
    reference: what the result is compared with: "original", or "teacher", the first one, where teachers were given.
    verdicts: of the gate; empty when no gate was set.  steps: what each step of the recipe did.
    base: where the original came from, "" for a model object.  notes: what a person should know of the figures.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    recipe: Recipe
    steps: tuple[StepRecord, ...]
    rows: tuple[Row, ...]
    verdicts: tuple[gate.Verdict, ...]
    base: str
    seconds: float
    reference: str = ORIGINAL
    notes: tuple[str, ...] = ()

    @property
    def met(self) -> bool:
        """Whether every condition of the gate holds."""
        return all(verdict.met for verdict in self.verdicts)

    @property
    def readings(self) -> dict[str, float | None]:
        """Name -> value of every reading of the compressed model."""
        mine = [row for row in self.rows if row.subject == COMPRESSED]
        return {reading.name: reading.value for row in mine for reading in row.readings}

    def save(self, folder: str | Path, *, force: bool = False) -> None:
        """Write a lissom folder: weights, config, tokenizer, recipe, readings, model card.

        Raises LissomError 2xx when `folder` holds something and not `force`, 602 when the disk is full.
        """
        from lissom.bench.table import markdown

        rows = [row.as_dict() for row in self.rows]
        save(
            self.model,
            folder,
            tokenizer=self.tokenizer,
            base=None if not self.base or Path(self.base).exists() else self.base,  # local paths are nobody's business
            recipe=self.recipe.as_dict(),
            rows=rows,
            card=markdown(rows, self.reference) if rows else None,
            force=force,
        )

    def export(self, target: str, folder: str | Path, *, force: bool = False) -> Artifact:
        """Write files for another runtime. See `lissom.export`."""
        from lissom.export import export

        return export(self.model, target, folder, tokenizer=self.tokenizer, force=force)

    def report(self, path: str | Path) -> None:
        """Write one self-contained HTML file. Raises LissomError 823 when nothing was measured."""
        from lissom.bench.report import report

        if not self.rows:
            raise LissomError(823, "there is nothing to report", remedy="Compress with data.")
        told = "; ".join(verdict.text for verdict in self.verdicts)
        report(
            [row.as_dict() for row in self.rows],
            path,
            reference=self.reference,
            steps=self.steps,
            gate={"text": told, "met": self.met} if told else None,
        )


def compress(
    model: str | Path | PreTrainedModel,
    recipe: str | Path | Recipe,
    *,
    data: Any = None,
    columns: Mapping[str, str] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    teacher: Teacher | Sequence[Teacher] | None = None,
    keep: float | None = None,
    split: str = "",
    seed: int = 0,
    device: str | None = None,
    max_length: int = 128,
    work: Path | None = None,
    report: Callable[[str, float], None] = lambda phrase, fraction: None,
) -> Result:
    """Compress `model` by `recipe`, and measure the result against the original, or the teacher if one is given.

    model: a folder, a hub id, or a model object, which stays as it is.  recipe: a YAML file, a packaged name, a Recipe.
    data: what `load_data` takes, or Data.  columns: as `load_data` takes them, for names that are not the usual ones.
    teacher: a folder, a hub id or a model object to learn from instead of the original, or several; the first one is
        what the result is compared with. Each must read the tokens of `model` and give its labels.
    keep: the share of that quality that must be left, as a gate.
    split: that quality is measured on; "" takes test where it has labels, else validation. Without labels the models
        are compared with each other, and quality is left out.
    device: None means where a model object is, and the CPU for what is loaded here.
    max_length: tokens a text is cut at, lowered to what the model reads.
    work: folder for checkpoints; the same call with the same folder resumes.
    report: hears phrases with the fraction that is done.

    Half-precision weights are worked on, and saved, in float32, which is also how CPUs run them fastest.
    The gate is judged in `Result.verdicts`; a gate that is not met raises nothing here.
    Raises LissomError 3xx before any work when the recipe cannot work on this model with this data and these teachers,
    206 for a gate without data or without labels, 826 for a teacher without a head for the task.
    """
    began = time.monotonic()
    if keep is not None and data is None:
        raise LissomError(206, "quality cannot be kept without data to measure it on", remedy="Give --data.")
    wanted = () if keep is None else gate.parse(f"keep>={keep}")
    original, reader, base = _opened(model, tokenizer, device or "cpu", wanted=data is not None)
    plan = recipe if isinstance(recipe, Recipe) else Recipe.read(recipe)
    found = None if data is None else data_for(original, data, seed, columns)
    split = split or ("" if found is None else measured_split(found))
    if keep is not None and found is not None and not found.labelled(split):
        cause = f"quality cannot be kept: the split {split} has no labels to measure it on"
        raise LissomError(206, cause, place=found.name, remedy="Give texts with labels, or ask for no quality.")
    device = device or str(original.device)
    first, *others = _teachers(teacher, original, reader, found, device) or [original]
    for one in (original, first, *others):
        max_length = readable_length(one, reader, max_length)
    given = Given(
        data=found,
        tokenizer=reader,
        teacher=first,
        teachers=tuple(others),
        seed=seed,
        device=device,
        max_length=max_length,
    )
    plan.check(dissect(original), given)
    editor = Editor(copy.deepcopy(in_float32(original)), reader)

    def trial(forms: Mapping[str, PreTrainedModel]) -> list[Trial]:
        read_by = cast("PreTrainedTokenizerBase", editor.tokenizer)  # as it is by then
        return tried(forms, data=cast(Data, found), tokenizer=read_by, max_length=max_length, seed=seed)

    with tempfile.TemporaryDirectory(prefix="lissom-") as own:
        place = work or Path(own)
        place.mkdir(parents=True, exist_ok=True)
        told = dataclasses.replace(
            given,
            work=place,
            report=lambda what, done: report(what, done * (1 - _MEASURED)),
            trial=None if found is None or reader is None else trial,
        )
        steps = plan.run(editor, told)
    rows: Sequence[Row] = ()
    reference = ORIGINAL if first is original else TEACHER
    if given.data is not None:
        subjects = {reference: (first, reader), COMPRESSED: (editor.model, editor.tokenizer)}
        named = (base,) if first is original else teacher if isinstance(teacher, list | tuple) else (teacher,)
        rows = _measured(subjects, _folder(named[0]), given, split, report)
    readings = [one for row in rows if row.subject == COMPRESSED for one in row.as_dict()["readings"]]
    return Result(
        model=editor.model,
        tokenizer=editor.tokenizer,
        recipe=plan,
        steps=tuple(steps),
        rows=tuple(rows),
        verdicts=gate.evaluate(wanted, readings),
        base=base,
        seconds=time.monotonic() - began,
        reference=reference,
        notes=_wider(base, original, editor.model),
    )


def _wider(base: str, original: PreTrainedModel, made: PreTrainedModel) -> tuple[str, ...]:
    """What to know where the original takes 16 bits a number on disk, or as an object, and the result 32."""
    folder = _folder(base)
    kept = str(original.dtype) if folder is None else _dtype(folder)
    kept = kept.removeprefix("torch.")
    if kept not in ("float16", "bfloat16") or str(made.dtype) != "torch.float32":
        return ()
    before = sum(one.numel() * (4 if one.is_floating_point() else one.element_size()) for one in stored(original)) / 1e6
    return (
        f"The original is stored in {kept}, and what of the result is not packed in float32, which takes twice the "
        f"bytes. With both in float32: {before:,.1f} MB before, {in_memory(made).value or 0.0:,.1f} MB after. A step "
        "half at the end of the recipe stores 16 bits again.",
    )


def _dtype(folder: Path) -> str:
    """The type of the numbers that a model folder says it holds."""
    config = read_json(inside(folder, "config.json", hard_links=True))
    return str(config.get("dtype", config.get("torch_dtype"))) if isinstance(config, dict) else ""


def _opened(
    model: str | Path | PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, device: str, *, wanted: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None, str]:
    """The model in float32, its tokenizer, and where it came from. wanted: there is no work without a tokenizer."""
    if not isinstance(model, str | Path):
        return model, tokenizer, ""
    loaded = load(model, dtype="float32", device=device)
    try:
        return loaded, tokenizer or load_tokenizer(model), str(model)
    except LissomError as error:
        if wanted or error.code != "LSM-435":
            raise
        return loaded, None, str(model)


def _teachers(
    teacher: Teacher | Sequence[Teacher] | None,
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    data: Data | None,
    device: str,
) -> list[PreTrainedModel]:
    """What is given as `teacher`, opened. Raises LSM-319 for one that reads or answers otherwise than `student`."""
    several = teacher if isinstance(teacher, Sequence) and not isinstance(teacher, str) else (teacher,)
    found = []
    for one in (one for one in several if one is not None):
        model, reader, place = _opened(one, None, device, wanted=False)
        if data is not None and data_for(model, data, 0).task != data.task:
            task = data.task.kind.replace("_", " ")
            raise LissomError(826, f"{type(model).__name__} has no head for {task}", place=data.name)
        _check_alike(student, tokenizer, model, reader, place or TEACHER)
        found.append(in_float32(model))
    return found


def _check_alike(
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    teacher: PreTrainedModel,
    reader: PreTrainedTokenizerBase | None,
    place: str,
) -> None:
    """Raise LSM-319 unless `teacher` knows the tokens of `student` and gives its labels in the same order."""
    if tokenizer is not None and reader is not None and tokenizer.get_vocab() != reader.get_vocab():
        tokens, others = tokenizer.get_vocab(), reader.get_vocab()
        unlike = sum(others.get(token) != number for token, number in tokens.items())
        cause = f"the teacher reads other tokens than the model: {unlike} of {len(tokens)} differ or are missing"
        raise LissomError(319, cause, place=place, remedy="Use a teacher with the tokenizer of the model.")
    known = cast("nn.Embedding", teacher.get_input_embeddings()).num_embeddings
    if tokenizer is not None and known < len(tokenizer):
        cause = f"the teacher knows {known} tokens, the tokenizer of the model has {len(tokenizer)}"
        raise LissomError(319, cause, place=place, remedy="Use a teacher with the tokenizer of the model.")
    ours, theirs = _labels(student), _labels(teacher)
    usual = any(name.startswith("LABEL_") for name in (*ours, *theirs))  # nobody named them
    if len(ours) != len(theirs) or (ours != theirs and not usual):
        cause = f"the teacher answers {', '.join(theirs) or 'nothing'}, the model {', '.join(ours) or 'nothing'}"
        raise LissomError(319, cause, place=place, remedy="Use a teacher with the labels of the model, in its order.")


def _labels(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of the classes in the order of the answers; empty for a model without classes."""
    if "Classification" not in type(model).__name__:
        return ()
    return tuple(str(name) for _, name in sorted((model.config.id2label or {}).items()))


def in_float32(model: PreTrainedModel) -> PreTrainedModel:
    """`model`, or a copy in float32 where its weights are in half precision: recipes work on no other."""
    import torch

    half = model.dtype in (torch.float16, torch.bfloat16)
    return torch.nn.Module.float(copy.deepcopy(model)) if half else model


def readable_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, asked: int) -> int:
    """`asked`, or fewer tokens where the model or its tokenizer reads fewer."""
    limits = (positions(model), sentence_of(model).max_length, tokenizer and tokenizer.model_max_length)
    return min((asked, *(one for one in limits if one)))


def data_for(model: PreTrainedModel, data: Any, seed: int, columns: Mapping[str, str] | None = None) -> Data:
    """`data`, checked against what `model` answers, with a validation split.

    Raises LissomError 826 when the model has no head for the task or another number of classes, and what `load_data`
    raises.
    """
    kind = type(model).__name__
    named = _labels(model) or None
    found = data if isinstance(data, Data) else load_data(data, columns=columns, model_labels=named)
    if found.task.kind == "language_modelling" and kind.endswith("ForMaskedLM"):
        hidden = Task(kind="masked_language_modelling", metric="accuracy")
        found = dataclasses.replace(found, task=hidden)
    if is_bare(model):
        found = found.for_embedding()
    if "train" in found.splits or list(found.splits) == ["all"]:
        found = found.with_validation(seed)
    heads = {
        "classification": "SequenceClassification",
        "regression": "SequenceClassification",
        "tagging": "TokenClassification",
        "question_answering": "QuestionAnswering",
        "masked_language_modelling": "MaskedLM",
    }
    wanted = heads.get(found.task.kind)
    answers = found.task.kind == "text_to_text"  # with an encoder, else what goes on with the text itself
    writes = model.can_generate() and model.config.is_encoder_decoder == answers
    fits = wanted in kind if wanted else is_bare(model) if found.task.kind == "embedding" else writes
    if not fits:
        task = found.task.kind.replace("_", " ")
        cause = f"{kind} has no head for {task}"
        remedy = "Train one first: lissom finetune MODEL --data ..."
        remedy += ", or give texts without labels to keep its embeddings" if is_bare(model) else ""
        if found.task.kind == "text_to_text" and named:
            remedy = f"If {found.columns['target']} is the label, say so: --column label={found.columns['target']}"
        raise LissomError(826, cause, place=found.name, remedy=remedy)
    return found


def measured_split(data: Data) -> str:
    """test where it is there and has labels, else validation, else train; without labels the first that is there."""
    there = [name for name in ("test", "validation", "train") if name in data.splits] or ["train"]
    return next((name for name in there if data.labelled(name)), there[0])


def _folder(named: Any) -> Path | None:
    """The folder that a model was loaded from; None for a hub id or an object."""
    return Path(named) if isinstance(named, str | Path) and named and Path(named).is_dir() else None


def _measured(
    subjects: Mapping[str, tuple[PreTrainedModel, PreTrainedTokenizerBase | None]],
    folder: Path | None,
    given: Given,
    split: str,
    report: Callable[[str, float], None],
) -> list[Row]:
    """Quality, loyalty and counts; speed is measured in the form that runs, by `lissom measure`.

    subjects: each with what reads texts for it; the first one is what the others are compared with.
    folder: where the files of the first one lie, which may be half as large as what is worked on.
    """
    data = cast(Data, given.data)
    reference = next(iter(subjects))
    runners = {
        name: TorchRunner(
            one,
            reader,
            device=given.device,
            max_length=given.max_length,
            folder=folder if name == reference else None,
        )
        for name, (one, reader) in subjects.items()
    }
    told = lambda what, done: report(what, 1 - _MEASURED * (1 - done))  # noqa: E731  named for what it is
    zeros = ("sparsity",) if (sparsity(subjects[COMPRESSED][0]).value or 0.0) >= SPARSE else ()
    layers = ("exit_layers",) if runners[COMPRESSED].exits else ()
    alike: tuple[str, ...] = () if data.task.kind in UNCOMPARED else ("label_loyalty", "probability_loyalty")
    alike = ("cosine",) if data.task.kind == "embedding" else alike
    judged = (data.task.metric, "keep") if data.labelled(split) else (data.task.metric,)  # which says why it is not
    return measure(
        runners,
        data,
        split=split,
        reference=reference,
        metrics=(*judged, *alike, "size_mb", "parameters", *zeros, *layers, "flops"),
        seed=given.seed,
        report=told,
    )
