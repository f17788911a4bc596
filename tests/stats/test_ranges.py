import math

import pytest
import torch

from lissom.anatomy import dissect
from lissom.stats.ranges import Histogram, find_range, histograms, same_inputs, scale_and_zero
from tests import tiny


def counted(*parts: torch.Tensor) -> Histogram:
    made = Histogram()
    for part in parts:
        made.add(part)
    return made


def normal(n: int = 20_000, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def test_a_grid_by_hand():
    scale, zero = scale_and_zero(-1.0, 1.55)
    assert scale.item() == pytest.approx(0.01)
    assert zero.item() == 100
    assert scale_and_zero(2.0, 5.1)[1].item() == 0  # zero is always in the range
    assert scale_and_zero(2.0, 5.1)[0].item() == pytest.approx(0.02)


def test_the_range_grows_and_no_value_is_lost():
    small, large = normal() * 0.01, normal(seed=1) * 7
    seen = counted(small, large)
    assert seen.counts.sum() == 40_000
    assert seen.low == large.min()
    assert seen.high == large.max()
    held = seen.centers()[seen.counts > 0]
    assert held.abs().max() <= large.abs().max() * (1 + 1 / 512)
    mean = (seen.centers() * seen.counts).sum() / 40_000
    assert mean == pytest.approx(torch.cat([small, large]).mean().item(), abs=large.abs().max().item() / 512)


def test_the_order_of_batches_matters_no_more_than_a_bin():
    parts = [normal(seed=seed) * 3**seed for seed in range(4)]
    one, other = (find_range(counted(*some), "percentile") for some in (parts, parts[::-1]))
    width = max(part.abs().max().item() for part in parts) / 512
    assert one == pytest.approx(other, abs=width)


def test_percentile_leaves_the_tail_out():
    x = torch.linspace(0, 1, 100_001)
    x[-1], x[0] = 50.0, -50.0
    low, high = find_range(counted(x), "percentile")
    assert low == pytest.approx(0.0, abs=0.05)
    assert high == pytest.approx(1.0, abs=0.05)
    assert find_range(counted(x), "min_max") == (-50.0, 50.0)


@pytest.mark.parametrize("calibrator", ["percentile", "mse", "entropy"])
def test_one_outlier_does_not_make_the_steps_wide(calibrator):
    x = normal(200_000)
    x[0] = 40.0
    low, high = find_range(counted(x), calibrator)
    assert -6 < low < -2
    assert 2 < high < 40


def test_mse_has_the_least_error():
    x = normal(100_000)
    x[0] = 60.0
    seen = counted(x)

    def error(low: float, high: float) -> float:
        scale, zero = scale_and_zero(low, high)
        codes = ((x / scale).round() + zero.float()).clamp(0, 255)
        return float(((codes - zero.float()) * scale - x).square().sum())

    best = error(*find_range(seen, "mse"))
    assert best < error(*find_range(seen, "min_max"))
    assert best <= 1.02 * min(error(seen.low, seen.high * part / 40) for part in range(1, 41))


def test_nan_is_refused_and_nothing_is_nothing():
    with pytest.raises(ValueError, match="NaN or infinity"):
        counted(torch.tensor([1.0, math.nan]))
    assert counted(torch.empty(0)).counts.sum() == 0
    assert counted(torch.zeros(5)).high == 0


def test_maps_that_read_the_same_tensor_belong_together():
    model = tiny.model("bert", num_hidden_layers=1)
    block = dissect(model).stacks[0].blocks[0]
    sets = same_inputs(model, list(block.slots()), tiny.batch(model))
    names = [[one.path.rpartition("layer.0.")[2] for one in some] for some in sets]
    assert names == [
        ["attention.self.query", "attention.self.key", "attention.self.value"],
        ["attention.output.dense"],
        ["intermediate.dense"],
        ["output.dense"],
    ]
    assert not any(one._forward_hooks for one in model.modules())


def test_padding_is_left_out():
    model = tiny.model("bert", num_hidden_layers=1)
    slot = dissect(model).stacks[0].blocks[0].attention.q
    whole = {"input_ids": torch.full((1, 5), 3), "attention_mask": torch.ones(1, 5, dtype=torch.long)}
    padded = {
        "input_ids": torch.tensor([[3, 3, 3, 3, 3, 0, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]]),
    }
    [one], [other] = histograms(model, [slot], [whole]), histograms(model, [slot], [padded])
    assert one.counts.sum() == other.counts.sum() == 5 * slot.in_features
    assert (one.low, one.high) == pytest.approx((other.low, other.high))
