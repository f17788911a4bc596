"""Tiny models in the states that a recipe leaves them in, and what stands in their graphs."""

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
from transformers import PreTrainedModel

from lissom.edits import Editor
from lissom.methods.base import Given
from lissom.methods.quantization.int8 import Int8
from tests import tiny


def packed(model: PreTrainedModel) -> PreTrainedModel:
    """`model` with int8 layers and an int8 table, in place."""
    Int8().apply(Editor(model), Given())
    return model


def classifier(variant: str = "bert", **changes: object) -> PreTrainedModel:
    """Two layers and three classes."""
    return tiny.model(variant, "AutoModelForSequenceClassification", **{"num_hidden_layers": 2, **changes})


def only_graph(folder: Path) -> Path:
    """The one graph of an exported folder."""
    (found,) = (folder / "onnx").iterdir()
    return found


def operators(path: Path) -> Counter[str]:
    """How often each operator stands in a graph."""
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def stored_bytes(path: Path) -> int:
    """Bytes of all weights in a graph."""
    return sum(len(onnx.numpy_helper.to_array(one).tobytes()) for one in onnx.load(path).graph.initializer)


def as_run(path: Path, folder: Path) -> Counter[str]:
    """How often each operator stands in what ONNX Runtime makes of a graph."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return operators(folder / "optimized.onnx")
