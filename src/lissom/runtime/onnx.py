"""The ONNX Runtime engine: an exported folder, without torch and without transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lissom.errors import LissomError, nearest
from lissom.runtime.exported import answers, check_inputs, open_tokenizer, read_about, usable_cores, verify
from lissom.runtime.runner import Arrays, Runner

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRunner(Runner):
    """Runs `onnx/*.onnx` of a folder that also holds tokenizer.json and config.json.

    variant: which graph, by what stands after `model_` in its file name ("quantized", "fp16", ...), or "fp32" for
        model.onnx itself. None takes the quantized one where there is one, else model.onnx.
    device: "cpu" or "cuda"; an engine that cannot run there is an error, never a silent fall back to the CPU.
    threads: of one pass; None takes every core this process may use.  max_length: tokens; None takes the model's.
    tokens_per_batch: MiniLM-L6, short news texts, 2 cores, best of 7 runs, fp32 and int8: 331 and 646 texts a second
        with 256 tokens, 325 and 674 with 512, 313 and 607 with 1,024, 285 and 536 with 2,048. A GPU wants more.
    Raises LissomError LSM-731 when onnxruntime is missing, LSM-732 when the device is, LSM-735 when the graph is not
    there or wants inputs that no tokenizer gives, LSM-461 to 463 when a file is not the one that was exported, LSM-471
    when onnxruntime cannot read it.
    """

    name: ClassVar[str] = "onnxruntime"
    tokens_per_batch: ClassVar[int] = 512

    def __init__(
        self,
        folder: str | Path,
        *,
        device: str = "cpu",
        threads: int | None = None,
        max_length: int | None = None,
        variant: str | None = None,
    ) -> None:
        folder = Path(folder)
        verify(folder)
        self.graph = choose_graph(folder, variant)
        self.variant = variant_of(self.graph)
        self.threads = threads or usable_cores()
        self.session = open_session(self.graph, device=device, threads=self.threads)
        self._types = {one.name: np.int32 if one.type == "tensor(int32)" else np.int64 for one in self._graph_inputs()}
        super().__init__(
            tokenizer=open_tokenizer(folder),
            inputs=frozenset(self._types),
            folder=folder,
            files=tuple(sorted(self.graph.parent.glob(f"{self.graph.name}*"))),  # and its external data
            **read_about(
                folder,
                max_length=max_length,
                width=self.session.get_outputs()[0].shape[-1],
                outputs={one.name for one in self.session.get_outputs()},
            ),
        )

    def forward(self, batch: Arrays) -> Arrays:
        """See `Runner.forward`."""
        feeds = {name: array.astype(self._types[name], copy=False) for name, array in batch.items()}
        names = [output.name for output in self.session.get_outputs()]
        outputs = dict(zip(names, self.session.run(names, feeds), strict=True))
        return answers(outputs, batch, self.sentence)

    def _graph_inputs(self) -> list[Any]:
        found: list[Any] = self.session.get_inputs()
        check_inputs({one.name for one in found}, self.graph)
        return found


def variant_of(graph: Path) -> str:
    """What stands after `model_` in the name of a graph file; "fp32" for model.onnx."""
    return "fp32" if graph.stem == "model" else graph.stem.removeprefix("model_")


def choose_graph(folder: Path, variant: str | None) -> Path:
    """The graph file of `variant`; see `OnnxRunner`."""
    graphs = {variant_of(path): path for path in sorted((folder / "onnx").glob("model*.onnx"))}
    wanted = [variant] if variant else ["quantized", "fp32", *graphs]
    for name in wanted:
        if name in graphs:
            return graphs[name]
    raise LissomError(
        735,
        f'no graph "{variant}"' if variant else "no graph onnx/model*.onnx",
        place=str(folder),
        remedy=nearest(variant or "", graphs) or "Write one with `lissom export`.",
    )


def open_session(graph: Path | bytes, *, device: str = "cpu", threads: int) -> Any:
    """An onnxruntime session with all graph optimizations, on exactly the device asked for."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise LissomError(731, "onnxruntime is not installed", remedy="pip install onnxruntime") from error
    if device == "auto":
        device = "cuda" if PROVIDERS["cuda"] in ort.get_available_providers() else "cpu"
    provider = PROVIDERS.get(device.partition(":")[0])
    if provider is None or provider not in ort.get_available_providers():
        raise LissomError(
            732,
            f'onnxruntime cannot run on "{device}" here, it has {", ".join(ort.get_available_providers())}',
            remedy="Use --device cpu, or install onnxruntime-gpu.",
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(graph) if isinstance(graph, Path) else graph, options, providers=[provider])
    except Exception as error:
        place = str(graph) if isinstance(graph, Path) else ""
        raise LissomError(471, f"onnxruntime cannot read the graph ({error})", place=place) from error
    if session.get_providers()[0] != provider:
        raise LissomError(732, f'onnxruntime left "{device}" for {session.get_providers()[0]}')
    return session
