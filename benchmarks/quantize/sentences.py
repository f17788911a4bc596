"""Measure int8 forms of a model that embeds texts against its float32 form, all in ONNX Runtime, and time their making.

    python benchmarks/quantize/sentences.py MODEL DATA WORK rows.jsonl

MODEL: a sentence encoder.  DATA: a folder with train.jsonl, to calibrate on, and test.jsonl, pairs with their
similarity.  WORK: what is finished there is not made again.

Rows are those of `lissom measure`, with the seconds from the command to the exported file: both commands as a user
gives them, with their start, measuring and proof.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from onnxruntime.quantization import QuantType, quantize_dynamic

from lissom.data import load_data
from lissom.measure import measure
from lissom.runtime import OnnxRunner

if TYPE_CHECKING:
    from collections.abc import Callable

RECIPES = {"int8": "int8: {}", "int8 by token": "int8: {per: token}", "sentence-int8": ""}
"""Name -> step; a packaged recipe where there is none."""
METRICS = ("spearman", "keep", "cosine", "size_mb", "throughput", "speedup")


def lissom(*arguments: str | Path) -> None:
    """A command of lissom, as a user gives it."""
    subprocess.run([sys.executable, "-m", "lissom", *map(str, arguments)], check=True)


def timed(folder: Path, make: Callable[[], None]) -> None:
    """Make `folder` unless it is there, and keep beside it how many seconds that took."""
    if not folder.exists():
        start = time.perf_counter()
        make()
        folder.with_suffix(".seconds").write_text(str(time.perf_counter() - start), encoding="utf-8")


def make(model: Path, data: Path, work: Path) -> dict[str, Path]:
    """Everything that is measured, made where it is missing: name -> exported folder."""
    work.mkdir(parents=True, exist_ok=True)
    found = {"float32": work / "float32"}
    timed(found["float32"], lambda: lissom("export", model, "--to", "onnx", "--out", work / "float32"))
    found["its own dynamic int8"] = work / "own"
    timed(work / "own", lambda: _own(work / "float32", work / "own"))
    for name, step in RECIPES.items():
        folder = work / name.replace(" ", "-")
        recipe = name
        if step:
            recipe = f"{folder}.yaml"
            Path(recipe).write_text(f"lissom: 1\nname: plain\nsteps:\n  - {step}\n", encoding="utf-8")
        timed(folder, lambda made=folder, recipe=recipe: _compressed(model, recipe, data, made))
        found[name] = folder
    return found


def _compressed(model: Path, recipe: str, data: Path, folder: Path) -> None:
    inner = Path(f"{folder}-torch")
    lissom("compress", model, "--recipe", recipe, "--data", data, "--out", inner, "--force")
    lissom("export", inner, "--to", "onnx", "--out", folder)


def _own(plain: Path, folder: Path) -> None:
    """ONNX Runtime's own."""
    shutil.copytree(plain, folder, ignore=shutil.ignore_patterns("lissom.json", "model.onnx"))
    source, target = (one / "onnx" / "model.onnx" for one in (plain, folder))
    quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8)


def main() -> None:
    """Make, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("model", "data", "work", "rows"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    folders = make(given.model, given.data, given.work)
    runners = {name: OnnxRunner(folder) for name, folder in folders.items()}
    rows = measure(runners, load_data(given.data), reference="float32", metrics=METRICS)
    with given.rows.open("a", encoding="utf-8") as out:
        for row in rows:
            seconds = float(folders[row.subject].with_suffix(".seconds").read_text(encoding="utf-8"))
            out.write(json.dumps({"model": given.model.name, **row.as_dict(), "seconds": seconds}) + "\n")


if __name__ == "__main__":
    main()
