"""Reweighted proximal pruning: the step by hand, how many go, and that they stay away."""

import pytest
import torch

from lissom.edits import Editor
from lissom.train.during.proximal import Proximal, Pull
from tests import tiny
from tests.train.during.families import CLASSIFIER
from tests.train.during.running import FAMILIES, Stop, reloaded, run, same_bytes, weights


def begin(**options):
    model = tiny.model("bert", CLASSIFIER)
    return model, Proximal(**options).begin(Editor(model), None)


def test_a_step_by_hand():
    # two thirds are at most 2, so alpha is 4 / (|w| + 0.02); a step of 0.5 takes half of that
    weight = torch.tensor([[-1.0, 2.0, 8.0]])
    pull = Pull(weight, 2 / 3)
    pull.set(weight)
    torch.testing.assert_close(pull.alpha, torch.tensor([[4 / 1.02, 4 / 2.02, 4 / 8.02]]))
    pull.pull(weight, 0.5)
    torch.testing.assert_close(weight, torch.tensor([[0.0, 2 - 2 / 2.02, 8 - 2 / 8.02]]))


def test_untouched_weights_vanish_by_their_size():
    """Alpha set once: after half of the run those are gone whose square is below half of strength · m²."""
    model, acting = begin(strength=1.0, refreshes=1, cooldown=0.0, sparsity=0.9)
    before = [one.clone() for one in weights(model)]
    acting.at(0.0)
    acting.at(0.5)
    for old, new in zip(before, weights(model), strict=True):
        m = old.abs().flatten().kthvalue(int(0.9 * old.numel() + 0.5)).values
        gone = 0.5 * m * m / (old.abs() + 0.01 * m) >= old.abs()
        assert torch.equal(new == 0, gone | (old == 0))
        assert bool((new.abs() <= old.abs()).all())
        assert bool((new * old >= 0).all())


def test_a_matrix_with_enough_zeros_is_left_alone():
    model, acting = begin(strength=1e5, sparsity=0.5, warmup=0.2)
    for progress in (0.0, 0.1, 0.2):
        acting.at(progress)
    assert all(bool((one != 0).all()) for one in weights(model))
    acting.at(0.3)
    once = [one.clone() for one in weights(model)]
    acting.at(0.35)
    assert all(bool((one == 0).any()) for one in once)
    assert all(torch.equal(one, old) for one, old in zip(weights(model), once, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_promised_share_is_zero_also_after_a_reload(tmp_path, family):
    model = run(tmp_path, [Proximal(sparsity=0.6)], family)
    for one in weights(model):
        assert int((one == 0).sum()) == pytest.approx(0.6 * one.numel(), abs=max(1, 0.2 * one.numel()))
        assert int((one == 0).sum()) >= int(0.6 * one.numel())
    reloaded(model, tmp_path / "saved")


def test_an_interrupted_run_continues_to_the_same_bytes(tmp_path):
    during = [Proximal(sparsity=0.6, refreshes=4)]
    whole = run(tmp_path / "whole", during)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", during, report=Stop(), save_seconds=0)
    assert same_bytes(whole, run(tmp_path / "cut", during, save_seconds=0))


def test_nothing_is_left_in_the_model():
    fresh = tiny.model("bert", CLASSIFIER)
    model, acting = begin()
    acting.remove()
    acting.remove()
    assert model.state_dict().keys() == fresh.state_dict().keys()
    assert [type(one) for one in model.modules()] == [type(one) for one in fresh.modules()]
