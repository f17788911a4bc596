"""Int8 layers with one scale a token: by hand, the kernel against the definition, and what a layer survives."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lissom.nn import int8
from lissom.nn.int8 import Int8Linear, quantize_rows, quantize_tokens
from lissom.nn.low_bit import LowBitLinear, pack_codes, unpack

torch.set_num_threads(1)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(rows: int = 6, width: int = 13, bias: bool = True) -> Int8Linear:
    made = Int8Linear(width, rows, bias=bias, per_token=True)
    made.weight, made.weight_scale = quantize_rows(random(rows, width))
    made.bias = random(rows, seed=1) if bias else None
    return made


def test_tokens_by_hand() -> None:
    codes, scale, zero = quantize_tokens(torch.tensor([[1.27, -0.635, 0.004], [0.0, 0.0, 0.0], [-254.0, 1.0, 3.0]]))
    # the second token's -63.5 goes to the even neighbour; of the third, 0.5 goes to 0 and 1.5 to 2
    assert codes.tolist() == [[255, 64, 128], [128, 128, 128], [1, 128, 130]]
    assert scale[[0, 2], 0].tolist() == pytest.approx([0.01, 2.0])
    assert zero == 128


@pytest.mark.skipif(not int8._KERNEL, reason="this processor has no exact int8 kernel")
@pytest.mark.parametrize(("tokens", "width", "rows"), [(1, 1, 1), (5, 33, 17), (64, 384, 96)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_kernel_is_the_definition(tokens: int, width: int, rows: int, bias: bool) -> None:
    made, x = layer(rows, width, bias), random(tokens, width, seed=2)
    expected = int8.exact(quantize_tokens(x), made.weight, made.weight_scale, made.bias)
    torch.testing.assert_close(made(x), expected, rtol=1e-5, atol=1e-5)


def test_an_answer_depends_on_its_token_alone() -> None:
    made, x = layer(), random(4, 13, seed=2)
    loud = torch.cat([x, 100 * random(1, 13, seed=3)])
    assert torch.equal(made(loud)[:4], made(x))
    assert made(x.reshape(2, 2, 13)).shape == (2, 2, 6)
    assert made(x[:0]).shape == (0, 6)
    assert made(torch.zeros(1, 13)).tolist() == [made.bias.tolist()]
    assert torch.equal(copy.deepcopy(made)(x), made(x))


def test_fewer_bits_unpack_to_the_same() -> None:
    codes = torch.randint(-7, 8, (6, 13), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    made = LowBitLinear(13, 6, bits=4, per_token=True)
    made.weight, made.weight_scale = pack_codes(codes, 4), random(6).abs()
    model, x = nn.ModuleDict({"one": made}), random(4, 13, seed=2)
    before = made(x)
    unpack(model)
    assert type(model["one"]) is Int8Linear
    assert torch.equal(model["one"].weight, codes)
    assert torch.equal(model["one"](x), before)


def test_one_node_in_a_traced_graph() -> None:
    made, x = layer(), random(3, 13, seed=2)
    program = torch.export.export(made, (x,), dynamic_shapes={"x": {0: torch.export.Dim.DYNAMIC}})
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert called == [torch.ops.lissom.token_int8_linear.default]
    torch.testing.assert_close(program.module()(x), made(x), rtol=1e-5, atol=1e-5)
