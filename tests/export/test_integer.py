"""Encoders in whole numbers as ONNX: the same numbers, and no product of floats in the blocks."""

from pathlib import Path

import onnx
import pytest
import torch

from lissom.data import load_data
from lissom.edits import Editor
from lissom.export import Artifact, export
from lissom.methods import Given
from lissom.methods.quantization.integer import Integer
from lissom.runtime import TorchRunner
from tests import tiny
from tests.export.made import only_graph


@pytest.fixture(scope="module", params=["gelu", "relu"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Artifact]:
    model = tiny.model("bert", "AutoModelForSequenceClassification", num_hidden_layers=1, hidden_act=request.param)
    editor = Editor(model)
    data = load_data({"train": tiny.labelled_texts(16)})
    Integer().apply(editor, Given(data=data, tokenizer=tiny.tokenizer(), max_length=32))
    folder: Path = tmp_path_factory.mktemp("integer") / "out"
    return editor.model, export(editor.model, "onnx", folder, tokenizer=tiny.tokenizer())


def test_it_answers_the_same(made: tuple[torch.nn.Module, Artifact]) -> None:
    model, artifact = made
    assert artifact.parity["cosine"] >= 0.99999
    assert artifact.parity["largest_difference"] < 1e-5
    texts = tiny.texts(20, seed=5)
    there, here = artifact.runner().predict(texts), TorchRunner(model, tiny.tokenizer(), max_length=64).predict(texts)
    assert abs(there - here).max() < 1e-5


def test_products_are_of_whole_numbers(made: tuple[torch.nn.Module, Artifact]) -> None:
    graph = onnx.load(only_graph(made[1].folder)).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("MatMulInteger") == 8  # six maps, scores and context
    assert kinds.count("Gemm") + kinds.count("MatMul") == 2  # pooler and head
    assert not {"Softmax", "Gelu", "Erf", "LayerNormalization", "Exp", "Sqrt"} & set(kinds)
    assert kinds.count("Tanh") == 1
    weights = [one for one in graph.initializer if len(one.dims) == 2 and one.data_type == onnx.TensorProto.FLOAT]
    assert len(weights) == 2
