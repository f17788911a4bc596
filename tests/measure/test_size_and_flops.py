"""Bytes, stored numbers and operations, against counts by hand; the two counts of operations agree for every family."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import nn

from lissom.measure.flops import flops, model_flops
from lissom.measure.graph import graph_flops
from lissom.measure.size import in_memory, parameters, size, sparsity
from lissom.nn import Int8Embedding, Int8Linear, LowBitEmbedding, LowBitLinear, LowRankLinear
from lissom.runtime import OnnxRunner, TorchRunner
from tests import tiny
from tests.measure.fakes import Fake
from tests.runtime import made


def test_shared_numbers_count_once() -> None:
    model = nn.ModuleDict({"one": nn.Linear(3, 5), "two": nn.Linear(3, 5)})
    assert parameters(model).value == 2 * (15 + 5)

    model["two"].weight = model["one"].weight

    assert parameters(model).value == 15 + 5 + 5
    assert in_memory(model).value == pytest.approx(4 * 25 / 1e6)


def test_packed_numbers_count_with_their_scales() -> None:
    model = nn.Sequential(Int8Embedding(7, 3), Int8Linear(3, 5, bias=True))

    assert parameters(model).value == 21 + 7 + 15 + 5 + 5
    assert in_memory(model).value == pytest.approx((21 + 4 * 7 + 15 + 4 * 5 + 4 * 5) / 1e6)


def test_weights_of_few_bits_count_one_by_one() -> None:
    model = nn.Sequential(LowBitEmbedding(7, 3, bits=1), LowBitLinear(3, 5, bits=2), LowBitLinear(3, 5, bits=4))

    assert parameters(model).value == 21 + 7 + 2 * (15 + 5 + 5)
    assert in_memory(model).value == pytest.approx((7 * 1 + 4 * 7 + 5 * 1 + 5 * 2 + 2 * 4 * (5 + 5)) / 1e6)


def test_zeros_are_counted_in_the_blocks_alone() -> None:
    model = tiny.model("bert", num_hidden_layers=1)
    layer = model.encoder.layer[0]
    total = 4 * 32 * 32 + 2 * 32 * 48
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.zero_()
        layer.attention.self.query.bias.zero_()
        layer.output.dense.weight.zero_()
        layer.attention.self.query.weight[0, :5] = 0

    found = sparsity(model)

    assert found.value == (32 * 48 + 5) / total
    assert sparsity(nn.Linear(2, 2)).value is None


def test_zeros_of_thin_and_packed_maps_are_those_that_are_stored() -> None:
    model = tiny.model("bert", num_hidden_layers=1)
    thin = LowRankLinear(32, 32, 2)
    packed = Int8Linear(32, 32)  # all codes are zero
    with torch.no_grad():
        thin.down.weight[0] = 0
    model.encoder.layer[0].attention.self.query = thin
    model.encoder.layer[0].attention.self.key = packed

    assert sparsity(model).value == (32 + 32 * 32) / (2 * 2 * 32 + 3 * 32 * 32 + 2 * 32 * 48)


@pytest.mark.parametrize("variant", ["bert", "albert", "gpt2", "t5"])
def test_an_empty_model_has_the_same_numbers(variant: str) -> None:
    model = tiny.model(variant)
    full = (parameters(model).value, in_memory(model).value)

    assert full[0] == sum(one.numel() for one in model.parameters())
    empty = model.to("meta")
    empty.tie_weights()  # moving takes shared tensors apart
    assert (parameters(empty).value, in_memory(empty).value) == full


def test_a_folder_is_weighed_by_its_weight_files(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1000)}, tmp_path / "model.safetensors")
    (tmp_path / "tokenizer.json").write_text("x" * 999)
    runner = TorchRunner(tiny.model("bert"), None, folder=tmp_path)

    on_disk, *_ = size(runner)

    assert on_disk.value == (tmp_path / "model.safetensors").stat().st_size / 1e6
    assert on_disk.how.startswith("Bytes on disk of model.safetensors")


def test_of_several_graphs_the_one_that_runs_is_weighed(tmp_path: Path) -> None:
    weights = made.table()
    made.exported(tmp_path, weights)
    made.exported(tmp_path, np.zeros((900, 3), np.float32), file="model_fp16.onnx")
    (tmp_path / "onnx" / "model.onnx_data").write_bytes(b"0" * 500)

    on_disk, numbers, _ = size(OnnxRunner(tmp_path))

    assert on_disk.value == ((tmp_path / "onnx" / "model.onnx").stat().st_size + 500) / 1e6
    assert numbers.value == weights.size


def test_an_engine_that_shows_nothing_gets_no_zero() -> None:
    readings = [*size(Fake()), flops(TorchRunner(tiny.model("bert"), made.tokenizer()), [])]

    assert [one.value for one in readings] == [None] * 4
    assert all(one.how.startswith("Not taken:") for one in readings)


def test_operations_of_bert_by_hand() -> None:
    model, n = tiny.model("bert", "AutoModelForSequenceClassification"), 10
    hidden, width, layers, classes = 32, 48, 3, 3
    block = 2 * n * (4 * hidden * hidden + 2 * hidden * width) + 4 * n * n * hidden
    by_hand = layers * block + 2 * hidden * hidden + 2 * hidden * classes  # the pooler reads one token

    reading = model_flops(model, n)

    assert reading.value == by_hand
    assert f"The count from the shapes of the parts, {by_hand:,}, agrees" in reading.how
    assert model_flops(model.to("meta"), n).value == by_hand


@pytest.mark.parametrize("variant", sorted(set(tiny.CONFIGS) - {"t5", "t5-gated", "deberta-v2", "deberta-v3"}))
def test_both_counts_agree_for_every_family_full_and_empty(variant: str) -> None:
    model = tiny.model(variant)

    full, empty = model_flops(model, 12), model_flops(model.to("meta"), 12)

    assert full.value
    assert full.value == empty.value
    assert ", agrees (" in full.how, full.how


@pytest.mark.parametrize("variant", ["deberta-v2", "deberta-v3"])
def test_products_that_the_parts_do_not_show_are_reported_as_a_difference(variant: str) -> None:
    """DeBERTa's attention also multiplies with relative positions; torch counts that, the parts do not have it."""
    reading = model_flops(tiny.model(variant), 12)

    assert reading.value
    assert "does NOT agree" in reading.how


