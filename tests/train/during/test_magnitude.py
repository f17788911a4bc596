"""Magnitude pruning while training: which weights go, that they stay away, and what PLATON remembers."""

import logging

import pytest
import torch
from torch import nn

from lissom.anatomy import dissect
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.train.during.magnitude import Magnitude, Mask
from lissom.train.during.weights import transform
from tests import tiny
from tests.train.during.families import CLASSIFIER
from tests.train.during.running import FAMILIES, Stop, reloaded, run, same_bytes, weights, zeros


def begin(model=None, **options):
    model = model or tiny.model("bert", CLASSIFIER)
    return model, Magnitude(**options).begin(Editor(model), None)


@pytest.mark.parametrize("across", ["matrix", "model", "model-scaled"])
def test_the_largest_weights_stay(across):
    before = [one.abs().flatten() for one in weights(tiny.model("bert", CLASSIFIER))]
    model, acting = begin(sparsity=0.75, across=across)
    acting.at(1.0)
    after = [(one != 0).flatten() for one in weights(model)]
    if across == "model-scaled":
        before = [values / values.std() for values in before]
    if across != "matrix":
        before, after = [torch.cat(before)], [torch.cat(after)]
    for values, kept in zip(before, after, strict=True):
        best = values.topk(len(values) // 4).indices
        assert sorted(best.tolist()) == kept.nonzero().flatten().tolist()


def test_the_schedule_decides_how_many():
    model, acting = begin(sparsity=0.8, warmup=0.2, cooldown=0.3, refreshes=1000)
    for progress, share in ((0.0, 0.0), (0.2, 0.0), (0.45, 0.7), (0.7, 0.8), (1.0, 0.8)):
        acting.at(progress)
        assert all(int((one == 0).sum()) == int(share * one.numel() + 0.5) for one in weights(model))
        assert acting.settled == (progress >= 0.7)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("by", ["magnitude", "platon"])
def test_the_promised_share_is_zero_also_after_a_reload(tmp_path, family, by):
    model = run(tmp_path, [Magnitude(sparsity=0.8, by=by)], family)
    assert [int((one == 0).sum()) for one in weights(model)] == [int(0.8 * one.numel() + 0.5) for one in weights(model)]
    assert zeros(reloaded(model, tmp_path / "saved")) == zeros(model)


def test_removed_weights_learn_nothing_while_the_others_do(tmp_path):
    start = weights(tiny.model("bert", CLASSIFIER))
    model = run(tmp_path, [Magnitude(sparsity=0.5, cooldown=1.0)])
    for before, after in zip(start, weights(model), strict=True):
        lowest = before.abs().flatten().topk(before.numel() // 2, largest=False).indices
        assert after.flatten()[lowest].eq(0).all(), "those that were the smallest before the first step"
        assert not torch.equal(before[after != 0], after[after != 0])


def test_a_locked_pattern_stays_to_the_weight(tmp_path):
    model = run(tmp_path, [Magnitude(sparsity=0.7, across="model")])
    pattern = [one != 0 for one in weights(model)]
    values = [one.clone() for one in weights(model)]
    run(tmp_path, [Magnitude(locked=True)], model=model, learning_rate=1e-2, weight_decay=0.5)
    assert all(torch.equal(one != 0, kept) for one, kept in zip(weights(model), pattern, strict=True))
    assert not any(torch.equal(one, old) for one, old in zip(weights(model), values, strict=True))


def test_nothing_to_lock_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        _, acting = begin(locked=True)
    assert "magnitude is locked to the zeros that are there, and no weight is zero" in caplog.text
    assert acting.settled


def test_platon_smooths_importance_and_uncertainty():
    mask = Mask(torch.zeros(2), locked=False, platon=True)
    mask.learn(torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5]))  # |w g| = 3 and 1
    torch.testing.assert_close(mask.importance, torch.tensor([0.45, 0.15]))
    torch.testing.assert_close(mask.uncertainty, torch.tensor([0.05 * 2.55, 0.05 * 0.85]))
    mask.learn(torch.tensor([1.0, -2.0]), torch.tensor([0.0, 1.0]))  # 0 and 2
    torch.testing.assert_close(mask.importance, torch.tensor([0.3825, 0.4275]))
    expected = [0.95 * 0.1275 + 0.05 * 0.3825, 0.95 * 0.0425 + 0.05 * 1.5725]
    torch.testing.assert_close(mask.uncertainty, torch.tensor(expected))


@pytest.mark.parametrize("platon", [False, True])
def test_the_gradient_passes_to_removed_weights_only_in_platon(platon):
    linear = nn.Linear(2, 1, bias=False)
    (mask,) = transform([linear], lambda module, tensor: Mask(tensor, locked=False, platon=platon))
    mask.keep[0, 1] = False
    x = torch.tensor([2.0, 3.0])
    linear(x).backward()
    stored = linear.parametrizations.weight.original
    assert linear.weight[0].tolist() == [stored[0, 0].item(), 0.0]
    assert stored.grad.tolist() == [[2.0, 3.0 if platon else 0.0]]


