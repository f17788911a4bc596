"""The tables of results/ that the pages show; docs/generate.py puts them there."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
LOYALTY = "probability_loyalty"
SEEDS = RESULTS / "distil-seeds.jsonl"
DISTILLED = RESULTS / "distil.jsonl"
ENCODERS = RESULTS / "quantize-encoder.jsonl"
DECODER = RESULTS / "quantize-decoder.jsonl"
SENTENCES = RESULTS / "quantize-sentences.jsonl"
UNITS = RESULTS / "structure-units.jsonl"
CUT_ENCODERS = RESULTS / "structure-encoder.jsonl"
CUT_DECODER = RESULTS / "structure-decoder.jsonl"
REFERENCE = "original"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def distilled() -> str:
    """The table of results/distil.jsonl: every student beside its teacher, best first."""
    rows = _rows(DISTILLED)
    teacher, students = rows[0], sorted(rows[1:], key=lambda row: -_reading(row, "accuracy")["value"])
    lines = [_student(row) for row in (teacher, *students)]
    place, data = teacher["machine"], teacher["data"]
    about = (
        f"Measured with `benchmarks/distil/run.sh` on {data['n']} texts of the {data['split']} split of {data['name']} "
        f"in torch on {place['cpu']}, one seed each; intervals are 95 %. The rows are in "
        "[results/distil.jsonl](../results/distil.jsonl)."
    )
    header = ["student", "accuracy", "kept", "same label", "probability loyalty", "MB", "layers' zeros"]
    return _shown(header, lines, about)


def seeds() -> str:
    """The table of results/distil-seeds.jsonl: accuracy by seed, with and without a teacher, from both starts."""
    from statistics import mean

    found: dict[str, list[dict[str, Any]]] = {}
    for row in _rows(SEEDS)[1:]:
        found.setdefault(row["subject"].rpartition("-seed-")[0], []).append(row)
    lines = []
    for name, rows in found.items():
        accuracies, loyalties = ([_reading(row, one)["value"] for row in rows] for one in ("accuracy", LOYALTY))
        each = ", ".join(f"{one:.3f}" for one in accuracies)
        lines.append([f"`{name}`", each, f"{mean(accuracies):.3f}", f"{mean(loyalties):.3f}"])
    source = f"Measured with `benchmarks/distil/seeds.sh`; rows in [results/{SEEDS.name}](../results/{SEEDS.name})."
    return _shown(["student", "accuracy of three seeds", "mean", "mean probability loyalty"], lines, source)


def decoder() -> str:
    """The table of results/quantize-decoder.jsonl: a decoder in few bits by every method, beside the original."""
    rows = _rows(DECODER)
    start = next(row for row in rows if row["subject"] == REFERENCE)
    first, lines = _reading(start, "perplexity")["value"], []
    for row in rows:
        method, _, bits = row["subject"].partition("-")
        found = _reading(row, "perplexity")
        interval = f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})"
        more, name = f"{found['value'] / first - 1:+.1%}", f"`{method}`" if bits else method
        lines.append([bits, name, interval, more if bits else "", f"{_reading(row, 'size_mb')['value']:.0f}"])
    data = start["data"]
    about = (
        f"Measured with `benchmarks/quantize/decoder.sh` on {_reading(start, 'perplexity')['n']} windows of "
        f"{data['name']}; intervals are 95 %, of each model by itself: all read the same windows, so that differences "
        f"are surer than they say. Rows in [results/{DECODER.name}](../results/{DECODER.name})."
    )
    header = ["bits", "method", "perplexity", "against the original", "MB"]
    return _shown(header, lines, about)


def encoders() -> str:
    """The table of results/quantize-encoder.jsonl: texts a second of each engine and form, by how batches are made."""
    rows = [json.loads(line) for line in ENCODERS.read_text(encoding="utf-8").splitlines()]
    kinds = list(dict.fromkeys(row["batches"] for row in rows))
    parts = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        lines = []
        for engine in dict.fromkeys(row["engine"] for row in own):
            cells = {row["batches"]: row for row in own if row["engine"] == engine}
            last = cells[kinds[-1]]
            speeds = [f"{cells[kind]['texts_per_s']:.0f}" for kind in kinds]
            quality = [f"{last['accuracy']:.3f}", f"{last['label_loyalty']:.3f}", f"{last['cosine']:.4f}"]
            lines.append(
                [engine, *speeds, *quality, f"{max(row['gops'] / row['peak_gops'] for row in cells.values()):.0%}"]
            )
        header = [f"`{model}`: texts a second", *kinds, "accuracy", "same label", "cosine", "of the int8 peak"]
        parts.append(table(header, lines))
    first = rows[0]
    about = (
        f"Measured with `benchmarks/quantize/encoder.py` on {first['date']}, {first['machine']['cores']} cores of "
        f"{first['machine']['cpu']} ({', '.join(first['machine']['instructions'])}), tokenization included: medians of "
        f"interleaved rounds over {first['texts']} texts of SST-2 and of AG News. Of the int8 peak: operations of the "
        f"real tokens in the linear maps of blocks, against {first['peak_gops']:.0f} GOP/s of one large product. Rows "
        f"with quartiles in [results/{ENCODERS.name}](../results/{ENCODERS.name})."
    )
    return "\n".join(parts) + f"\n{_wrapped(about)}\n"


def sentences() -> str:
    """The table of results/quantize-sentences.jsonl: a sentence encoder in int8 by several ways, beside float32."""
    rows = _rows(SENTENCES)
    lines = []
    for row in rows:
        said = {one["name"]: one["value"] for one in row["readings"]}
        numbers = [f"{said['cosine']:.4f}", f"{said['spearman']:.4f}", f"{said['size_mb']:.1f}"]
        lines.append([row["subject"], *numbers, f"{said['throughput']:.0f}", f"{row['seconds']:.0f}"])
    first = rows[0]
    about = (
        f"`{first['model']}` in ONNX Runtime, measured with `benchmarks/quantize/sentences.py` on {first['data']['n']} "
        f"pairs of the {first['data']['split']} split of {first['data']['name']}, calibrated on its train split, on "
        f"{first['machine']['cores']} cores of {first['machine']['cpu']}. Seconds are from the command to the exported "
        f"file, measuring and proof included. Rows in [results/{SENTENCES.name}](../results/{SENTENCES.name})."
    )
    header = ["form", "cosine", "Spearman", "MB", "texts a second", "seconds to make"]
    return _shown(header, lines, about)


def units() -> str:
    """The table of results/structure-units.jsonl: encoders with fewer heads and neurons in ONNX Runtime."""
    rows, lines = _rows(UNITS), []
    for row in rows:
        said = {one["name"]: one for one in row["readings"]}
        share = said["flops"]["value"] / _reading(_original(rows, row), "flops")["value"]
        times = said.get("speedup")
        faster = "" if times is None else f"{times['value']:.2f}× ({times['low']:.2f} to {times['high']:.2f})"
        name = row["subject"] if row["subject"] == REFERENCE else f"`{row['subject'].removesuffix('-onnx')}`"
        speed = f"{said['throughput']['value']:.0f}"
        lines.append(
            [row["data"]["name"], name, _interval(said["accuracy"]), _kept(said), f"{share:.0%}", speed, faster]
        )
    about = (
        f"In ONNX Runtime, float32, measured with `benchmarks/structure/units.sh` on the test split on "
        f"{rows[0]['machine']['cores']} cores of {rows[0]['machine']['cpu']}, tokenization included: medians of "
        f"interleaved rounds. `fast-ptp` and `columns` are not trained, `half-flops` is; `columns-70` is "
        f"`prune_units: {{flops: 0.7}}`. Rows in [results/{UNITS.name}](../results/{UNITS.name})."
    )
    header = ["data", "model", "accuracy", "kept", "operations", "texts a second", "as fast as the original"]
    return _shown(header, lines, about)


def cut_encoders() -> str:
    """The table of results/structure-encoder.jsonl: encoders with thin maps or shared layers, beside their teachers."""
    rows, lines = _rows(CUT_ENCODERS), []
    for row in rows:
        said = {one["name"]: one for one in row["readings"]}
        name = row["subject"] if row["subject"] == "teacher" else f"`{row['subject'].removesuffix('-uniform')}`"
        counted = [f"{said['parameters']['value'] / 1e6:.1f}", f"{said['flops']['value'] / 1e6:.0f}"]
        place = f"{row['data']['name']}, {row['data']['split']}"
        lines.append([place, name, _interval(said["accuracy"]), _kept(said), *counted])
    about = (
        f"`weights`, `fisher` and `inputs` are `svd: {{ratio: 0.5}}` by plain weights, by Fisher information and by "
        f"the inputs, none of them trained afterwards; `drone` and `shared-two` are the recipes, healed, "
        f"`-phrases` on more texts. Measured in torch with `benchmarks/structure/rank.sh` and `sharing.sh`. Rows in "
        f"[results/{CUT_ENCODERS.name}](../results/{CUT_ENCODERS.name})."
    )
    header = ["data", "model", "accuracy", "kept", "million parameters", "MFLOP"]
    return _shown(header, lines, about)


def cut_decoder() -> str:
    """The table of results/structure-decoder.jsonl: a decoder cut in several ways without training."""
    from lissom.bench.format import interval as between
    from lissom.bench.format import number, times

    rows, lines = _rows(CUT_DECODER), []
    for row in rows:
        if row["subject"] == REFERENCE and lines:
            continue  # every script measures it again
        said = {one["name"]: one for one in row["readings"]}
        found = said["perplexity"]
        ends = (found["low"], found["high"])
        more = times(found["value"] / _reading(_original(rows, row), "perplexity")["value"])
        name = row["subject"] if row["subject"] == REFERENCE else f"`{row['subject']}`"
        interval = f"{number(found['value'], *ends)} ({between(*ends)})"
        lines.append(
            [name, interval, more, f"{said['parameters']['value'] / 1e6:.0f}", f"{said['size_mb']['value']:.0f}"]
        )
    data = rows[0]["data"]
    about = (
        f"Measured in torch with `benchmarks/structure/zeros.sh`, `depth.sh` and `rank-decoder.sh` on "
        f"{_reading(rows[0], 'perplexity')['n']} windows of {data['name']}; intervals are 95 %, of each model by "
        f"itself. Rows in [results/{CUT_DECODER.name}](../results/{CUT_DECODER.name})."
    )
    header = ["model", "perplexity", "against the original", "million parameters", "MB"]
    return _shown(header, lines, about)


def _original(rows: Sequence[dict[str, Any]], row: dict[str, Any]) -> dict[str, Any]:
    """The row of the original on the same data."""
    return next(one for one in rows if one["subject"] == REFERENCE and one["data"] == row["data"])


def _interval(reading: dict[str, Any]) -> str:
    low, high = reading["low"], reading["high"]
    return f"{reading['value']:.3f} ({low:.3f} to {high:.3f})"


def _kept(said: dict[str, dict[str, Any]]) -> str:
    return f"{said['keep']['value']:.3f}"


def _rows(path: Path) -> list[dict[str, Any]]:
    from lissom.bench.rows import read_rows

    return read_rows([path])


def _shown(header: Sequence[str], lines: Iterable[Sequence[str]], about: str) -> str:
    """A table and what is to be known of it."""
    return f"{table(header, lines)}\n{_wrapped(about)}\n"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)


def _reading(row: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in row["readings"] if one["name"] == name)


def _student(row: dict[str, Any]) -> list[str]:
    said = {one["name"]: one for one in row["readings"]}
    accuracy = said["accuracy"]
    interval = f"{accuracy['value']:.3f} ({accuracy['low']:.3f} to {accuracy['high']:.3f})"
    shares = [f"{said[name]['value']:.3f}" for name in ("keep", "label_loyalty", "probability_loyalty")]
    zeros = said["sparsity"]["value"]
    file = ROOT / "benchmarks" / "distil" / f"{row['subject']}.yaml"
    name = f"[`{row['subject']}`](../benchmarks/distil/{file.name})" if file.exists() else f"`{row['subject']}`"
    return [name, interval, *shares, f"{said['size_mb']['value']:.1f}", f"{zeros:.0%}" if zeros >= 0.01 else ""]


PARTS = {
    "distilled": distilled,
    "seeds": seeds,
    "decoder": decoder,
    "sentences": sentences,
    "encoders": encoders,
    "units": units,
    "cut encoders": cut_encoders,
    "cut decoder": cut_decoder,
}
