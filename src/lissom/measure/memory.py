"""Peak memory of a process of its own that opens a subject and answers: `python -m lissom.measure.memory SPEC.json`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lissom.measure.reading import Reading, taken

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lissom.runtime import Runner, Text

RUNS = 3
LIMIT = 600  # seconds for a process


def peak_memory(runner: Runner, texts: Sequence[Text], kind: str, *, runs: int = RUNS) -> Reading:
    """`peak_memory_mb` of a process that does nothing but open the runner's folder and answer `texts`.

    kind: of the task; it decides how the runner is asked.
    A subject that is only in memory cannot be opened by another process: value None.
    """
    if runner.folder is None:
        why = "Not taken: the subject is a model object; save it, and measure the folder in a process of its own."
        return taken("peak_memory_mb", None, why)
    spec = {
        "folder": str(runner.folder.resolve()),
        "engine": runner.name,
        "variant": getattr(runner, "variant", None),
        "threads": getattr(runner, "threads", None),
        "max_length": runner.max_length,
        "kind": kind,
        "pairs": any(isinstance(text, tuple) for text in texts),
        "texts": list(texts),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spec.json"
        path.write_text(json.dumps(spec), encoding="utf-8")
        found = [_run(path) for _ in range(runs)]
    failed = next((one["error"] for one in found if "error" in one), None)
    if failed is not None:
        return taken("peak_memory_mb", None, f"Not taken: the process of its own failed ({failed}).")
    peaks, imports = ([one[name] for one in found] for name in ("peak_mb", "imports_mb"))
    how = f"Peak resident memory ({found[0]['source']}) of a fresh process that opens the subject and answers "
    how += f"{len(texts)} texts; {np.median(imports):.0f} MB of it were there before the subject was opened (Python, "
    how += f"libraries). Median of {runs} processes; interval: the smallest and the largest."
    return taken("peak_memory_mb", float(np.median(peaks)), how, n=runs, low=min(peaks), high=max(peaks))


def _run(spec: Path) -> dict[str, Any]:
    package = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(part for part in (package, os.environ.get("PYTHONPATH", "")) if part)
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "lissom.measure.memory", str(spec)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {LIMIT} s"}
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return {"error": last[0][:200]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def peak_mb() -> tuple[float, str]:
    """The largest resident memory of this process so far, in MB (1e6 bytes), and where the number is from.

    Linux: VmHWM. `ru_maxrss` would also hold the peak of the parent from before `exec`, which may be larger.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6, "VmHWM"
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, "ru_maxrss"


def _import_engine(engine: str) -> None:
    """What this engine's runner will import, so that it is told apart from the model."""
    if engine == "openvino":
        import openvino
        import tokenizers

        import lissom.runtime.openvino

        openvino.Core()
    elif engine == "onnxruntime":
        import onnxruntime  # noqa: F401
        import tokenizers  # noqa: F401

        import lissom.runtime.onnx
    else:
        import transformers  # noqa: F401

        import lissom.runtime.torch
        import lissom.store  # noqa: F401


def main(path: str) -> None:
    """The process of its own: opens, answers, prints one JSON line."""
    from lissom.measure.quality import ask_for
    from lissom.runtime import OpenVinoRunner, open_runner

    spec = json.loads(Path(path).read_text(encoding="utf-8"))
    folder = Path(spec["folder"])
    _import_engine(spec["engine"])
    imports, source = peak_mb()
    opened = OpenVinoRunner if spec["engine"] == "openvino" else open_runner  # which of them reads an ONNX file as well
    runner = opened(folder, threads=spec["threads"], max_length=spec["max_length"], variant=spec["variant"])
    texts = [tuple(text) if spec["pairs"] else text for text in spec["texts"]]
    ask_for(spec["kind"])(runner, texts)
    peak, _ = peak_mb()
    print(json.dumps({"peak_mb": peak, "imports_mb": imports, "source": source}))  # noqa: T201  the child's answer


if __name__ == "__main__":
    main(sys.argv[1])
