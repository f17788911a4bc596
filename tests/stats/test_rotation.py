"""Turning the hidden states: by hand, and the same answers from every decoder with norms first."""

from __future__ import annotations

import copy

import pytest
import torch

from lissom.anatomy import residual
from lissom.edits import AddLora, Editor, Factorize, KeepHidden, MapAfterNorm, Pack, ShareLayers
from lissom.errors import LissomError
from lissom.methods.pruning.prune_hidden import prepare
from lissom.nn.int8 import quantize_rows
from lissom.stats.rotation import (
    center,
    fold_norms,
    layer_norms,
    narrow_map,
    norm_readers,
    principal_axes,
    put_shifts,
    turn,
)
from tests import tiny
from tests.contracts.cases import CASES, Case

TURN = [one for one in CASES if one.variant in {"gpt2", "opt", "gpt_neox", "llama", "mistral", "qwen2", "qwen3"}]
HEAD = "AutoModelForCausalLM"


def turned(model, axes=None):
    """Prepare, fold, and turn, into components where no axes are given."""
    editor, readers = Editor(model), norm_readers(model)
    means = layer_norms(model, readers)
    prepare(editor, readers)
    readers = norm_readers(model)
    if means:
        center(model)
    shifts = fold_norms(model, readers)
    turn(model, principal_axes(model, readers, [tiny.batch(model)])[1] if axes is None else axes)
    put_shifts(model, shifts)
    return editor


@pytest.mark.parametrize("case", [one for one in TURN if one.head != "AutoModel" and not one.changes], ids=str)
def test_no_answer_changes(case: Case):
    model = case.model()
    inputs = case.inputs(model)
    before, table = tiny.outputs(model, inputs), model.get_input_embeddings().weight.clone()
    turned(model)
    torch.testing.assert_close(tiny.outputs(model, inputs), before, atol=1e-5, rtol=1e-4)
    assert (model.get_input_embeddings().weight - table).abs().max() > 0.01, "nothing was turned"


@pytest.mark.parametrize("variant", ["llama", "qwen3", "gpt2", "opt", "gpt_neox"])
def test_a_head_that_is_the_table(variant: str):
    """Behind a map it goes on being the table; where a mean goes it gets a copy."""
    model = tiny.model(variant, HEAD, tie_word_embeddings=True)
    before = tiny.outputs(model, tiny.batch(model))
    for _ in range(2):
        turned(model)
        torch.testing.assert_close(tiny.outputs(model, tiny.batch(model)), before, atol=1e-5, rtol=1e-4)
    shares = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert shares == (variant in {"llama", "qwen3"})


def test_the_map_is_narrowed_by_hand():
    """E = [[1, 1], [0, 1]] and M = [[2, 1], [5, 3]]: the column of E M that stays is (7, 5), that of E (1, 0), so 7."""
    model = tiny.model(
        "llama", HEAD, hidden_size=2, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, vocab_size=2
    )
    Editor(model).apply(MapAfterNorm(norm="model.norm"), {"model.norm.map.weight": torch.tensor([[2.0, 1], [5, 3]])})
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.tensor([[1.0, 1], [0, 1]]))
    found = narrow_map(model, 1)
    torch.testing.assert_close(found, {"model.norm.map.weight": torch.tensor([[7.0]], dtype=torch.float64)})


def test_a_narrow_table_behind_maps_of_its_own():
    model = Case("opt", HEAD, (("word_embed_proj_dim", 16),)).model()
    before = tiny.outputs(model, tiny.batch(model))
    turned(model)
    torch.testing.assert_close(tiny.outputs(model, tiny.batch(model)), before, atol=1e-5, rtol=1e-4)