def test_platon_takes_the_gradient_of_each_step_and_brings_weights_back():
    model, acting = begin(sparsity=0.5, by="platon", cooldown=1.0)
    acting.at(0.1)
    first = [one.keep.clone() for one in acting.masks]
    model.train()
    for step in range(3):
        model.zero_grad()
        model(**tiny.batch(model, seed=step), labels=torch.tensor([0, 1])).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        if not step:
            clipped = acting.stored[0].grad.clone()
        with torch.no_grad():
            for one in acting.stored:
                one.sub_(0.1 * one.grad)
        moved = acting.stored[0].detach().clone()
        acting.at(0.2 + step / 10)
        if not step:
            torch.testing.assert_close(acting.masks[0].importance, 0.15 * (moved * clipped).abs())
    assert any(bool((one.keep & ~old).any()) for one, old in zip(acting.masks, first, strict=True))
    for one, tensor in zip(acting.masks, acting.stored, strict=True):
        assert tensor[~one.keep].eq(0).all()


def test_a_table_of_embeddings_that_the_head_shares(tmp_path):
    model = tiny.model("bert", "AutoModelForMaskedLM")
    table, head = model.bert.embeddings.word_embeddings, model.cls.predictions.decoder
    assert table.weight is head.weight
    _, acting = begin(model, sparsity=0.5, embeddings=True)
    acting.at(1.0)
    assert torch.equal(table.weight, head.weight)
    acting.bake()
    assert table.weight is head.weight
    assert int((table.weight == 0).sum()) == table.weight.numel() // 2
    reloaded(model, tmp_path / "saved")


def shaken(model, seed):
    """Other numbers in the place of every parameter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for one in model.parameters():
            one.copy_(torch.randn(one.shape, generator=generator))
    return [one.clone() for one in model.parameters()]


@pytest.mark.parametrize("rewind", [0.0, 0.1])
def test_survivors_return_to_what_they_were(rewind):
    model, acting = begin(sparsity=0.5, warmup=0.2, refreshes=5, rewind=rewind)
    acting.at(0.0)
    first = [one.detach().clone() for one in model.parameters()]
    early = shaken(model, 1)
    acting.at(0.1)
    for progress in (0.4, 0.6, 0.8):
        trained = shaken(model, int(progress * 10))
        acting.at(progress)
        wanted = early if rewind else first
        for one, back, last in zip(model.parameters(), wanted, trained, strict=True):
            assert bool(((one == back) | (one == 0)).all())
            assert bool(last.abs()[one == 0].mean() < last.abs()[one != 0].mean()) or not bool((one == 0).any())
    shaken(model, 9)
    acting.at(0.9)  # the share stays, and so do the numbers
    assert not any(torch.equal(one, back) for one, back in zip(model.parameters(), wanted, strict=True))
    assert zeros(model)[0] == sum(int(one.numel() / 2 + 0.5) for one in weights(model))


def test_the_optimizer_forgets_when_weights_return(tmp_path):
    """With one step after the last return, the survivors are one step of a new optimizer from the start."""
    start = weights(tiny.model("bert", CLASSIFIER))
    options = {"sparsity": 0.5, "warmup": 0.1, "cooldown": 0.1, "refreshes": 1, "rewind": 0}
    model = run(tmp_path, [Magnitude(**options)], weight_decay=0.0)
    for before, after in zip(start, weights(model), strict=True):
        moved = (after - before)[after != 0].abs()
        assert 0.99 * moved.max() < moved.median() < 1e-3, "the first step of Adam is as long for every weight"


def test_a_late_rewind_is_refused():
    with pytest.raises(LissomError, match=r"LSM-318 while: rewind 0\.5 is later than warmup 0\.1"):
        Magnitude(rewind=0.5).check(dissect(tiny.model("bert")), None)


RESUMED = {
    "magnitude": {},
    "platon": {"by": "platon", "across": "model"},
    "rewind": {"rewind": 0.1, "across": "model"},
}


@pytest.mark.parametrize("options", RESUMED.values(), ids=RESUMED)
def test_an_interrupted_run_continues_to_the_same_bytes(tmp_path, options):
    during = [Magnitude(sparsity=0.6, refreshes=4, **options)]
    whole = run(tmp_path / "whole", during)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", during, report=Stop(), save_seconds=0)
    assert same_bytes(whole, run(tmp_path / "cut", during, save_seconds=0))


def test_nothing_is_left_in_the_model():
    fresh = tiny.model("bert", CLASSIFIER)
    model, acting = begin(by="platon")
    acting.remove()
    acting.remove()
    assert model.state_dict().keys() == fresh.state_dict().keys()
    assert [type(one) for one in model.modules()] == [type(one) for one in fresh.modules()]
    assert not any(one._post_accumulate_grad_hooks for one in model.parameters())
    assert all(slot.module.weight.requires_grad for slot in dissect(model).linears())
