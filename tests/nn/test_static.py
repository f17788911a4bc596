"""Int8 layers with a fixed input scale: one by hand, the kernel against the definition, copies and cuts."""

import copy

import pytest
import torch

from lissom.nn import int8
from lissom.nn.int8 import exact
from lissom.nn.static import StaticInt8Linear, codes_of


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(out: int, wide: int, scale: float = 0.02, zero: int = 100) -> StaticInt8Linear:
    made = StaticInt8Linear.from_weight(random(out, wide), random(out, seed=1))
    assert isinstance(made, StaticInt8Linear)
    made.input_scale.fill_(scale)
    made.input_zero.fill_(zero)
    return made


def test_a_layer_by_hand() -> None:
    made = StaticInt8Linear(3, 1)
    made.weight.copy_(torch.tensor([[1, 2, -3]]))
    made.weight_scale.fill_(2.0)
    made.bias.fill_(10.0)
    made.input_scale.fill_(0.5)
    made.input_zero.fill_(4)
    x = torch.tensor([[1.25, -9.0, 0.75]])  # 2.5 -> 2, -18 -> out of the range, 1.5 -> 2
    assert codes_of(x, made.input_scale, made.input_zero).tolist() == [[6, 0, 6]]
    assert made(x).tolist() == [[10 + (2 * 1 - 4 * 2 - 2 * 3) * 0.5 * 2.0]]


@pytest.mark.skipif(not int8._KERNEL, reason="this processor has no exact int8 kernel")
@pytest.mark.parametrize(("tokens", "wide", "out"), [(1, 1, 1), (5, 33, 17), (64, 384, 1536)])
def test_kernel_is_the_definition(tokens: int, wide: int, out: int) -> None:
    made = layer(out, wide)
    for seed in (2, 3):
        x = random(tokens, wide, seed=seed) * seed
        torch.testing.assert_close(made(x), exact(made._rounded(x), made.weight, made.weight_scale, made.bias))


def test_an_answer_does_not_depend_on_its_batch() -> None:
    made, x = layer(6, 8), random(4, 8)
    alone = made(x[:1])
    x[1:] *= 100
    torch.testing.assert_close(made(x)[:1], alone, rtol=1e-6, atol=1e-6)


def test_a_copy_in_another_dtype_keeps_scale_and_zero() -> None:
    made = layer(6, 8, scale=0.0123)
    half = copy.deepcopy(made).to(torch.bfloat16)
    assert half.input_scale.dtype == torch.float32
    assert half.input_scale == made.input_scale
    assert half.input_zero == 100
    assert half(random(2, 8).bfloat16()).dtype == torch.bfloat16


def test_what_is_cut_computes_the_same() -> None:
    made, x = layer(6, 8), random(3, 8)
    x[:, 5] = 0
    whole = made(x)
    made.keep(out=torch.tensor([4, 0]), in_=torch.tensor([0, 1, 2, 3, 4, 6, 7]))
    torch.testing.assert_close(made(x[:, [0, 1, 2, 3, 4, 6, 7]]), whole[:, [4, 0]])


def test_empty_input() -> None:
    assert layer(6, 8)(torch.empty(2, 0, 8)).shape == (2, 0, 6)
