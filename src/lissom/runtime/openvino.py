"""The OpenVINO engine: an exported folder on Intel and Arm processors, without torch and without transformers."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lissom.errors import LissomError
from lissom.files import inside
from lissom.runtime.exported import answers, check_inputs, open_tokenizer, read_about, usable_cores, verify
from lissom.runtime.onnx import choose_graph, variant_of
from lissom.runtime.runner import Arrays, Runner

MODEL = "openvino/openvino_model.xml"
"""Where the graph lies in a folder; its weights are in a .bin of the same name."""


class OpenVinoRunner(Runner):
    """Runs `openvino/openvino_model.xml` of a folder, or its `onnx/*.onnx`, with tokenizer.json and config.json beside.

    variant: which ONNX graph, as `OnnxRunner` takes it, also where there is an .xml. None takes the .xml where there is
        one.
    precision: "f32" or "bf16", what is computed in where layers are not int8. OpenVINO's own default on processors that
        have it is bf16: faster, and its answers differ from those of the other engines (logits of MiniLM-L6 by up to
        0.06, the label of 2 texts in 512). Here nothing is rounded that was not asked for.
    tokens_per_batch: MiniLM-L6, 512 news titles, 2 cores, best of 3 runs in float32: 388 texts a second with 256
        tokens, 408 with 512, 405 with 1,024, 384 with 2,048; bf16 wants 1,024 (660).
    threads: of one pass; None takes every core this process may use.  max_length: tokens; None takes the model's.
    device: "cpu", or "auto", which is the CPU.  graph: the ONNX file, None for an .xml.
    Raises LissomError LSM-738 when openvino is missing, LSM-732 for another device, LSM-735 when there is no graph or
    it wants inputs that no tokenizer gives, LSM-461 to 463 when a file is not the one that was exported, LSM-421 and
    422 when one lies outside the folder, LSM-472 when OpenVINO cannot read it.
    """

    name: ClassVar[str] = "openvino"
    tokens_per_batch: ClassVar[int] = 512

    def __init__(
        self,
        folder: str | Path,
        *,
        device: str = "cpu",
        threads: int | None = None,
        max_length: int | None = None,
        variant: str | None = None,
        precision: str = "f32",
    ) -> None:
        folder = Path(folder)
        if device not in {"cpu", "auto"}:
            cause = f'the OpenVINO engine of lissom runs on the CPU, not on "{device}"'
            raise LissomError(732, cause, remedy="Use --device cpu.")
        verify(folder)
        source = find_graph(folder, variant)
        self.graph = source if source.suffix == ".onnx" else None
        self.variant = None if self.graph is None else variant_of(source)
        self.threads = threads or usable_cores()
        self.compiled = open_model(source, threads=self.threads, precision=precision)
        inputs = {one.any_name for one in self.compiled.inputs}
        check_inputs(inputs, source)
        self._own = threading.local()  # one request each thread: a request answers one batch at a time
        weights = source.with_suffix(".bin").name if source.suffix == ".xml" else f"{source.name}*"
        super().__init__(
            tokenizer=open_tokenizer(folder),
            inputs=frozenset(inputs),
            folder=folder,
            files=tuple(sorted({source, *source.parent.glob(weights)})),
            **read_about(
                folder,
                max_length=max_length,
                width=_width(self.compiled),
                outputs={one.any_name for one in self.compiled.outputs},
            ),
        )

    def forward(self, batch: Arrays) -> Arrays:
        """See `Runner.forward`."""
        if not hasattr(self._own, "request"):
            self._own.request = self.compiled.create_infer_request()
        return answers(infer(self._own.request, batch), batch, self.sentence)


def find_graph(folder: Path, variant: str | None = None) -> Path:
    """The graph file that `OpenVinoRunner` reads."""
    if variant is None and (folder / MODEL).exists():
        inside(folder, str(Path(MODEL).with_suffix(".bin")))
        return inside(folder, MODEL)
    return inside(folder, choose_graph(folder, variant).relative_to(folder).as_posix())


def open_core() -> Any:
    """OpenVINO itself. Raises LissomError LSM-738 when it is not installed."""
    try:
        import openvino
    except ImportError as error:
        raise LissomError(738, "openvino is not installed", remedy='pip install "lissom[openvino]"') from error
    return openvino.Core()


def read_graph(graph: Path | bytes, core: Any) -> Any:
    """An .xml or .onnx file, or the bytes of one, as an `openvino.Model`. core: from `open_core`.

    OpenVINO's own `convert_model` is not used: it tells its makers about each call.
    Raises LissomError LSM-472 when OpenVINO cannot read it.
    """
    try:
        return core.read_model(graph)
    except Exception as error:
        place = str(graph) if isinstance(graph, Path) else ""
        lines = [line for line in str(error).splitlines() if line.strip() and "src/" not in line]
        cause = f"OpenVINO cannot read the graph ({' '.join(lines)[:200]})"
        raise LissomError(472, cause, place=place, remedy="Export the model again.") from error


def open_model(graph: Path | bytes, *, threads: int, precision: str = "f32") -> Any:
    """`graph` ready to run on the CPU. See `OpenVinoRunner` for the options and what is raised."""
    core = open_core()
    model = read_graph(graph, core)
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
        "NUM_STREAMS": 1,  # a batch at a time, with all threads, as the other engines do
        "PERFORMANCE_HINT": "LATENCY",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # else inputs of few-bit layers may be rounded to 8 bits
    }
    place = str(graph) if isinstance(graph, Path) else ""
    if not model.outputs:
        raise LissomError(472, "the graph answers nothing", place=place, remedy="Export the model again.")
    try:
        return core.compile_model(model, "CPU", settings)
    except Exception as error:
        cause = f"OpenVINO cannot run the graph ({' '.join(str(error).split())[:200]})"
        raise LissomError(472, cause, place=place, remedy="Export the model again.") from error


def _width(compiled: Any) -> int | None:
    """The last axis of the first output, where that is fixed."""
    shape = compiled.outputs[0].partial_shape
    if shape.rank.is_dynamic or not len(shape) or shape[-1].is_dynamic:
        return None
    return int(shape[-1].get_length())


def infer(request: Any, batch: Arrays) -> Arrays:
    """One pass: the graph's outputs by name, as arrays of their own."""
    found = request.infer({name: np.ascontiguousarray(array) for name, array in batch.items()}, share_outputs=False)
    return {output.any_name: np.asarray(array) for output, array in found.items()}
