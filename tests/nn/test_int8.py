"""Int8 layers: quantization by hand, the kernel against the definition, and everything a module must survive."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lissom.nn import int8
from lissom.nn.int8 import Int8Embedding, Int8Linear, quantize_activation, quantize_rows


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(F.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


def test_rows_by_hand() -> None:
    weight = torch.tensor([[127.0, -1.5, 0.4], [0.0, 0.0, 0.0], [-2.0, 1.0, 0.5 / 127]])
    codes, scale = quantize_rows(weight)
    assert codes.tolist() == [[127, -2, 0], [0, 0, 0], [-127, 64, 0]]  # halves go to the even neighbour
    assert scale[0] == 1.0
    assert scale[2] == torch.tensor(2.0) / 127


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_must_be_finite(bad: float) -> None:
    weight = random(3, 4)
    weight[1, 2] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        Int8Linear.from_weight(weight)


def reference_dynamic_quantize(x: np.ndarray) -> tuple[np.ndarray, np.float32, int]:
    """ONNX DynamicQuantizeLinear, written from its definition."""
    low, high = min(x.min(), np.float32(0)), max(x.max(), np.float32(0))
    scale = np.float32((high - low) / np.float32(255))
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.uint8), scale, int(zero)


@pytest.mark.parametrize("shift", [-9.0, -1.0, 0.0, 1.0, 9.0])
def test_activations_follow_onnx(shift: float) -> None:
    x = random(7, 33) + shift  # all negative, mixed, all positive: zero is always in the range
    codes, scale, zero = quantize_activation(x)
    expected, expected_scale, expected_zero = reference_dynamic_quantize(x.numpy())
    assert np.array_equal(codes.numpy(), expected)
    assert scale.item() == expected_scale
    assert int(zero) == expected_zero


@pytest.mark.skipif(not int8._KERNEL, reason="this processor has no exact int8 kernel")
@pytest.mark.parametrize(
    ("tokens", "wide", "out"), [(1, 1, 1), (1, 384, 2), (5, 33, 17), (64, 384, 1536), (3, 1536, 384)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_kernel_is_the_definition(tokens: int, wide: int, out: int, bias: bool) -> None:
    layer = Int8Linear.from_weight(random(out, wide), random(out, seed=1) if bias else None)
    for seed in (2, 3):  # a second input: nothing of the first may stay in the kernel
        x = random(tokens, wide, seed=seed) * seed
        expected = int8.exact(quantize_activation(x), layer.weight, layer.weight_scale, layer.bias)
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_close_to_the_float_layer() -> None:
    weight, bias, x = random(48, 96), random(48, seed=1), random(4, 9, 96, seed=2)
    assert cosine(Int8Linear.from_weight(weight, bias)(x), F.linear(x, weight, bias)) > 0.9995


@pytest.mark.parametrize("shape", [(96,), (1, 96), (2, 3, 96), (0, 96), (2, 0, 96)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shape_and_dtype_of_the_input(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    y = Int8Linear.from_weight(random(48, 96))(random(*shape).to(dtype))
    assert y.shape == (*shape[:-1], 48)
    assert y.dtype == dtype


def test_zeros_and_nan() -> None:
    layer = Int8Linear.from_weight(random(4, 8), random(4, seed=1))
    torch.testing.assert_close(layer(torch.zeros(2, 8)), layer.bias.expand(2, 4))
    bad = random(2, 8)
    bad[0, 0] = float("nan")
    assert layer(bad).isnan().all()


def test_inference_mode() -> None:
    x = random(3, 8)
    with torch.inference_mode():
        layer = Int8Linear.from_weight(random(4, 8))
        first = layer(x)
    assert torch.equal(first, layer(x))


def test_backward_is_refused() -> None:
    layer = Int8Linear.from_weight(random(4, 8))
    y = layer(random(2, 8).requires_grad_())
    with pytest.raises(RuntimeError, match="pack to int8 as the last step"):
        y.sum().backward()
    assert not list(layer.parameters())


def test_keep_matches_the_kept_part() -> None:
    weight, bias, x = random(6, 10), random(6, seed=1), random(3, 10, seed=2)
    rows, columns = torch.tensor([4, 0, 5]), torch.tensor([9, 1, 2, 7])
    layer = Int8Linear.from_weight(weight, bias)
    layer(x)  # a packed copy exists and must not survive
    dense = layer.dense()
    layer.keep(out=rows, in_=columns)
    assert (layer.out_features, layer.in_features) == (3, 4)
    assert torch.equal(layer.dense(), dense[rows][:, columns])
    expected = int8.exact(quantize_activation(x[:, columns]), layer.weight, layer.weight_scale, bias[rows])
    torch.testing.assert_close(layer(x[:, columns]), expected, rtol=1e-5, atol=1e-5)


def test_new_weights_are_noticed() -> None:
    x, first, second = random(3, 8), random(4, 8), random(4, 8, seed=1)
    layer, other = Int8Linear.from_weight(first), Int8Linear.from_weight(second)
    layer(x)
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), other(x))


def test_state_and_empty_skeleton() -> None:
    layer = Int8Linear.from_weight(random(4, 8), random(4, seed=1))
    state = layer.state_dict()
    assert {name: value.dtype for name, value in state.items()} == {
        "weight": torch.int8,
        "weight_scale": torch.float32,
        "bias": torch.float32,
    }
    empty = Int8Linear(8, 4, bias=True, device="meta")
    assert empty.weight.is_meta
    empty.load_state_dict(state, assign=True)
    x = random(2, 8)
    assert torch.equal(empty(x), layer(x))


def test_copies_run() -> None:
    layer, x = Int8Linear.from_weight(random(4, 8)), random(2, 8)
    expected = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), expected)


def test_scales_stay_exact_when_the_model_changes_dtype() -> None:
    linear, table = Int8Linear.from_weight(random(4, 8), random(4, seed=1)), Int8Embedding.from_weight(random(5, 8))
    scale, bias = linear.weight_scale.clone(), linear.bias.clone()
    both = torch.nn.ModuleList([linear, table]).to(torch.bfloat16).to("cpu")
    assert torch.equal(linear.weight_scale, scale)
    assert torch.equal(linear.bias, bias)
    assert table(torch.tensor([1])).dtype == torch.bfloat16
    both.float()
    assert table(torch.tensor([1])).dtype == torch.float32


def test_embedding_gathers_rows() -> None:
    weight = random(7, 12)
    table = Int8Embedding.from_weight(weight, padding_idx=0)
    ids = torch.tensor([[1, 6], [0, 1]])
    assert torch.equal(table(ids), table.dense()[ids])
    assert (table.num_embeddings, table.embedding_dim, table.padding_idx) == (7, 12, 0)
    assert (table.dense() - weight).abs().max() <= weight.abs().max() / 254 * 1.001
    with pytest.raises(IndexError):
        table(torch.tensor([7]))


def test_embedding_keeps_rows() -> None:
    table = Int8Embedding.from_weight(random(7, 12), padding_idx=3)
    dense = table.dense()
    table.keep(torch.tensor([5, 3]))
    assert torch.equal(table.dense(), dense[[5, 3]])
    assert table.padding_idx == 1
    table.keep(torch.tensor([0]))
    assert table.padding_idx is None


def test_tied_output_projection_shares_the_table() -> None:
    table = Int8Embedding.from_weight(random(7, 12))
    head = table.linear()
    assert head.weight is table.weight
    assert head.weight_scale is table.weight_scale
    assert cosine(head(random(3, 12, seed=1)), random(3, 12, seed=1) @ table.dense().T) > 0.999


def test_one_node_in_a_traced_graph() -> None:
    layer, x = Int8Linear.from_weight(random(4, 8), random(4, seed=1)), random(3, 8, seed=2)
    program = torch.export.export(layer, (x,), dynamic_shapes={"x": {0: torch.export.Dim.DYNAMIC}})
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert called == [torch.ops.lissom.int8_linear.default]
    wider = random(5, 8, seed=3)
    torch.testing.assert_close(program.module()(wider), layer(wider), rtol=1e-5, atol=1e-5)
