"""`lissom demo`: the main job on a real model and real news, offline, from a plain encoder to a measured artifact."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from lissom import gate
from lissom.bench.report import report as write_report
from lissom.bench.rows import append_row
from lissom.compress import COMPRESSED, ORIGINAL, Result, compress
from lissom.data import Data, demo_data, demo_model_folder
from lissom.errors import LissomError
from lissom.export import export
from lissom.files import write_json, write_text
from lissom.measure import Row, measure
from lissom.runtime import OnnxRunner, TorchRunner
from lissom.store import load, load_tokenizer, save
from lissom.train.finetune import finetune

RECIPE = "demo"
KEEP = 0.98
MAX_LENGTH = 96  # tokens; few headlines with their lead are longer
_UNFINISHED = "work"
_SHARES = {"fine-tune": 0.36, "compress": 0.36, "export": 0.08, "measure": 0.20}  # of the time, on two cores

Report = Callable[[str, float], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo:
    """What the demo leaves in `folder`: teacher, model (a lissom folder), onnx, data, rows.jsonl and report.html.

    rows: readings of "original" (torch, float32) and "compressed" (ONNX Runtime, int8), taken in turns.
    verdicts: of the gate, on the file that ships.
    """

    folder: Path
    rows: tuple[Row, ...]
    verdicts: tuple[gate.Verdict, ...]
    result: Result


def run(
    out: str | Path = "lissom-demo",
    *,
    force: bool = False,
    seed: int = 0,
    threads: int | None = None,
    report: Report = lambda phrase, fraction: None,
) -> Demo:
    """Fine-tune MiniLM on BBC news, compress it by the recipe "demo", export it to ONNX, measure both, write a report.

    An interrupted demo goes on where it stopped when it is run again.
    Raises LissomError 201 when `out` holds something else and not `force`, 702 without the demo extra.
    """
    folder = Path(out)
    work = _claim(folder, force)
    data = demo_data(seed)
    _write_data(data, folder / "data")
    model, tokenizer = load(demo_model_folder()), load_tokenizer(demo_model_folder())
    teacher, _ = finetune(
        model,
        data,
        tokenizer=tokenizer,
        epochs=2,
        learning_rate=1e-4,
        seed=seed,
        max_length=MAX_LENGTH,
        work=work,
        report=_part(report, "fine-tune"),
    )
    save(teacher, folder / "teacher", tokenizer=tokenizer, force=True)
    result = compress(
        folder / "teacher",
        RECIPE,
        data=data,
        keep=KEEP,
        seed=seed,
        max_length=MAX_LENGTH,
        work=work,
        report=_part(report, "compress"),
    )
    result.save(folder / "model", force=True)
    _part(report, "export")("to ONNX, checked against torch", 0.0)
    export(folder / "model", "onnx", folder / "onnx", force=True)
    rows = _measured(folder, data, seed, threads, _part(report, "measure"))
    verdicts = gate.evaluate(gate.parse(f"keep>={KEEP}"), rows[1].as_dict()["readings"])
    _write_evidence(folder, rows, result, verdicts)
    shutil.rmtree(work)
    return Demo(folder=folder, rows=rows, verdicts=verdicts, result=result)


def _claim(folder: Path, force: bool) -> Path:
    """The folder for checkpoints inside `folder`; while it is there, the demo is unfinished and may go on."""
    work = folder / _UNFINISHED
    if folder.exists() and not work.is_dir() and any(folder.iterdir()) and not force:
        cause = f"output folder {folder} exists and is not empty"
        raise LissomError(201, cause, remedy="Use --force or another --out.")
    work.mkdir(parents=True, exist_ok=True)
    return work


def _part(report: Report, name: str) -> Report:
    """Progress of one part as progress of the whole demo."""
    before = sum(share for part, share in list(_SHARES.items())[: list(_SHARES).index(name)])
    return lambda phrase, fraction: report(f"{name}, {phrase}", before + _SHARES[name] * fraction)


def _measured(folder: Path, data: Data, seed: int, threads: int | None, report: Report) -> tuple[Row, ...]:
    teacher = folder / "teacher"
    original = TorchRunner(
        load(teacher), load_tokenizer(teacher), max_length=MAX_LENGTH, threads=threads, folder=teacher
    )
    shipped = OnnxRunner(folder / "onnx", max_length=MAX_LENGTH, threads=threads)
    runners = {ORIGINAL: original, COMPRESSED: shipped}
    return tuple(measure(runners, data, split="test", reference=ORIGINAL, seed=seed, report=report))


def _write_data(data: Data, folder: Path) -> None:
    """The splits as files, so that every later command can name them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in data.splits.items():
        write_text(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_json(folder / "meta.json", {"name": data.name, "label_names": list(data.task.labels)})


def _write_evidence(folder: Path, rows: tuple[Row, ...], result: Result, verdicts: tuple[gate.Verdict, ...]) -> None:
    (folder / "rows.jsonl").unlink(missing_ok=True)
    plain = [row.as_dict() for row in rows]
    for row in plain:
        append_row(folder / "rows.jsonl", row)
    write_report(
        plain,
        folder / "report.html",
        reference=ORIGINAL,
        steps=result.steps,
        gate={
            "text": f"keep >= {KEEP}",
            "met": all(verdict.met for verdict in verdicts),
            "found": "; ".join(verdict.text for verdict in verdicts),
        },
        reproduce=["lissom demo"],
        title="lissom demo: news topics with MiniLM",
    )
