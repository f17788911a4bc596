"""Peak memory in a process of its own, and the facts about the machine."""

import getpass
import json
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lissom.measure.machine import machine, versions
from lissom.measure.memory import peak_memory
from lissom.runtime import OnnxRunner, open_runner
from tests import tiny
from tests.measure.fakes import Fake
from tests.runtime import made


def test_a_large_graph_takes_its_size_more(tmp_path: Path) -> None:
    small = OnnxRunner(made.exported(tmp_path / "small", made.table()), threads=1)
    large = OnnxRunner(made.exported(tmp_path / "large", np.ones((10_000_000, 3), np.float32)), threads=1)  # 120 MB

    readings = [peak_memory(one, ["good film", "bad end"], "classification", runs=1) for one in (small, large)]

    values = [one.value for one in readings]
    assert None not in values, readings
    assert 120 < values[1] - values[0] < 600
    assert readings[0].n == 1
    assert "of a fresh process that opens the subject and answers 2 texts" in readings[0].how


def test_a_torch_folder_is_opened_by_the_process(tmp_path: Path) -> None:
    tiny.model("bert", "AutoModelForSequenceClassification").save_pretrained(tmp_path)
    made.tokenizer().save_pretrained(tmp_path)
    pairs = [("good film", "bad end")]

    reading = peak_memory(open_runner(tmp_path), pairs, "classification", runs=1)

    assert reading.value is not None, reading.how
    assert reading.value > 100  # torch alone


def test_the_memory_of_this_process_does_not_leak_into_the_reading(tmp_path: Path) -> None:
    """`ru_maxrss` survives `exec`, so a large parent would be reported as the subject's peak."""
    made.exported(tmp_path, made.table())
    code = (
        "import numpy as np; from lissom.measure.memory import peak_memory; from lissom.runtime import OnnxRunner;"
        "ballast = np.ones(100_000_000);"  # 800 MB
        f"print(peak_memory(OnnxRunner({str(tmp_path)!r}), ['good'], 'classification', runs=1).value)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert 20 < float(done.stdout) < 500


def test_a_model_object_has_no_process_of_its_own() -> None:
    reading = peak_memory(Fake(), ["good"], "classification")

    assert reading.value is None
    assert "save it, and measure the folder" in reading.how


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    runner = OnnxRunner(made.exported(tmp_path, made.table()), threads=1)
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"no graph any more")

    reading = peak_memory(runner, ["good"], "classification", runs=1)

    assert reading.value is None
    assert "the process of its own failed" in reading.how
    assert "LSM-471" in reading.how


def test_the_machine_is_described_without_names() -> None:
    found = machine()

    assert set(found) == {"cpu", "cores", "threads", "instructions", "memory_gb", "system"}
    assert found["threads"] >= 1
    assert found["memory_gb"] > 0
    text = json.dumps(found)
    node = platform.node()
    assert not node or node not in text
    assert getpass.getuser() not in text or getpass.getuser() in found["system"]


def test_instruction_sets_are_read_from_the_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = {"model name": "Some CPU", "flags": "fpu avx2 avx512f avx512_vnni amx_tile"}
    monkeypatch.setattr("lissom.measure.machine._cpuinfo", lambda: cpu)

    assert machine()["instructions"] == ["AVX2", "AVX-512", "VNNI", "AMX"]
    assert machine()["cpu"] == "Some CPU"


def test_versions_name_the_engines() -> None:
    assert {"lissom", "python", "torch", "onnxruntime", "transformers"} <= set(versions())
