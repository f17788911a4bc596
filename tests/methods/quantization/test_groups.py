"""Rounding to nearest and HQQ: what they store, and how near it is."""

import pytest
import torch

import lissom
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods import Given
from lissom.methods.low_rank.svd import Svd
from lissom.methods.quantization.hqq import Hqq
from lissom.methods.quantization.rtn import Rtn
from lissom.nn.grouped import GroupedLinear, restore
from tests import tiny

KINDS = [Rtn, Hqq]


def heavy_tailed(rows=64, columns=256):
    """Weights of which a few are far out, as in language models."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator)
    return weight * (1 + 4 * (torch.rand(rows, columns, generator=generator) < 0.02))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_hqq_lowers_the_error_it_is_made_for(bits):
    weight = heavy_tailed()
    plain, better = Rtn(bits=bits).rounded(weight, ""), Hqq(bits=bits).optimized(weight)
    plain_error, better_error = ((restore(*one, group=64) - weight).abs().mean() for one in (plain, better))
    assert better_error < plain_error


def test_hqq_leaves_what_lies_on_the_grid():
    weight = torch.arange(16.0).repeat(2, 4)  # 0 to 15 are the codes of 4 bits
    found = Hqq(bits=4, group=64).optimized(weight)
    assert torch.equal(restore(*found, group=64), weight)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_bits_are_what_is_saved(kind, tmp_path):
    model = tiny.model("llama", "AutoModelForCausalLM", hidden_size=128, intermediate_size=256, num_attention_heads=4)
    lissom.save(model, tmp_path / "whole")
    editor = Editor(model)
    kind(bits=3, group=32).apply(editor, Given())
    weights = sum(slot.module.columns * slot.module.out_features for slot in editor.anatomy().linears())
    lissom.save(editor.model, tmp_path / "packed")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "packed")]
    assert sizes[0] - sizes[1] == pytest.approx(weights * (4 - 3 / 8 - 4 / 32), rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_both_factors_of_a_low_rank_map_are_packed(kind):
    editor = Editor(tiny.model("bert"))
    Svd(ratio=0.5).apply(editor, Given())
    kind(group=8).apply(editor, Given())
    assert sum(isinstance(one, GroupedLinear) for one in editor.model.modules()) == 3 * 6 * 2


@pytest.mark.parametrize("kind", KINDS)
def test_twice_is_once(kind):
    editor = Editor(tiny.model("gpt2"))
    kind().apply(editor, Given())
    kind(bits=2).apply(editor, Given())
    assert len(editor.record.edits) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_not_finite_are_refused(kind):
    editor = Editor(tiny.model("bert"))
    with torch.no_grad():
        editor.anatomy().stacks[0].blocks[1].ffn.up.weight[0, 0] = torch.nan
    with pytest.raises(LissomError, match=r"LSM-901 encoder\.layer\.1\.intermediate\.dense: .*NaN"):
        kind().apply(editor, Given())
