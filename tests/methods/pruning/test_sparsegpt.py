"""SparseGPT: by hand, against the best that a mask allows, against removal alone, and on models."""

import pytest
import torch

import lissom
from lissom.data import load_data
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.measure.size import sparsity
from lissom.methods import Given
from lissom.methods.pruning.prune_weights import PruneWeights, scores
from lissom.methods.pruning.sparsegpt import Sparsegpt
from lissom.stats.sweep import inverse_factor
from tests import tiny


def given(rows=16):
    data = load_data({"train": tiny.labelled_texts(rows), "validation": tiny.labelled_texts(4, seed=1)})
    return Given(data=data, tokenizer=tiny.tokenizer(), max_length=32)


def correlated(rows, columns):
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(rows, columns, generator=generator)
    x = torch.randn(600, columns // 5, generator=generator) @ torch.randn(columns // 5, columns, generator=generator)
    return weight, x + 0.3 * torch.randn(600, columns, generator=generator)


def test_by_hand():
    # The inverse of H is [[1, -2], [-2, 5]], so U_11 = 1, U_12 = -2, U_22 = 1. Scores are 1 and 9: the first weight
    # goes, and the second becomes 3 + 1 · 2 = 5, where (w' - w) H (w' - w)ᵀ is least: 5 - 2·2·2 + 4 = 1 (5 without).
    upper = inverse_factor(torch.tensor([[5.0, 2.0], [2.0, 1.0]]), damp=0)
    torch.testing.assert_close(upper, torch.tensor([[1.0, -2.0], [0.0, 1.0]]))
    torch.testing.assert_close(Sparsegpt().solve(torch.tensor([[1.0, 3.0]]), upper), torch.tensor([[0.0, 5.0]]))


def test_columns_after_make_up_as_well_as_least_squares_lets_them():
    """With the first half of the columns gone, the second is the least squares fit."""
    weight, x = correlated(6, 20)
    weight[:, :10] *= 1e-3  # so that they are the lowest
    weight[:, :10] += 1e-3
    hessian = 2 * (x.t() @ x).double()
    found = Sparsegpt().solve(weight.double(), inverse_factor(hessian.clone(), damp=0))
    assert bool((found[:, :10] == 0).all())
    best = torch.linalg.lstsq(x[:, 10:].double(), x.double() @ weight.t().double()).solution.t()
    torch.testing.assert_close(found[:, 10:], best)


@pytest.mark.parametrize("pattern", [None, "2:4", "2:3"])
def test_outputs_are_nearer_than_of_removal_alone(pattern):
    weight, x = correlated(32, 300)
    found = Sparsegpt(pattern=pattern).solve(weight, inverse_factor(2 * x.t() @ x, damp=0.01))
    wanda = PruneWeights(by="wanda", pattern=pattern)
    alone = weight.masked_fill(wanda.gone(scores(weight, x.norm(dim=0), "wanda")), 0)
    assert (found == 0).sum() == (alone == 0).sum()
    errors = [(x @ (one - weight).t()).norm() for one in (found, alone)]
    assert errors[0] < 0.8 * errors[1]


def test_patterns_hold():
    weight, x = correlated(8, 40)
    found = Sparsegpt(pattern="2:4").solve(weight, inverse_factor(2 * x.t() @ x, damp=0.01))
    assert bool(((found.reshape(8, 10, 4) != 0).sum(-1) == 2).all())


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5", "bart", "albert"])
def test_models_are_pruned(kind):
    editor = Editor(tiny.model(kind, "AutoModelForSeq2SeqLM" if kind in ("t5", "bart") else "AutoModel"))
    whole = tiny.outputs(editor.model, inputs := tiny.batch(editor.model))
    Sparsegpt(ratio=0).apply(editor, given())
    assert torch.equal(tiny.outputs(editor.model, inputs), whole)
    Sparsegpt(ratio=0.25).apply(editor, given())
    assert sparsity(editor.model).value == pytest.approx(0.25, abs=1e-3)
    assert torch.isfinite(tiny.outputs(editor.model, inputs)).all()


def test_zeros_stay_zero():
    weight, x = correlated(8, 40)
    upper = inverse_factor(2 * x.t() @ x, damp=0.01)
    once = Sparsegpt(ratio=0.5).solve(weight, upper)
    assert torch.equal(Sparsegpt(ratio=0.5).solve(once, upper), once)
    assert bool((Sparsegpt(ratio=0.25).solve(once, upper)[once == 0] == 0).all())


def test_refusals():
    with pytest.raises(LissomError, match=r"LSM-317"):
        Sparsegpt().apply(Editor(tiny.model("bert")), Given())
    with pytest.raises(LissomError, match=r"LSM-903 here: .*not positive definite"):
        inverse_factor(torch.tensor([[1.0, 99.0], [99.0, 1.0]]), damp=0.01, path="here")


def test_the_same_seed_gives_the_same_model():
    made = []
    for _ in range(2):
        editor = Editor(tiny.model("llama"))
        Sparsegpt(pattern="2:4").apply(editor, given())
        made.append(tiny.outputs(editor.model, tiny.batch(editor.model)))
    assert torch.equal(*made)
    assert lissom.dissect(editor.model).stacks
