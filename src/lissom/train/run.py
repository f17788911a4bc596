"""One training run from start to finish: resumed where the same run stopped, left without a trace on the model."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig, TrainingArguments, set_seed

from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.nn.levels import ATTENTION
from lissom.train import checkpoint, processes
from lissom.train.answers import answers, one_answer_a_row
from lissom.train.cache import digest
from lissom.train.engine import Engine
from lissom.train.objectives.base import Means

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lissom.train.during import Acting, During
    from lissom.train.objectives import Objective

_HALF = (torch.float16, torch.bfloat16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """What a run did. steps: of the optimizer, in all; resumed: the step at which this process took over.

    loss: mean over the first and over the last tenth of the steps since then; None without one.
    rows_per_step: of all processes and accumulated batches, on average over an epoch.
    score: on validation, higher is better; best_step: whose weights the model has. None without validation.
    rows_per_second: that were trained on, with the time for validation and checkpoints; 0 when nothing was left to do.
    """

    steps: int
    resumed: int
    loss: tuple[float, float] | None
    rows_per_step: float
    best_step: int | None
    score: float | None
    rows_per_second: float
    bf16: bool


def train(
    model: PreTrainedModel,
    rows: datasets.Dataset,
    objectives: Mapping[str, Objective],
    *,
    teachers: Sequence[PreTrainedModel] = (),
    during: Sequence[During] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
    validate: Callable[[PreTrainedModel], float] | None = None,
    epochs: float = 2.0,
    max_steps: int | None = None,
    learning_rate: float = 5e-5,
    batch_size: int = 32,
    batch_tokens: int | None = None,
    accumulate: int = 1,
    patience: int | None = None,
    warmup: float = 0.1,
    weight_decay: float = 0.01,
    seed: int = 0,
    device: str = "cpu",
    pad_id: int = 0,
    work: Path,
    report: Callable[[str, float], None] = lambda phrase, fraction: None,
    save_seconds: float = 60.0,
) -> Trained:
    """Train `model` in place, in float32 (bf16 autocast where the processor has it), and leave it in eval mode.

    rows: encoded, with labels when an objective needs them.
    teachers: what objectives learn from; the first one is meant where one is.
    during: what acts on the model meanwhile; at the end each makes its effect real, by edits.
    tokenizer: needed by objectives that make texts or hide tokens.
    validate: gives a score, higher is better, at the end of each epoch; the model ends with the weights of the best of
        those epochs in which everything in `during` had its final strength.
    batch_size: rows in a batch.  batch_tokens: rows of about one length up to so many tokens instead, with padding.
    accumulate: batches a step; its loss is the mean over all their rows, and over those of all processes.
    patience: stop after so many epochs in a row without a better score, of those epochs in which everything in
        `during` had its final strength.
    warmup: share of the steps in which the learning rate rises, before it falls linearly to zero.
    work: checkpoints go into a folder in it that is named by everything that decides the result, so that the same call
        continues where it was interrupted and another one starts anew. The two newest are kept.
    On one CPU the same call gives the same bytes, interrupted or not. Where `torchrun` started several processes, all
    of them have to make the same call; they train together, and all end with the same weights.
    Raises LissomError LSM-827 without rows, LSM-905 when the loss is NaN or infinite: the model then has the weights of
    the last checkpoint, or those with which it came.
    """
    if not len(rows):
        raise LissomError(827, "there are no rows to train on", remedy="Give more or longer texts.")
    if model.dtype in _HALF:  # the steps of the optimizer would be lost in them
        model.float()  # type: ignore[no-untyped-call]
    # autocast does not mix half precision in norms
    teachers = [copy.deepcopy(one).float() if one.dtype in _HALF else one for one in teachers]  # type: ignore[no-untyped-call]
    schedule = {
        "num_train_epochs": epochs,
        "max_steps": max_steps or -1,
        "learning_rate": learning_rate,
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": accumulate,
        "warmup_steps": warmup,
        "weight_decay": weight_decay,
        "seed": seed,
        "use_cpu": device == "cpu",
    }
    arguments = _arguments(work, schedule)  # several processes know of each other from here on
    bf16 = bf16_is_faster(device)
    means = Means(
        teachers=teachers,
        work=work,
        device=arguments.device,
        bf16=bf16,
        versions=(torch.__version__, transformers.__version__),
        report=report,
    )
    with arguments.main_process_first(local=False):  # the others read what it wrote
        for objective in objectives.values():
            rows = objective.rewrite(rows, means)
    rows, held = _held_back(rows, max((one.held for one in during), default=0.0), seed)
    lengths, contents = _read(rows)
    learn = {name: [type(one).__name__, dataclasses.asdict(one)] for name, one in objectives.items()}
    acts = [[type(one).__name__, dataclasses.asdict(one)] for one in during]
    read = [contents, *([_read(held)[1]] if held else [])]
    plan = [schedule, batch_tokens, patience, processes.count(), learn, acts, read, torch.__version__]
    key = digest(plan, model, *teachers)
    if not processes.agree(key, arguments.device):
        cause = "the processes have not the same model, rows and options"
        raise LissomError(219, cause, place="tune", remedy="Start all of them with the same command.")
    arguments.output_dir = str(work / f"tune-{key}")
    whole = max_steps is None or max_steps * accumulate * processes.count() * batch_size >= len(rows)
    editor = Editor(model)
    with _untouched(model, teachers, eager=any("attentions" in one.reads for one in objectives.values())):
        stored: list[Tensor] = []
        if whole and _only_logits(objectives, during) and all(map(one_answer_a_row, teachers)):
            stored = _stored(teachers, rows, contents, arguments, work, bf16=bf16, pad_id=pad_id)
        set_seed(seed)
        with _acting(during, editor, teachers) as (acting, asked):
            engine = Engine(
                model,
                arguments,
                rows,
                lengths,
                objectives,
                teachers=asked,
                stored=stored,
                acting=acting,
                held=held,
                tokenizer=tokenizer,
                validate=validate,
                patience=patience,
                batch_tokens=batch_tokens,
                pad_id=pad_id,
                next_token=model.can_generate() and not model.config.is_encoder_decoder,
                bf16=bf16,
                report=report,
                save_seconds=save_seconds,
            )
            with engine.watching:
                done = _finish(engine)
    for _, it in sorted(zip(during, acting, strict=True), key=lambda pair: pair[0].order):
        it.end(editor)
    return done


@contextlib.contextmanager
def _acting(
    during: Sequence[During], editor: Editor, teachers: Sequence[PreTrainedModel]
) -> Iterator[tuple[list[Acting], list[PreTrainedModel]]]:
    """What acts on the model, put into it, and whom to ask then; taken out in the end, whatever happens."""
    acting: list[Acting] = []
    asked = list(teachers)
    try:
        for one in during:
            acting.append(one.begin(editor, asked[0] if asked else None))
            if acting[-1].teacher is not None:
                asked[0] = acting[-1].teacher
        yield acting, asked
    finally:
        for it in acting:
            it.remove()


def _stored(
    teachers: Sequence[PreTrainedModel],
    rows: datasets.Dataset,
    contents: str,
    arguments: TrainingArguments,
    work: Path,
    *,
    bf16: bool,
    pad_id: int,
) -> list[Tensor]:
    """The answers of each teacher to all rows, asked now or read from `work`."""
    names = [f"answers-{digest([contents, bf16, torch.__version__], one)}.safetensors" for one in teachers]
    with arguments.main_process_first(local=False):  # the others read what it wrote
        return [
            answers(nn.Module.to(one, arguments.device), rows, work / name, pad_id=pad_id, bf16=bf16)
            for one, name in zip(teachers, names, strict=True)
        ]


def _only_logits(objectives: Mapping[str, Objective], during: Sequence[During]) -> bool:
    """Whether teachers are asked for nothing but their logits on the rows as they are."""
    every = objectives.values()
    asked = any(one.teacher for one in every)
    live = any(one.asks or (one.teacher and one.reads) for one in every) or any(one.teacher for one in during)
    return asked and not live


def _finish(engine: Engine) -> Trained:
    """Train to the end from the newest checkpoint of this run, if there is one."""
    folder = Path(str(engine.args.output_dir))
    found = checkpoint.newest(folder) if processes.first() else None
    resumed = int(processes.told(checkpoint.step(found) if found else 0, engine.args.device))
    last = folder / f"checkpoint-{resumed}" if resumed else None
    try:
        if last is None or not engine.stopped(last):
            engine.train(resume_from_checkpoint=str(last) if last else None)
    except LissomError:
        engine.put_back()
        raise
    rows_per_second = engine.pace.rows_per_second
    engine._load_best_model()
    processes.share_buffers(engine.model)
    for one in engine.acting:
        one.bake()
    processes.wait()  # nobody reads the checkpoints any more
    return Trained(
        steps=engine.state.global_step,
        resumed=resumed,
        loss=engine.pace.loss,
        rows_per_step=engine.rows_per_step,
        best_step=engine.best.step if engine.best else None,
        score=engine.best.score if engine.best else None,
        rows_per_second=rows_per_second,
        bf16=engine.bf16,
    )


def bf16_is_faster(device: str) -> bool:
    """Whether matrix products in bf16 have instructions of their own; elsewhere they are emulated and slower.

    MiniLM-L6 on SST-2, batches of 32, a core with avx512_bf16: 100 texts a CPU second against 38 in float32; with a
    teacher of the same size 77 against 30.
    """
    if device == "cpu":
        features: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def _arguments(folder: Path, schedule: Mapping[str, Any]) -> TrainingArguments:
    return processes.arguments(
        output_dir=str(folder),
        **schedule,
        save_strategy="no",  # the engine says when, by epoch and by time
        eval_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,  # the default replaces a NaN loss by the average of earlier ones
        remove_unused_columns=False,
        dataloader_pin_memory=not schedule["use_cpu"],
        disable_tqdm=True,
        report_to="none",
    )


@contextlib.contextmanager
def _untouched(model: PreTrainedModel, teachers: Sequence[PreTrainedModel], *, eager: bool) -> Iterator[None]:
    """Put back what training sets beside the weights: random numbers, `use_cache`, the kind of attention, the modes.

    No stack fills a cache of keys and values meanwhile; those of some families have configs of their own.
    eager: attention that also gives its maps, which the faster kinds do not.
    """
    numbers = checkpoint.random_state()
    there = "use_cache" in vars(model.config)
    found = [getattr(module, "config", None) for one in (model, *teachers) for module in one.modules()]
    configs = {id(one): one for one in found if isinstance(one, PreTrainedConfig)}
    caches = [(one, one.use_cache) for one in configs.values() if "use_cache" in vars(one)]
    kinds = [(one, one.config._attn_implementation) for one in (model, *teachers)] if eager else []
    kinds = [(one, kind) for one, kind in kinds if kind != ATTENTION]  # which gives its maps
    try:
        for config, _ in caches:
            config.use_cache = False
        for teacher in teachers:
            teacher.eval()  # type: ignore[no-untyped-call]
        for one, _ in kinds:
            one.set_attn_implementation("eager")
        yield
    finally:
        checkpoint.set_random_state(numbers)
        for one, kind in kinds:
            one.set_attn_implementation(kind)
        for config, cache in caches:
            config.use_cache = cache
        if not there:
            vars(model.config).pop("use_cache", None)
        vars(model).pop("_is_accelerate_prepared", None)
        model.eval()  # type: ignore[no-untyped-call]


def _held_back(rows: datasets.Dataset, share: float, seed: int) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """The rows to train on, and a random `share` of all, at least one, that is kept from training; None without one."""
    if not share:
        return rows, None
    count = max(1, round(share * len(rows)))
    if count >= len(rows):
        cause = f"of {len(rows)} rows {count} are held back, and none is left to train on"
        raise LissomError(827, cause, place="while", remedy="Give more texts.")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return rows.select(sorted(order[count:])), rows.select(sorted(order[:count]))


def _read(rows: datasets.Dataset) -> tuple[list[int], str]:
    """Tokens in each row, and a digest of all rows."""
    lengths: list[int] = []
    contents = hashlib.sha256()
    for some in rows.iter(1000):
        lengths.extend(map(len, some["input_ids"]))
        contents.update(json.dumps(some).encode())
    return lengths, contents.hexdigest()