def test_low_rank_and_int8_are_counted_as_they_run() -> None:
    model, n = tiny.model("bert"), 10
    full = model_flops(model, n).value
    layer = model.encoder.layer[0].intermediate
    layer.dense = LowRankLinear(32, 48, 4)
    saved = 2 * n * (32 * 48 - 4 * (32 + 48))
    assert model_flops(model, n).value == full - saved

    weight = model.encoder.layer[1].intermediate.dense
    model.encoder.layer[1].intermediate.dense = Int8Linear.from_weight(weight.weight, weight.bias)

    reading = model_flops(model, n)
    assert reading.value == full - saved  # as many operations, smaller numbers
    assert ", agrees (" in reading.how


def test_twice_the_tokens_are_a_little_more_than_twice_the_work() -> None:
    model = tiny.model("llama", "AutoModelForCausalLM")

    assert 2 < model_flops(model, 20).value / model_flops(model, 10).value < 2.5


def test_a_model_that_cannot_run_alone_says_so() -> None:
    reading = model_flops(tiny.model("t5"), 10)  # its decoder wants input of its own

    assert reading.value is None
    assert reading.how.startswith("Not taken: the model does not run on input_ids")


def test_the_shape_is_the_median_text() -> None:
    runner = TorchRunner(tiny.model("bert"), made.tokenizer())

    reading = flops(runner, ["good", "good good good", "good " * 9])

    assert reading.value == model_flops(runner.model, 5).value
    assert "one text of 5 tokens" in reading.how


def _graph(tmp_path: Path, nodes: list[onnx.NodeProto], stored: dict[str, np.ndarray]) -> OnnxRunner:
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    made.exported(tmp_path, made.table())
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "onnx" / "model.onnx")
    return OnnxRunner(tmp_path, threads=1)


def test_operations_of_a_graph_by_hand(tmp_path: Path) -> None:
    stored = {
        "table": np.ones((20, 8), np.float32),
        "w": np.ones((8, 6), np.float32),
        "codes": np.ones((6, 4), np.int8),
        "turned": np.ones((5, 4), np.float32),
        "shape": np.array([-1, 4], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),  # n x 8 x 6
        helper.make_node("DynamicQuantizeLinear", ["y"], ["q", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["q", "codes", "zero"], ["z"]),  # n x 6 x 4
        helper.make_node("Cast", ["z"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["f", "t"], ["square"]),  # n x 4 x n
        helper.make_node("Reshape", ["f", "shape"], ["flat"]),
        helper.make_node("Gemm", ["flat", "turned"], ["logits"], transB=1),  # n x 4 x 5
    ]
    n = 7

    reading = graph_flops(_graph(tmp_path, nodes, stored), tmp_path / "onnx" / "model.onnx", n)

    assert reading.value == 2 * n * (8 * 6 + 6 * 4 + 4 * n + 4 * 5)
    assert reading.how.startswith("4 matrix products of model.onnx for one text of 7 tokens")


def test_a_graph_with_an_operator_without_a_count_gets_no_number(tmp_path: Path) -> None:
    stored = {"table": np.ones((20, 8), np.float32), "w": np.ones((8, 6), np.float32)}
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("Einsum", ["x", "w"], ["logits"], equation="bnk,km->bnm"),
    ]

    reading = flops(_graph(tmp_path, nodes, stored), ["good film"])

    assert reading.value is None
    assert "no count for Einsum" in reading.how
