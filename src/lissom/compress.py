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
from lissom.anatomy import dissect, positions
from lissom.data import Data, load_data
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.measure import Row, measure
from lissom.measure.loyalty import UNCOMPARED
from lissom.measure.size import SPARSE, sparsity
from lissom.methods import Given
from lissom.recipe import Recipe, StepRecord
from lissom.runtime import TorchRunner
from lissom.store import load, load_tokenizer, save

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lissom.export import Artifact

ORIGINAL, COMPRESSED = "original", "compressed"
_MEASURED = 0.1  # share of the progress bar that measuring takes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What `compress` gives back.

    rows: readings of "original" and "compressed", both in torch, on `split`; empty without data.
    verdicts: of the gate; empty when no gate was set.  steps: what each step of the recipe did.
    base: where the original came from, "" for a model object.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    recipe: Recipe
    steps: tuple[StepRecord, ...]
    rows: tuple[Row, ...]
    verdicts: tuple[gate.Verdict, ...]
    base: str
    seconds: float

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
            card=markdown(rows, ORIGINAL) if rows else None,
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
            reference=ORIGINAL,
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
    keep: float | None = None,
    split: str = "",
    seed: int = 0,
    device: str | None = None,
    max_length: int = 128,
    work: Path | None = None,
    report: Callable[[str, float], None] = lambda phrase, fraction: None,
) -> Result:
    """Compress `model` by `recipe`, and measure the result against the original.

    model: a folder, a hub id, or a model object, which stays as it is.  recipe: a YAML file, a packaged name, a Recipe.
    data: what `load_data` takes, or Data.  columns: as `load_data` takes them, for names that are not the usual ones.
    keep: the share of the original's quality that must be left, as a gate.
    split: that quality is measured on; "" takes test where it has labels, else validation.
    device: None means where a model object is, and the CPU for what is loaded here.
    max_length: tokens a text is cut at, lowered to what the model reads.
    work: folder for checkpoints; the same call with the same folder resumes.
    report: hears phrases with the fraction that is done.

    Half-precision weights are worked on, and saved, in float32, which is also how CPUs run them fastest.
    The gate is judged in `Result.verdicts`; a gate that is not met raises nothing here.
    Raises LissomError 3xx before any work when the recipe cannot work on this model with this data, 206 for a gate
    without data.
    """
    began = time.monotonic()
    if keep is not None and data is None:
        raise LissomError(206, "quality cannot be kept without data to measure it on", remedy="Give --data.")
    wanted = () if keep is None else gate.parse(f"keep>={keep}")
    original, reader, base = _opened(model, tokenizer, device or "cpu", wanted=data is not None)
    plan = recipe if isinstance(recipe, Recipe) else Recipe.read(recipe)
    given = Given(
        data=None if data is None else data_for(original, data, seed, columns),
        tokenizer=reader,
        teacher=original,
        seed=seed,
        device=device or str(original.device),
        max_length=readable_length(original, reader, max_length),
    )
    plan.check(dissect(original), given)
    student = copy.deepcopy(in_float32(original))
    with tempfile.TemporaryDirectory(prefix="lissom-") as own:
        place = work or Path(own)
        place.mkdir(parents=True, exist_ok=True)
        told = dataclasses.replace(given, work=place, report=lambda what, done: report(what, done * (1 - _MEASURED)))
        editor = Editor(student)
        steps = plan.run(editor, told)
    rows: Sequence[Row] = ()
    if given.data is not None:
        rows = _measured(original, editor.model, given, split or measured_split(given.data), report)
    readings = [one for row in rows if row.subject == COMPRESSED for one in row.as_dict()["readings"]]
    return Result(
        model=editor.model,
        tokenizer=reader,
        recipe=plan,
        steps=tuple(steps),
        rows=tuple(rows),
        verdicts=gate.evaluate(wanted, readings),
        base=base,
        seconds=time.monotonic() - began,
    )


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


def in_float32(model: PreTrainedModel) -> PreTrainedModel:
    """`model`, or a copy in float32 where its weights are in half precision: recipes work on no other."""
    import torch

    half = model.dtype in (torch.float16, torch.bfloat16)
    return torch.nn.Module.float(copy.deepcopy(model)) if half else model


def readable_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, asked: int) -> int:
    """`asked`, or fewer tokens where the model or its tokenizer reads fewer."""
    return min(asked, positions(model) or asked, asked if tokenizer is None else tokenizer.model_max_length)


def data_for(model: PreTrainedModel, data: Any, seed: int, columns: Mapping[str, str] | None = None) -> Data:
    """`data`, checked against what `model` answers, with a validation split.

    Raises LissomError 826 when the model has no head for the task or another number of classes, and what `load_data`
    raises.
    """
    labels = tuple(str(name) for _, name in sorted((model.config.id2label or {}).items()))
    kind = type(model).__name__
    named = labels if "Classification" in kind else None
    found = data if isinstance(data, Data) else load_data(data, columns=columns, model_labels=named)
    if "train" in found.splits or list(found.splits) == ["all"]:
        found = found.with_validation(seed)
    heads = {
        "classification": "SequenceClassification",
        "regression": "SequenceClassification",
        "tagging": "TokenClassification",
        "question_answering": "QuestionAnswering",
    }
    wanted = heads.get(found.task.kind)
    goes_on = model.can_generate() and not model.config.is_encoder_decoder  # says which token comes next in a text
    if not (wanted in kind if wanted else goes_on):
        task = found.task.kind.replace("_", " ")
        cause = f"{kind} has no head for {task}"
        raise LissomError(826, cause, place=found.name, remedy="Train one first: lissom finetune MODEL --data ...")
    return found


def measured_split(data: Data) -> str:
    """test where it is there and has labels, else validation."""
    columns = {name: rows.column_names for name, rows in data.splits.items()}
    answer = {"tagging": "tags", "question_answering": "answers", "language_modelling": "text"}
    wanted = answer.get(data.task.kind, "label")
    return next((name for name in ("test", "validation") if wanted in columns.get(name, ())), "train")


def _measured(
    original: PreTrainedModel,
    compressed: PreTrainedModel,
    given: Given,
    split: str,
    report: Callable[[str, float], None],
) -> list[Row]:
    """Quality, loyalty and counts; speed is measured in the form that runs, by `lissom measure`."""
    data = cast(Data, given.data)
    runners = {
        name: TorchRunner(one, given.tokenizer, device=given.device, max_length=given.max_length)
        for name, one in ((ORIGINAL, original), (COMPRESSED, compressed))
    }
    told = lambda what, done: report(what, 1 - _MEASURED * (1 - done))  # noqa: E731  named for what it is
    zeros = ("sparsity",) if (sparsity(compressed).value or 0.0) >= SPARSE else ()
    alike = () if data.task.kind in UNCOMPARED else ("label_loyalty", "probability_loyalty")
    return measure(
        runners,
        data,
        split=split,
        reference=ORIGINAL,
        metrics=(data.task.metric, "keep", *alike, "size_mb", "parameters", *zeros, "flops"),
        seed=given.seed,
        report=told,
    )
