"""Bytes on disk, stored numbers, and how many of them are zero."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lissom.errors import UnsupportedFamily
from lissom.measure.reading import Reading, taken

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn

    from lissom.runtime import Runner

SPARSE = 0.01  # share of zeros from which a model is called sparse


def size(runner: Runner) -> list[Reading]:
    """`size_mb`, `parameters` and `sparsity` of what the runner runs. Exact counts, so without interval."""
    model = getattr(runner, "model", None)
    if model is not None:
        return [_on_disk(runner.files) if runner.files else in_memory(model), parameters(model), sparsity(model)]
    graph = getattr(runner, "graph", None)
    if graph is not None:
        why = "Not taken: zeros are counted in models, not in graphs."
        return [_on_disk(runner.files), graph_parameters(graph), taken("sparsity", None, why)]
    described = next((file for file in runner.files if file.suffix == ".xml"), None)
    if described is not None:
        why = "Not taken: zeros are counted in models, not in graphs."
        return [_on_disk(runner.files), openvino_parameters(described), taken("sparsity", None, why)]
    why = f"Not taken: the {runner.name} engine tells neither its files nor its model."
    on_disk = _on_disk(runner.files) if runner.files else taken("size_mb", None, why)
    return [on_disk, taken("parameters", None, why), taken("sparsity", None, why)]


def in_memory(model: nn.Module) -> Reading:
    """What the weights would take in a safetensors file, its header left out. Works on an empty (meta) model."""
    from lissom.store.zeros import spared

    tensors = stored(model)
    total = sum(one.numel() * one.element_size() for one in tensors) - spared(model)
    how = f"Bytes of {len(tensors)} tensors as safetensors stores them, shared ones once, without header / 1e6."
    return taken("size_mb", total / 1e6, how, n=1)


def parameters(model: nn.Module) -> Reading:
    """Numbers in parameters and in packed weights with their scales. Works on an empty (meta) model."""
    from lissom.nn.low_bit import weights_held

    held = weights_held(model)
    total = sum(held.get(id(one), one.numel()) for one in stored(model))
    how = "Numbers in the model's stored tensors, shared ones once; codes and scales count, position ids do not."
    return taken("parameters", total, how, n=1)


def sparsity(model: nn.Module) -> Reading:
    """Zeros among the weights of the linear maps in the blocks, 0 to 1; of a low-rank map in its two factors.

    Needs a model with an anatomy, and its numbers (not a meta model).
    """
    from lissom.anatomy import dense_weight, dissect, stored_maps

    try:
        parts = [part.module for slot in dissect(model).linears() for part in stored_maps(slot)]
    except UnsupportedFamily as error:
        return taken("sparsity", None, f"Not taken: {error.cause}.")
    weights = [dense_weight(part) for part in parts]
    total = sum(one.numel() for one in weights)
    zeros = sum(int((one == 0).sum()) for one in weights)
    how = f"Exact zeros among {total} weights of {len(weights)} linear maps in the blocks; engines compute them too."
    return taken("sparsity", zeros / max(total, 1), how, n=1)


def graph_parameters(graph: Path) -> Reading:
    """Numbers in the initializers of an ONNX graph, by their shapes; no data is read."""
    import numpy as np
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    kinds = onnx.TensorProto
    whole = {kinds.INT64, kinds.INT32, kinds.BOOL, kinds.STRING}  # shapes and indices, not weights
    total = sum(int(np.prod(one.dims)) for one in model.graph.initializer if one.data_type not in whole)
    how = f"Numbers in the initializers of {graph.name}: weights, scales and zero points; shapes and indices left out."
    return taken("parameters", total, how, n=1)


def openvino_parameters(graph: Path) -> Reading:
    """Numbers in the constants of an OpenVINO graph, by their shapes."""
    from lissom.runtime.openvino import open_core, read_graph

    constants = [op for op in read_graph(graph, open_core()).get_ops() if op.get_type_name() == "Constant"]
    whole = {"i64", "i32", "boolean", "string"}  # shapes and indices, not weights
    kinds = [(one.get_output_element_type(0).get_type_name(), one.get_output_shape(0)) for one in constants]
    total = sum(math.prod(shape) for kind, shape in kinds if kind not in whole)
    how = f"Numbers in the constants of {graph.name}: weights, scales and zero points; shapes and indices left out."
    return taken("parameters", total, how, n=1)


def stored(model: nn.Module) -> list[torch.Tensor]:
    """The tensors of the state dict, each once however many names it has, without int64 ones (position ids)."""
    import torch

    state: dict[str, Any] = model.state_dict(keep_vars=True)
    tensors = {id(one): one for one in state.values() if isinstance(one, torch.Tensor) and one.dtype != torch.int64}
    return list(tensors.values())


def _on_disk(files: tuple[Path, ...]) -> Reading:
    total = sum(file.stat().st_size for file in files)
    names = ", ".join(file.name for file in files[:4]) + (", ..." if len(files) > 4 else "")
    return taken("size_mb", total / 1e6, f"Bytes on disk of {names} / 1e6; tokenizer and config not counted.", n=1)
