"""Levels and binary layers: values and gradients by hand, Bi-Attention, the split of ternary weights, planes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lissom.nn.binary import BinaryLinear
from lissom.nn.fake_levels import (
    CentredFakeWeight,
    FakePlanes,
    LearnedAttentionLevels,
    LearnedLevels,
    split_ternary,
)
from lissom.nn.fake_quant import quantize
from lissom.nn.levels import AttentionLevels, Levels, level_attention
from lissom.nn.low_bit import pack_codes

X = [-2.0, -0.3, 0.1, 0.24, 0.26, 0.6, 5.0]
SETS = [
    (1, False, [-0.5, -0.5, 0.5, 0.5, 0.5, 0.5, 0.5]),
    (1, True, [0, 0, 0, 0, 0.5, 0.5, 0.5]),
    (2, True, [0, 0, 0, 0, 0.5, 0.5, 1.5]),
    (2, False, [-1.0, -0.5, 0, 0, 0.5, 0.5, 0.5]),
]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("bits", "positive", "wanted"), SETS)
def test_levels_by_hand(bits, positive, wanted):
    levels = Levels(bits, positive=positive)
    levels.scale.fill_(0.5)
    assert levels(torch.tensor(X)).tolist() == wanted
    levels.shift.fill_(1.0)
    assert levels(torch.tensor(X) + 1).tolist() == wanted, "the shift is not added back"


def test_zero_is_on_the_upper_side_and_half_precision_keeps_the_scale():
    levels = Levels(1)
    levels.scale.fill_(0.1)
    assert levels(torch.zeros(1)).item() == pytest.approx(0.1)
    half = levels.half()
    assert half.scale.dtype == torch.float32
    assert half.scale.item() == torch.tensor(0.1).item()
    assert half(torch.ones(1, dtype=torch.half)).dtype == torch.half


def test_gradients_by_hand():
    """scale 0.5, shift 0, levels 0 to 3: inside at z = 0.52 and 1.2, below, and above."""
    levels = LearnedLevels(2, positive=True)
    levels.begin(torch.tensor(1.0))
    with torch.no_grad():
        levels.scale.fill_(0.5)
    x = torch.tensor([0.26, 0.6, -1.0, 9.0], requires_grad=True)
    levels(x).sum().backward()
    assert x.grad.tolist() == [1, 1, 0, 0]
    divided = (4 * 3) ** 0.5
    assert levels.scale.grad.item() == pytest.approx((0.48 - 0.2 + 0 + 3) / divided, rel=1e-5)
    assert levels.shift.grad.item() == pytest.approx(-2 / divided)


def test_they_begin_with_the_first_batch_in_training_and_again_for_other_bits():
    levels, x = LearnedLevels(2, positive=True), torch.tensor([1.0, -3.0])
    levels.eval()(x)
    assert levels.scale.item() == 1.0
    levels.train()(x)
    assert levels.scale.item() == pytest.approx(2 * 2 / 3**0.5)
    levels(10 * x)
    assert levels.scale.item() == pytest.approx(2 * 2 / 3**0.5), "only once"
    levels.bits = 1
    levels(x)
    assert levels.scale.item() == 4.0
    plain = LearnedLevels(1)
    plain(x)
    assert plain.scale.item() == 2.0


def test_stored_levels_are_the_trained_ones():
    trained = LearnedLevels(2)
    trained(random(50))
    stored = Levels(2)
    for name, one in trained.stored().items():
        getattr(stored, name).copy_(one)
    assert torch.equal(stored(random(50, seed=1)), trained.eval()(random(50, seed=1)))


def attention(rule, bits=1, kind=AttentionLevels):
    module = nn.Module()
    module.levels = kind(bits, rule)
    return module


def test_bi_attention_by_hand():
    """Scores of signs (2 wide): query (1, 1) with keys (1, 1), (1, -1), (-1, -1): 2, 0 and -2; zero is seen."""
    q = torch.tensor([[[[0.3, 2.0]]]])
    k = torch.tensor([[[[5.0, 0.1], [1.0, -1.0], [-4.0, -0.2]]]])
    v = torch.tensor([[[[1.0, -1.0], [0.5, 2.0], [9.0, 9.0]]]])
    module = attention("bool")
    module.levels.v.scale.fill_(0.5)
    context, weights = level_attention(module, q, k, v, None)
    assert weights.flatten().tolist() == [1, 1, 0]
    assert context.flatten().tolist() == [1.0, 0.0]
    for mask in (torch.tensor([[[[True, False, True]]]]), torch.tensor([[[[0.0, -1e38, 0.0]]]])):
        assert level_attention(module, q, k, v, mask)[1].flatten().tolist() == [1, 0, 0]


def test_a_softmax_on_levels_by_hand():
    """Scores 2 and -2 over sqrt(2): 0.944 and 0.056; at scale 0.5 these are the levels 1 and 0 of one bit."""
    q, k = torch.ones(1, 1, 1, 2), torch.tensor([[[[1.0, 1.0], [-1.0, -1.0]]]])
    module = attention("softmax")
    module.levels.weights.scale.fill_(0.5)
    context, weights = level_attention(module, q, k, torch.tensor([[[[3.0, -3.0], [1.0, 1.0]]]]), None)
    assert weights.flatten().tolist() == [0.5, 0.0]
    assert context.flatten().tolist() == [0.5, -0.5]
    module.levels.weights.shift.fill_(-5.0)  # now even 0 is on the upper level
    hidden = torch.tensor([[[[True, False]]]])
    assert level_attention(module, q, k, k, hidden)[1].flatten().tolist() == [0.5, 0.0], "a hidden key weighs nothing"


def test_the_border_of_bi_attention_has_a_gradient_near_it():
    score = torch.tensor([-3.0, -0.5, 0.5, 3.0], requires_grad=True)
    LearnedAttentionLevels(1, "bool").seen(score).sum().backward()
    assert score.grad.tolist() == [0, 1, 1, 0]


def test_heads_of_keys_are_shared_by_groups_of_queries():
    q, k, v = random(1, 4, 3, 8), random(1, 2, 5, 8, seed=1), random(1, 2, 5, 8, seed=2)
    module = attention("bool")
    both = level_attention(module, q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), None)[0]
    assert torch.equal(level_attention(module, q, k, v, None)[0], both)
    assert both.shape == (1, 3, 4, 8)


def test_centred_signs_by_hand():
    """Mean 1: -1, 0, 3 become -, -, +, with scale (2 + 1 + 3 + 0) / 4; what lies at the mean is +."""
    weight = torch.tensor([[-1.0, 0.0, 4.0, 1.0]])
    codes, scale = CentredFakeWeight().codes(weight)
    assert codes.tolist() == [[-1, -1, 1, 1]]
    assert scale.tolist() == [1.5]
    assert CentredFakeWeight(transposed=True)(weight.t()).flatten().tolist() == [-1.5, -1.5, 1.5, 1.5]


def test_a_split_by_hand():
    """w = (4, -4, 1, -2), 0.7 · mean = 1.925: only 1 is small, so S_I = 10, S_J = 1, S_K = 0, and the scale is 10/3.

    a = (10 - 1) / 20 = 0.45,  b = (4/3 · 10 - 11) / 2 = 7/6.
    """
    first, second = split_ternary(torch.tensor([[4.0, -4.0, 1.0, -2.0]]))
    torch.testing.assert_close(first, torch.tensor([[1.8, -1.8, 1 + 7 / 6, -0.9]]))
    torch.testing.assert_close(second, torch.tensor([[2.2, -2.2, -7 / 6, -1.1]]))


@pytest.mark.parametrize("by_row", [True, False])
def test_halves_add_up_to_the_ternary_weight(by_row):
    weight = random(16, 64)
    codes, scale = quantize(weight, "ternary", by_row=by_row)
    first, second = split_ternary(weight, by_row=by_row)
    torch.testing.assert_close(first + second, weight)
    torch.testing.assert_close(FakePlanes(second, by_row=by_row)(first), codes * scale[:, None])
    both = FakePlanes(second.t().contiguous(), by_row=by_row, transposed=True)(first.t())
    torch.testing.assert_close(both.t(), codes * scale[:, None])


@pytest.mark.parametrize("weight", [torch.zeros(2, 5), torch.full((2, 5), -3.0), torch.tensor([[10.0] + 20 * [0.6]])])
def test_odd_rows_are_split_too(weight):
    first, second = split_ternary(weight)
    assert torch.isfinite(first).all()
    torch.testing.assert_close(first + second, weight)


def layer(planes, **options):
    made = BinaryLinear(13, 6, planes=planes, **options)
    made.weight = pack_codes(random(planes * 6, 13).sign(), 1)
    made.weight_scale = random(planes * 6, seed=1).abs()
    made.bias = random(6, seed=2)
    return made


@pytest.mark.parametrize("planes", [1, 2, 3])
@pytest.mark.parametrize("bits", [None, 1, 2, 4])
@pytest.mark.parametrize("positive", [True, False])
def test_a_packed_layer_is_the_sum_of_its_planes(planes, bits, positive):
    levels = None if bits is None else Levels(bits, positive=positive)
    if levels is not None:
        levels.scale.fill_(0.4), levels.shift.fill_(0.05)
    made, x = layer(planes, levels=levels, rounds=False), random(2, 3, 13, seed=3)
    codes = made.codes().reshape(planes, 6, 13).float()
    weight = (codes * made.weight_scale.reshape(planes, 6, 1)).sum(0)
    wanted = F.linear(x if levels is None else levels(x), weight, made.bias)
    torch.testing.assert_close(made(x), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made.unpacked()(x), wanted, atol=1e-5, rtol=1e-5)
    assert made(x[:0]).shape == (0, 3, 6)
    assert (made.in_features, made.out_features) == (13, 6)
    made.keep(out=torch.tensor([4, 1]), in_=torch.arange(5))
    short = F.linear(x[..., :5] if levels is None else levels(x[..., :5]), weight[[4, 1], :5], made.bias)
    torch.testing.assert_close(made(x[..., :5]), short, atol=1e-5, rtol=1e-5)


def test_planes_of_rounded_inputs_and_no_gradient():
    made, x = layer(2, rounds=True), random(4, 13, seed=3)
    torch.testing.assert_close(made(x), made.unpacked()(x))
    assert F.cosine_similarity(made(x).flatten(), F.linear(x, made.dense(), made.bias).flatten(), dim=0) > 0.999
    with pytest.raises(RuntimeError, match="have no gradient"):
        made(x.requires_grad_()).sum().backward()
