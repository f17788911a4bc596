"""Layers whose bits come in groups, in ONNX Runtime: the same codes, and the answers of torch."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from lissom.edits import Editor
from lissom.export import export
from lissom.export.grouped import BlockLinear, DecodedLinear, block_of
from lissom.measure.flops import flops, model_flops
from lissom.methods import Given
from lissom.methods.quantization.hqq import Hqq
from lissom.methods.quantization.rtn import Rtn
from lissom.nn.grouped import GroupedLinear
from lissom.nn.palette import pack_indices
from tests import tiny
from tests.export.made import as_run, classifier, only_graph, operators
from tests.runtime.made import tokenizer

WIDE = {"num_hidden_layers": 2, "hidden_size": 80, "num_attention_heads": 4, "intermediate_size": 160}


def layer(bits: int, group: int, columns: int, *, whole: bool = True) -> GroupedLinear:
    torch.manual_seed(0)
    made = GroupedLinear(columns, 6, bits=bits, group=group)
    made.weight = pack_indices(torch.randint(2**bits, (6, columns)), bits)
    made.weight_scale = (torch.rand(made.weight_scale.shape) + 0.1).half()
    zero = torch.rand(made.weight_zero.shape) * (2**bits - 1)
    made.weight_zero = (zero.round() if whole else zero).half()
    made.bias = torch.randn(6)
    return made


def test_blocks_by_hand() -> None:
    """Two blocks of 16 columns, four bits: the second byte of the first block holds its third and fourth code."""
    made = layer(4, 16, 20)
    made.weight = pack_indices(torch.arange(20).remainder(16).repeat(6, 1), 4)
    made.weight_zero = torch.tensor([[3.0, 5.0]]).repeat(6, 1).half()
    block = BlockLinear(made)
    assert block.blocks.shape == (6, 2, 8)
    assert block.blocks[0].tolist() == [[16 * (i + 1) + i for i in range(0, 16, 2)], [0x10, 0x32, 0, 0, 0, 0, 0, 0]]
    assert block.zero[0].tolist() == [5 * 16 + 3]
    assert block.scale.dtype == torch.float32


@pytest.mark.parametrize(
    ("bits", "group", "columns", "whole", "block"),
    [
        (4, 64, 100, True, 64),
        (4, 64, 100, False, 64),
        (3, 16, 33, False, 16),
        (2, 96, 200, True, 32),
        (4, 256, 300, True, 128),
        (8, 64, 100, True, 0),
        (4, 8, 32, True, 0),
        (4, 1, 32, True, 0),
    ],
)
def test_a_block_layer_is_the_grouped_one(bits: int, group: int, columns: int, whole: bool, block: int) -> None:
    made = layer(bits, group, columns, whole=whole)
    assert block_of(made) == block
    x = torch.randn(2, 3, columns)
    other = BlockLinear(made) if block else DecodedLinear(made)
    torch.testing.assert_close(other(x), made(x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("method", [Rtn(bits=2), Rtn(), Hqq(group=32), Hqq(bits=3)], ids=repr)
def test_bits_stay_in_the_graph_and_answer_as_torch(method: Rtn | Hqq, tmp_path: Path) -> None:
    model = classifier(**WIDE)  # 80 columns: the last group is shorter
    method.apply(Editor(model), Given())
    artifact = export(model, "onnx", tmp_path / "out", tokenizer=tokenizer())
    path = only_graph(artifact.folder)
    assert path.name == "model_quantized.onnx"
    assert operators(path)["MatMulNBits"] == 12
    assert artifact.parity["cosine"] > 0.9999
    assert artifact.parity["largest_difference"] < 1e-4
    assert artifact.notes == (
        ("12 linear maps have 4 bits a weight in the graph: MatMulNBits is not fast with fewer.",)
        if method.bits < 4
        else ()
    )
    found = {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}
    codes = [one for one in found.values() if one.dtype == np.uint8 and one.ndim == 3]
    columns = 128 if method.group == 64 else 96  # 80, in whole blocks
    expected = 2 * (4 * 80 * columns + 160 * columns + 80 * (192 if method.group == 64 else 160))
    assert sum(one.nbytes for one in codes) == expected // 2


def test_a_decoder_answers_as_torch_and_its_operations_are_counted(tmp_path: Path) -> None:
    model = tiny.model("llama", "AutoModelForCausalLM", hidden_size=64, intermediate_size=128)
    Rtn(group=32).apply(Editor(model), Given())
    artifact = export(model, "onnx", tmp_path / "out", tokenizer=tiny.tokenizer())
    assert operators(only_graph(artifact.folder))["MatMulNBits"] == len(list(Editor(model).anatomy().linears()))
    assert artifact.parity["largest_difference"] < 1e-4
    runner, texts = artifact.runner(threads=1), ["w5 w6 w7"]
    assert flops(runner, texts).value == model_flops(model, len(runner.encode(texts)[0].ids)).value


@pytest.mark.parametrize("method", [Rtn(group=24), Hqq(bits=8)], ids=repr)
def test_what_has_no_operator_is_decoded_as_the_graph_is_read(method: Rtn | Hqq, tmp_path: Path) -> None:
    model = classifier(**{**WIDE, "hidden_size": 112})  # wide enough that the exporter does not decode it itself
    method.apply(Editor(model), Given())
    artifact = export(model, "onnx", tmp_path / "out", tokenizer=tokenizer())
    path = only_graph(artifact.folder)
    assert (path.name, operators(path)["MatMulNBits"]) == ("model_quantized.onnx", 0)
    assert artifact.parity["largest_difference"] < 1e-4
    found = [numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer]
    codes = sum(one.size for one in found if one.dtype == np.uint8)
    assert codes >= 2 * (4 * 112 * 112 + 2 * 112 * 160)
    assert as_run(path, tmp_path)["Cast"] <= operators(path)["Cast"] - 12  # done once, when it is read
    (note,) = artifact.notes
    assert note.startswith(
        "12 linear maps have 8 bits a weight in the graph, and float32 while it runs: MatMulNBits is"
    )
    assert json.loads((artifact.folder / "lissom.json").read_text())["export"]["notes"] == [note]
