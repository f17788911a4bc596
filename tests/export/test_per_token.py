"""Int8 layers with one scale a token in a graph."""

from pathlib import Path

import onnx
import pytest

from lissom.edits import Editor
from lissom.export import export, graph
from lissom.methods.base import Given
from lissom.methods.quantization.int8 import Int8
from tests import tiny
from tests.export.made import as_run, classifier, only_graph


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_graph_answers_as_torch(kind: str, tmp_path: Path) -> None:
    model = classifier(kind, hidden_size=64, intermediate_size=256)
    Int8(per="token").apply(Editor(model), Given())
    artifact = export(model, "onnx", tmp_path / "out", tokenizer=tiny.tokenizer())
    assert artifact.parity["cosine"] > 0.9999
    assert artifact.parity["unrounded_largest_difference"] < 1e-5
    path = only_graph(artifact.folder)
    fused = as_run(path, tmp_path)
    maps = len(list(Editor(model).anatomy().linears()))
    assert fused["MatMulInteger"] == maps
    assert fused["Round"] == maps - 2 * (2 if kind == "bert" else 3)  # maps that read one input round it once
    made = graph.unrounded(path.read_bytes())
    assert made is not None
    assert not {node.op_type for node in onnx.load_from_string(made).graph.node} & {"Round", "MatMulInteger"}