def test_thin_and_shared_maps_are_turned_once():
    """Three layers of one set of tensors, thin, each use with a delta of its own."""
    model = tiny.model("llama", HEAD)
    editor = Editor(model)
    maps = tuple(slot.path for slot in editor.anatomy().linears())
    editor.apply(Factorize(ranks=dict.fromkeys(maps[:7], 5)))
    editor = Editor(tiny.model("llama", HEAD))
    editor.apply(ShareLayers(source=(0, 0, 0)))
    editor.apply(AddLora(ranks=dict.fromkeys(maps, 2)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, one in editor.model.named_parameters():
            if name.endswith("up.weight"):
                one.copy_(torch.randn(one.shape, generator=generator) / 10)
    for made in (model, editor.model):
        before = tiny.outputs(made, tiny.batch(made))
        turned(made)
        torch.testing.assert_close(tiny.outputs(made, tiny.batch(made)), before, atol=1e-5, rtol=1e-4)
    blocks = editor.anatomy().stacks[0].blocks
    assert blocks[0].ffn.up.module.inner.weight is blocks[2].ffn.up.module.inner.weight


def test_by_hand():
    """Two channels, a quarter of a circle: x Q of (x, y) is (y, -x). A reader [a, b] becomes [b, -a]."""
    model = tiny.model(
        "llama", HEAD, hidden_size=2, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=4
    )
    before = copy.deepcopy(model)
    with torch.no_grad():
        for one in (model, before):
            one.model.norm.weight.copy_(torch.tensor([2.0, 3.0]))
    turned(model, torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64))
    old, new = before.model.layers[0], model.model.layers[0]
    x, y = before.model.embed_tokens.weight.T
    assert torch.equal(model.model.embed_tokens.weight, torch.stack([y, -x], dim=1))
    up = old.mlp.up_proj.weight * old.post_attention_layernorm.weight
    torch.testing.assert_close(new.mlp.up_proj.weight, torch.stack([up[:, 1], -up[:, 0]], dim=1))
    down = old.mlp.down_proj.weight
    torch.testing.assert_close(new.mlp.down_proj.weight, torch.stack([down[1], -down[0]]))
    head = before.lm_head.weight * torch.tensor([2.0, 3.0])
    torch.testing.assert_close(model.lm_head.weight, torch.stack([head[:, 1], -head[:, 0]], dim=1))
    assert new.post_attention_layernorm.weight.tolist() == [1.0, 1.0]


def test_components_by_hand():
    """The one norm gives (a, a) or (-a, a): of one token (1, 1) and three tokens (-1, 1), halves of 4 and 3 : 1."""
    model = tiny.model("llama", HEAD, hidden_size=2, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)
    with torch.no_grad():
        for one in model.parameters():
            one.zero_()
        model.model.norm.weight.fill_(1)
        model.model.embed_tokens.weight[5], model.model.embed_tokens.weight[6] = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    batch = {"input_ids": torch.tensor([[5, 6, 6, 6, 5]]), "attention_mask": mask}
    shares, axes = principal_axes(model, ["model.norm"], [batch])
    torch.testing.assert_close(shares, torch.tensor([0.75, 0.25], dtype=torch.float64), atol=1e-4, rtol=0)
    torch.testing.assert_close(axes.abs(), torch.full((2, 2), 0.5**0.5, dtype=torch.float64))
    assert axes[0, 0] * axes[1, 0] < 0 < axes[0, 1] * axes[1, 1]


def test_a_model_without_a_mean_loses_one_channel_for_nothing():
    """Layer norms see no difference along (1, ..., 1): the last component is empty, and cutting it changes nothing."""
    model = tiny.model("gpt2", HEAD, n_head=1, layer_norm_epsilon=1e-12)
    with torch.no_grad():
        model.transformer.ln_f.bias.zero_()  # the head has no bias to take it
    before = tiny.outputs(model, tiny.batch(model))
    editor, readers = Editor(model), norm_readers(model)
    prepare(editor, readers)
    center(model)
    fold_norms(model, readers)
    shares, axes = principal_axes(model, readers, [tiny.batch(model)])
    turn(model, axes)
    assert shares[-1] < 1e-10
    editor.apply(KeepHidden(channels=tuple(range(31))))
    with torch.no_grad():
        for path in residual(model).norms:
            model.get_submodule(path).weight.fill_((32 / 31) ** 0.5)
    torch.testing.assert_close(tiny.outputs(model, tiny.batch(model)), before, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("variant", ["bert", "modernbert", "t5", "bart"])
def test_what_cannot_be_turned_says_so(variant: str):
    head = "AutoModelForSeq2SeqLM" if variant in {"t5", "bart"} else "AutoModelForSequenceClassification"
    with pytest.raises(LissomError, match=r"LSM-715.*not all that reads them stands behind one norm.*norms first"):
        norm_readers(tiny.model(variant, head))
    with pytest.raises(LissomError, match=r"LSM-715.*they are what it answers"):
        norm_readers(tiny.model("llama"))


def test_packed_maps_and_norms_apart_are_refused():
    editor = Editor(tiny.model("llama", HEAD))
    path = "model.layers.1.mlp.up_proj"
    codes, scale = quantize_rows(editor.model.get_submodule(path).weight)
    editor.apply(Pack(linears=(path,)), {f"{path}.weight": codes, f"{path}.weight_scale": scale})
    with pytest.raises(LissomError, match=f"LSM-713 {path}: .*cannot be turned.*Cut the hidden width first"):
        norm_readers(editor.model)
    shared = Editor(tiny.model("llama", HEAD))
    shared.apply(ShareLayers(source=(0, 0, 0), parts="ffn"))
    with pytest.raises(LissomError, match=r"LSM-715.*layers share this map and have norms of their own"):
        fold_norms(shared.model, norm_readers(shared.model))
