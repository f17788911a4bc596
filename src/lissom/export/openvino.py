"""OpenVINO: the graph of the ONNX target in OpenVINO's own form, in a folder as Optimum and OpenVINO's tools read it.

    config.json  tokenizer files  openvino/openvino_model.xml  openvino/openvino_model.bin  lissom.json

The same models become it, with the same inputs and answers, as in `lissom.export.onnx`. Weights stay in float32, or
int8 where they are: no float16, so that answers stay those of torch.
"""

from __future__ import annotations

import dataclasses
import shutil
from typing import TYPE_CHECKING, Any

import torch

from lissom.errors import LissomError
from lissom.export import exits, onnx, parity
from lissom.runtime import openvino as engine

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SLOW = (
    "OpenVINO runs int8 layers whose activations are quantized while it runs slowly, often more slowly than float32. "
    "For OpenVINO quantize with `int8: {mode: static}`, or export to onnx."
)
_REMEDY = "Nothing was written. Please report the model type and these numbers."


@dataclasses.dataclass(frozen=True)
class OpenVinoGraph(parity.Graph):
    """A graph in OpenVINO, on the CPU and in float32."""

    @property
    def engine(self) -> str:
        """Its name and version."""
        import openvino

        return f"openvino {openvino.__version__.split('-')[0]}"

    def answers(self, forward: onnx.Forward, given: list[dict[str, Tensor]]) -> list[parity.Answers]:
        """What it answers to each batch, in the order of `forward.outputs`.

        Raises LissomError LSM-912 when an axis is fixed or does not run, LSM-913 when an output is missing.
        """
        compiled = engine.open_model(self.file, threads=torch.get_num_threads())
        self._check_ports(compiled, forward)
        request, made = compiled.create_infer_request(), []
        for one in given:
            try:
                found = engine.infer(request, {name: one[name].numpy() for name in forward.inputs})
            except Exception as error:
                shape = tuple(one["input_ids"].shape)
                cause = f"the graph does not run at (batch, sequence) = {shape}: {' '.join(str(error).split())[:200]}"
                raise LissomError(912, cause, place=self.place, remedy=_REMEDY) from error
            made.append([found[name] for name in forward.outputs])
        return made

    def _check_ports(self, compiled: Any, forward: onnx.Forward) -> None:
        outputs = {one.any_name for one in compiled.outputs}
        missing = [name for name in forward.outputs if name not in outputs]
        if missing:
            cause = f"the graph has no output {missing[0]}, but {', '.join(sorted(outputs))}"
            raise LissomError(913, cause, place=self.place, remedy=_REMEDY)
        inputs = {one.any_name: one.partial_shape for one in compiled.inputs}
        for name in forward.inputs:
            shape = inputs.get(name, ())
            if len(shape) != 2 or not all(axis.is_dynamic for axis in shape):
                cause = f"input {name} is {shape}, not (batch, sequence) with both free"
                raise LissomError(912, cause, place=self.place, remedy=_REMEDY)


def write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> dict[str, Any]:
    """Fill `folder` and prove the graph, in OpenVINO, against torch. Returns what the manifest holds about it.

    Raises LissomError LSM-738 when openvino is missing, LSM-741 to 743 for a model that does not become a graph,
    LSM-911 to 913 when the check fails.
    """
    engine.open_core()
    if exits.settings(model):
        cause = f"texts leave this {type(model).__name__} early, by thresholds that OpenVINO would not let a caller set"
        raise LissomError(741, cause, remedy="Export it to onnx.")
    notes: list[str] = []

    def ship(path: Path) -> parity.Graph:
        if _is_dynamic(path):
            notes.append(SLOW)
        _convert(path, folder / engine.MODEL)
        return OpenVinoGraph(folder / engine.MODEL, engine.MODEL)

    about = onnx.write(model, tokenizer, folder, ship=ship)
    shutil.rmtree(folder / "onnx")
    notes[:0] = about.get("notes", ())
    return {**about, "notes": notes} if notes else about


def _convert(graph: Path, target: Path) -> None:
    import openvino

    model = engine.read_graph(graph, engine.open_core())
    target.parent.mkdir()
    openvino.save_model(model, target, compress_to_fp16=False)


def _is_dynamic(graph: Path) -> bool:
    """Whether activations are quantized by the range that they have at run time."""
    import onnx as format_

    found = format_.load(graph, load_external_data=False)
    return any(node.op_type in {"DynamicQuantizeLinear", "MatMulInteger"} for node in found.graph.node)
