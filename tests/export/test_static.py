"""Int8 layers with fixed input scales as ONNX."""

from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
import torch
from transformers import PreTrainedModel

from lissom.data import load_data
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.export import Artifact, export, graph, parity
from lissom.methods.base import Given
from lissom.methods.quantization.int8 import Int8
from lissom.methods.quantization.smooth import Smooth
from lissom.nn import ScaledLinear
from lissom.nn.static import StaticInt8Linear
from tests import tiny
from tests.export.made import as_run, classifier, only_graph, operators, stored_bytes


def static(model: PreTrainedModel) -> PreTrainedModel:
    data = load_data({"train": tiny.labelled_texts(32), "validation": tiny.labelled_texts(4, seed=1)})
    Int8(mode="static").apply(Editor(model), Given(data=data, tokenizer=tiny.tokenizer(), max_length=32))
    return model


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Artifact]:
    model = static(classifier(hidden_size=64, intermediate_size=256))
    return model, export(model, "onnx", tmp_path_factory.mktemp("small") / "out", tokenizer=tiny.tokenizer())


def test_codes_and_scales_are_those_of_the_model(small: tuple[PreTrainedModel, Artifact], tmp_path: Path) -> None:
    model, artifact = small
    path = only_graph(artifact.folder)
    found = operators(path)
    layers = [one for one in model.modules() if isinstance(one, StaticInt8Linear)]
    assert found["MatMulIntegerToFloat"] == len(layers) == 12
    assert found["QuantizeLinear"] == 8  # q, k and v read the same codes
    assert not found["DynamicQuantizeLinear"]
    held = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}
    scales = {float(one) for one in held.values() if one.ndim == 0 and one.dtype == np.float32}
    assert {float(one.input_scale) for one in layers} <= scales
    assert sum(one.size for one in held.values() if one.dtype == np.int8 and one.ndim == 2) >= sum(
        one.weight.numel() for one in layers
    )
    state = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    assert stored_bytes(path) < state * 1.02
    fused = as_run(path, tmp_path)
    assert fused["MatMulIntegerToFloat"] == 12
    assert fused["QuantizeLinear"] == 8
    assert fused["Gelu"] == 2  # not taken apart
    assert fused["BiasGelu"] == 0


def test_parity_is_proved_in_two_parts(small: tuple[PreTrainedModel, Artifact]) -> None:
    figures = small[1].parity
    assert figures["unrounded_largest_difference"] < 1e-5
    assert figures["rounding_noise"] < parity.NOISE
    assert figures["cosine"] > 0.9999


def test_the_graph_without_rounding_has_none(small: tuple[PreTrainedModel, Artifact]) -> None:
    made = graph.unrounded(only_graph(small[1].folder).read_bytes())
    assert made is not None
    left = {node.op_type for node in onnx.load_from_string(made).graph.node}
    assert not left & {"QuantizeLinear", "MatMulIntegerToFloat"}


@pytest.mark.parametrize(("name", "factor"), [("input_scale", 0.2), ("weight_scale", 1.01)])
def test_a_wrong_scale_is_found(
    name: str, factor: float, small: tuple[PreTrainedModel, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    polish = graph.polish

    def spoiled(model: object) -> bytes:
        made = onnx.load_from_string(polish(model))  # type: ignore[arg-type]
        for one in made.graph.initializer:
            if one.name.endswith(name):
                one.CopyFrom(
                    onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(one) * np.float32(factor), one.name)
                )
        data: bytes = made.SerializeToString()
        return data

    monkeypatch.setattr(graph, "polish", spoiled)
    with pytest.raises(LissomError, match="LSM-911"):
        export(small[0], "onnx", tmp_path / "out")


@pytest.mark.parametrize("by", ["inputs", "gamma"])
def test_maps_that_multiply_one_input_share_the_product(by: Literal["inputs", "gamma"], tmp_path: Path) -> None:
    model = classifier(hidden_size=64, intermediate_size=256)
    for one in model.modules():
        if isinstance(one, torch.nn.LayerNorm):
            torch.nn.init.uniform_(one.weight, 0.5, 1.5)
    data = load_data({"train": tiny.labelled_texts(32), "validation": tiny.labelled_texts(4, seed=1)})
    Smooth(by=by).apply(Editor(model), Given(data=data, tokenizer=tiny.tokenizer(), max_length=32))
    artifact = export(static(model), "onnx", tmp_path / "out", tokenizer=tiny.tokenizer())
    factors = {one.input_factor.numpy().tobytes() for one in model.modules() if isinstance(one, ScaledLinear)}
    held = onnx.load(only_graph(artifact.folder)).graph
    stored = {one.name for one in held.initializer if onnx.numpy_helper.to_array(one).tobytes() in factors}
    assert len([node for node in held.node if node.op_type == "Mul" and node.input[1] in stored]) == len(factors) == 4
    assert as_run(only_graph(artifact.folder), tmp_path)["QuantizeLinear"] == 8  # as without factors
    assert artifact.parity["cosine"] > 0.9999
