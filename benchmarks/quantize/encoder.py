"""Race int8 forms of a text classifier, and what others make of it, in the same engines on the same texts.

    python benchmarks/quantize/encoder.py MODEL DATA WORK rows.jsonl [--peer PYTHON]

MODEL: a classifier.  DATA: a folder with train.jsonl, to calibrate on, and test.jsonl.  WORK: what is finished there is
not made again.  PYTHON: an interpreter with the packages of peers.txt; without it NNCF is left out.

Each round runs every engine once over all texts, tokenization included, so that what else the machine does hits all
alike. A row is one engine with one way of making batches: as the texts come, by length, or by a budget of tokens.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from lissom.measure.machine import machine, versions
from lissom.nn import int8
from lissom.runtime.onnx import OnnxRunner
from lissom.runtime.openvino import OpenVinoRunner
from lissom.runtime.runner import Runner, answer_of

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS = 32
BATCHES = ("32 as they come", "32 by length", "512 tokens", "1024 tokens")
LIMIT = 1000  # texts


def texts_of(file: Path, count: int) -> list[dict[str, Any]]:
    """The first `count` rows of a JSONL file."""
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]


def answer(runner: Runner, texts: list[str], batches: str) -> np.ndarray:
    """Logits (texts, classes), with batches of one kind."""
    size, _, kind = batches.partition(" ")
    if kind == "tokens":
        return runner.predict(texts, tokens_per_batch=int(size))
    encodings = runner.encode(texts)
    order = list(range(len(texts)))
    if kind == "by length":
        order.sort(key=lambda row: -len(encodings[row].ids))
    found: list[Any] = [None] * len(texts)
    for start in range(0, len(order), ROWS):
        rows = order[start : start + ROWS]
        output = answer_of(runner.forward(runner.pad([encodings[row] for row in rows])))
        for place, row in enumerate(rows):
            found[row] = output[place]
    return np.stack(found)


def lissom(*arguments: str | Path) -> None:
    """A command of lissom, as a user gives it."""
    subprocess.run([sys.executable, "-m", "lissom", *map(str, arguments)], check=True)


def make(model: Path, data: Path, work: Path, peer: str | None) -> dict[str, Callable[[], Runner]]:
    """Everything that races, made where it is missing: name -> how to open it."""
    work.mkdir(parents=True, exist_ok=True)
    for name, options in {"static": "{mode: static}", "dynamic": "{}"}.items():
        recipe = work / f"{name}.yaml"
        recipe.write_text(f"lissom: 1\nname: {name}\nsteps:\n  - int8: {options}\n", encoding="utf-8")
        if not (work / name).exists():
            lissom("compress", model, "--recipe", recipe, "--data", data, "--out", work / name)
        if not (work / f"{name}-onnx").exists():
            lissom("export", work / name, "--to", "onnx", "--out", work / f"{name}-onnx")
    for source, target in ((work / "static", "openvino"), (model, "onnx"), (model, "openvino")):
        out = work / f"{'float' if source == model else source.name}-{target}"
        if not out.exists():
            lissom("export", source, "--to", target, "--out", out)
    own = work / "ort-dynamic"
    if not own.exists():
        plain = work / "float-onnx"
        shutil.copytree(plain, own, ignore=shutil.ignore_patterns("lissom.json", "model.onnx"))
        quantize_dynamic(
            plain / "onnx" / "model.onnx", own / "onnx" / "model.onnx", per_channel=True, weight_type=QuantType.QInt8
        )
    found: dict[str, Callable[[], Runner]] = {
        "ONNX Runtime, float32": lambda: OnnxRunner(work / "float-onnx"),
        "ONNX Runtime, its own dynamic int8": lambda: OnnxRunner(own),
        "ONNX Runtime, lissom int8 dynamic": lambda: OnnxRunner(work / "dynamic-onnx"),
        "ONNX Runtime, lissom int8 static": lambda: OnnxRunner(work / "static-onnx"),
        "OpenVINO, float32": lambda: OpenVinoRunner(work / "float-openvino"),
        "OpenVINO, bfloat16 (its default)": lambda: OpenVinoRunner(work / "float-openvino", precision="bf16"),
        "OpenVINO, lissom int8 static": lambda: OpenVinoRunner(work / "static-openvino"),
    }
    if peer:
        _nncf(work, data, peer)
        found["OpenVINO, NNCF int8"] = lambda: OpenVinoRunner(work / "nncf")
        found["OpenVINO, NNCF int8, rest in bfloat16"] = lambda: OpenVinoRunner(work / "nncf", precision="bf16")
    return found


def _nncf(work: Path, data: Path, peer: str) -> None:
    if (work / "nncf").exists():
        return
    runner = OpenVinoRunner(work / "float-openvino")
    encodings = runner.encode([row["text"] for row in texts_of(data / "train.jsonl", 300)])
    batches = [runner.pad([one]) for one in encodings]  # one text each: its calibrators want one shape at a time
    np.savez(work / "nncf.npz", **{f"{row:04}/{name}": x for row, one in enumerate(batches) for name, x in one.items()})
    made = work / "nncf.making"
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(work / "float-openvino", made, ignore=shutil.ignore_patterns("lissom.json", "openvino_model.*"))
    graphs = (work / "float-openvino/openvino/openvino_model.xml", made / "openvino/openvino_model.xml")
    script = Path(__file__).with_name("nncf_peer.py")
    subprocess.run([peer, str(script), str(graphs[0]), str(work / "nncf.npz"), str(graphs[1])], check=True)
    made.rename(work / "nncf")


def race(found: dict[str, Callable[[], Runner]], rows: list[dict[str, Any]], rounds: int) -> list[dict[str, Any]]:
    """One row for every engine and kind of batches."""
    texts, labels = [row["text"] for row in rows], np.array([row["label"] for row in rows])
    runners = {name: open_() for name, open_ in found.items()}
    first = next(iter(runners.values()))
    tokens = sum(len(one.ids) for one in first.encode(texts))
    original = answer(first, texts, BATCHES[-1])
    cells = [(name, batches) for name in runners for batches in BATCHES]
    answers = {cell: answer(runners[cell[0]], texts, cell[1]) for cell in cells}
    taken: dict[tuple[str, str], list[float]] = {cell: [] for cell in cells}
    for _ in range(rounds):
        for cell in cells:
            start = time.perf_counter()
            answer(runners[cell[0]], texts, cell[1])
            taken[cell].append(time.perf_counter() - start)
    about = {"date": datetime.date.today().isoformat(), "machine": machine(), "versions": versions()}
    made = []
    for cell in cells:
        speed = np.sort(len(texts) / np.array(taken[cell]))
        given = answers[cell]
        lengths = np.linalg.norm(given, axis=1) * np.linalg.norm(original, axis=1)
        made.append(
            {
                "engine": cell[0],
                "batches": cell[1],
                "texts": len(texts),
                "tokens": tokens,
                "rounds": rounds,
                "texts_per_s": float(np.median(speed)),
                "texts_per_s_quartiles": [float(one) for one in np.quantile(speed, (0.25, 0.75))],
                "accuracy": float((given.argmax(1) == labels).mean()),
                "label_loyalty": float((given.argmax(1) == original.argmax(1)).mean()),
                "cosine": float(((given * original).sum(1) / lengths).mean()),
                **about,
            }
        )
    return made


def peak(threads: int) -> float:
    """Int8 operations a second of the best large product that oneDNN does here."""
    torch.set_num_threads(threads)
    size = 2048
    layer = int8.Int8Linear.from_weight(torch.randn(size, size))
    codes, packed = int8.quantize_activation(torch.randn(size, size)), layer._ready()
    best = np.inf
    for _ in range(30):
        start = time.perf_counter()
        int8._onednn(codes, packed, layer.weight_scale, None)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def main() -> None:
    """Make, race, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("model", "data", "work", "rows"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--peer")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    found = make(given.model, given.data, given.work, given.peer)
    best = peak(machine()["threads"])
    config = json.loads((given.model / "config.json").read_text(encoding="utf-8"))
    weights = (
        config["num_hidden_layers"]
        * config["hidden_size"]
        * (4 * config["hidden_size"] + 2 * config["intermediate_size"])
    )
    with given.rows.open("a", encoding="utf-8") as out:
        for row in race(found, texts_of(given.data / "test.jsonl", LIMIT), given.rounds):
            done = 2 * weights * row["tokens"] / row["texts"] * row["texts_per_s"]
            out.write(
                json.dumps({"model": given.model.name, **row, "peak_gops": best / 1e9, "gops": done / 1e9}) + "\n"
            )


if __name__ == "__main__":
    main()
