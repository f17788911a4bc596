"""Arithmetic of whole numbers: values by hand, the bounds that the paper gives, and exactness where it is claimed."""

import math

import pytest
import torch
import torch.nn.functional as F

from lissom.nn import integer
from lissom.nn.integer import UNIT, dyadic, i_exp, i_gelu, i_layer_norm, i_softmax, i_sqrt, norm_constants, rescale


def whole(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def test_a_dyadic_number_by_hand():
    b, c = dyadic(torch.tensor([0.75, -0.375], dtype=torch.float64))
    assert (b.tolist(), int(c)) == ([3 * 2**28, -3 * 2**27], 30)
    assert b.dtype == c.dtype == torch.int32


def test_rescaling_by_hand():
    """Times 3/4, half up: 0.75, 1.5, -1.5, 2.25, and clamped."""
    got = rescale(whole(1, 2, -2, 3, 1000), torch.tensor(3), torch.tensor(2), 127)
    assert got.tolist() == [1, 2, -1, 2, 127]


@pytest.mark.parametrize("ratio", [1e-9, 3e-4, 0.1, 1.0, 1.999999999, 77.7, 1e8])
def test_a_dyadic_number_is_near(ratio: float):
    b, c = dyadic(torch.tensor(ratio, dtype=torch.float64))
    assert 0 < int(b) < 2**30
    assert int(b) / 2 ** int(c) == pytest.approx(ratio, rel=2**-29)


@pytest.mark.parametrize("ratio", [2.0**29, math.inf, math.nan])
def test_a_ratio_without_a_dyadic_number_is_refused(ratio: float):
    with pytest.raises(ValueError, match="30 bits"):
        dyadic(torch.tensor(ratio))


def test_products_are_exact_where_float32_is_not():
    a = torch.full((1, 3072), 127, dtype=torch.int8)
    a[0, 0] = 126
    assert integer.integer_product(a, a.t().clone()).item() == 3071 * 127**2 + 126**2


def test_exp_by_hand():
    """At scale 1/16: ln 2 is 11, b 22, c round(0.34372 · 256 / 0.35815) = 246. For -1, that is -16: z = 1, p = -5."""
    value, scale = i_exp(whole(0, -16), 1 / 16)
    assert value.tolist() == [22 * 22 + 246, (17 * 17 + 246) >> 1]
    assert scale == pytest.approx(0.35815147 / 256)


def test_exp_is_as_near_as_published():
    q = torch.arange(-20 * 2**14, 1)
    value, scale = i_exp(q, 2**-14)
    assert ((value * scale) - (q / 2**14).double().exp()).abs().max() < 1.95e-3  # 1.9e-3, section 3.5
    assert i_exp(whole(-(2**15)), UNIT)[0].item() == 0


def test_gelu_by_hand():
    """At √2/16 the inner scale is 1/16: b is round(-28.3) = -28, the unit of erf 0.2888/256, and 1 is 886 of it.

    For 32, that is 2.83: min(32, 28) - 28 = 0, so erf is 886. For -4: (4 - 28)² = 576, so erf is -(886 - 576).
    """
    value, scale = i_gelu(whole(32, -4, 0), math.sqrt(2) / 16)
    assert value.tolist() == [32 * (886 + 886), -4 * (886 - 310), 0]
    assert scale == pytest.approx(math.sqrt(2) / 16 * 0.2888 / 256 / 2)


def test_gelu_is_as_near_as_published():
    q = torch.arange(-integer.GELU_LARGEST, integer.GELU_LARGEST + 1)
    value, scale = i_gelu(q, UNIT)
    assert ((value * scale) - F.gelu(q.double() * UNIT)).abs().max() < 1.85e-2  # 1.8e-2, table 1
    assert value.abs().max() < 2**31


def test_softmax_by_hand():
    """Two equal scores, and a key that is padding: 127.5 rounds up."""
    q = torch.tensor([[5, 5, 9000]])
    assert i_softmax(q, torch.tensor([[True, True, False]])).tolist() == [[128, 128, 0]]
    assert i_softmax(q).tolist() == [[0, 0, 255]]
    assert i_softmax(q, torch.zeros(1, 3, dtype=torch.bool)).tolist() == [[0, 0, 0]]


def test_softmax_is_near_and_padding_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(-8000, 8000, (50, 20), generator=generator)
    got = i_softmax(q)
    assert (got / 255 - (q * UNIT).double().softmax(-1)).abs().max() < 4e-3
    longer = F.pad(q, (0, 7), value=12345)
    real = torch.arange(27) < 20
    assert torch.equal(i_softmax(longer, real), F.pad(got, (0, 7)))


def test_the_sum_of_exp_fits_where_it_says():
    most = int(i_exp(whole(0), UNIT)[0])
    assert most * integer.SUM_FITS < 2**31 <= most * (integer.SUM_FITS + 1)
    assert most * 255 + (2**31 >> 1) < 2**31


def test_the_root_is_floored():
    squares = [k * k + d for k in (2, 3, 10, 1000, 2**20 - 1, 2**24, 2**25 - 1) for d in (-1, 0, 1)]
    generator = torch.Generator().manual_seed(0)
    drawn = [int(torch.randint(2**k, (1,), generator=generator)) for k in range(1, 50) for _ in range(50)]
    n = [*range(3000), *squares, *drawn, 2**50 - 1]
    assert i_sqrt(torch.tensor(n)).tolist() == [math.isqrt(one) for one in n]


def test_a_layer_norm_by_hand():
    """3, -1, -1, -1 has the mean 0 and the deviation √3; its root is floor(√12) = 3, √4 · 2^10 is 2,048.

    So it is normed to 2048, -683 and so on (exactly 1.73 is 1774: such small numbers are coarse), and γ = 2, β = 1.
    """
    shift = 20
    gamma, beta = torch.full((4,), 2**11, dtype=torch.int32), torch.full((4,), 2**20 + 2**19)
    got = i_layer_norm(whole(3, -1, -1, -1), gamma, beta, torch.tensor(shift), 127)
    assert got.tolist() == [5, 0, 0, 0]


def test_layer_norm_is_near():
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(-20000, 20000, (40, 384), generator=generator)
    weight, bias = torch.randn(384, generator=generator), torch.randn(384, generator=generator)
    multiplier, offset, shift = norm_constants(weight, bias, 0.05)
    got = i_layer_norm(q, multiplier, offset, shift, 10**6)
    exact = F.layer_norm(q.double(), (384,), weight.double(), bias.double()) / 0.05
    assert (got - exact).abs().max() < 0.6
    flat = torch.full((2, 384), 7)
    assert torch.equal(i_layer_norm(flat, multiplier, offset, shift, 127)[0], (bias / 0.05).round().long())
