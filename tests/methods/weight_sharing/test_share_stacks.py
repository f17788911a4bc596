"""Tying a decoder to its encoder: which tensors are one, what they start from, and what is saved."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import lissom
from lissom.anatomy import dissect
from lissom.edits import Editor, KeepLayers, ShareLayers
from lissom.edits import ShareStacks as Edit
from lissom.errors import LissomError
from lissom.methods import Given
from lissom.methods.weight_sharing.share_stacks import ShareStacks
from tests import tiny

SEQ2SEQ = "AutoModelForSeq2SeqLM"
DEEP = {"t5": {"num_decoder_layers": 3}, "bart": {"decoder_layers": 3}}


def tied(variant: str, **options: str) -> torch.nn.Module:
    model = tiny.model(variant, SEQ2SEQ, **DEEP[variant])
    ShareStacks(**options).apply(Editor(model), Given())
    return model


@pytest.mark.parametrize("variant", DEEP)
@pytest.mark.parametrize("cross", ["separate", "self"])
def test_layers_of_both_stacks_hold_the_same_maps(variant: str, cross: str):
    model = tied(variant, cross=cross)
    before = sum(one.numel() for one in tiny.model(variant, SEQ2SEQ, **DEEP[variant]).parameters())
    encoder, decoder = (dissect(model).stack(name).blocks for name in ("encoder", "decoder"))
    saved = 0
    for one, other in zip(encoder, decoder, strict=True):
        slots = (*one.attention.slots(), *one.ffn.slots())
        for a, b in zip(slots, (*other.attention.slots(), *other.ffn.slots()), strict=True):
            assert a.module.weight is b.module.weight
            saved += sum(p.numel() for p in a.module.parameters())
        assert (other.cross.k.module.weight is other.attention.k.module.weight) == (cross == "self")
        saved += sum(p.numel() for s in other.cross.slots() for p in s.module.parameters()) if cross == "self" else 0
        assert one.norms
        assert not {id(model.get_submodule(n).weight) for n in one.norms} & {
            id(model.get_submodule(n).weight) for n in other.norms
        }
    assert sum(one.numel() for one in model.parameters()) == before - saved


@pytest.mark.parametrize("variant", DEEP)
def test_the_encoder_is_left_as_it_was(variant: str):
    model, whole = tied(variant), tiny.model(variant, SEQ2SEQ, **DEEP[variant])
    inputs = {name: one for name, one in tiny.batch(model).items() if not name.startswith("decoder")}
    with torch.inference_mode():
        same = [one.get_encoder()(**inputs).last_hidden_state for one in (model, whole)]
    assert torch.equal(*same)


def test_means_by_hand():
    """Of an encoder layer, of the decoder layers that use it, and of their attention to the encoder."""
    model = tiny.model("bart", SEQ2SEQ, encoder_layers=1, decoder_layers=2)
    layers = [*model.model.encoder.layers, *model.model.decoder.layers]
    q = [layer.self_attn.q_proj.weight.clone() for layer in layers]
    q += [layer.encoder_attn.q_proj.weight.clone() for layer in layers[1:]]
    up = [layer.fc1.bias.clone() for layer in layers]
    ShareStacks(cross="self", start="average").apply(Editor(model), Given())
    assert torch.allclose(layers[2].encoder_attn.q_proj.weight, sum(q) / 5, atol=1e-6)
    assert torch.allclose(layers[1].fc1.bias, sum(up) / 3, atol=1e-6)


@pytest.mark.parametrize("variant", DEEP)
@pytest.mark.parametrize("cross", ["separate", "self"])
def test_it_is_loaded_as_it_was_saved_and_writes_alike(variant: str, cross: str, tmp_path: Path):
    model = tied(variant, cross=cross, start="average")
    inputs = tiny.batch(model)
    lissom.save(model, tmp_path / "out")
    again = lissom.load(tmp_path / "out")
    assert torch.equal(tiny.outputs(again, inputs), tiny.outputs(model, inputs))
    assert sum(one.numel() for one in again.parameters()) == sum(one.numel() for one in model.parameters())
    prompt = inputs["input_ids"]
    said = [one.generate(prompt, max_new_tokens=4, do_sample=False, use_cache=True) for one in (model, again)]
    assert torch.equal(*said)
    assert torch.equal(said[0], model.generate(prompt, max_new_tokens=4, do_sample=False, use_cache=False))


def test_stacks_of_different_depth():
    model = tiny.model("t5", SEQ2SEQ, num_layers=4, num_decoder_layers=2)
    editor = Editor(model)
    ShareStacks().apply(editor, Given())
    assert editor.record.edits[0].source == (0, 2)


def q_weights(model: torch.nn.Module, stack: str) -> list[int]:
    return [block.attention.q.module.weight.data_ptr() for block in dissect(model).stack(stack).blocks]


def test_what_is_tied_stays_so_when_layers_go():
    """Decoder layers 0 and 1 use encoder layer 1; layer 2 uses layer 2. Settling repeats what loading needs."""
    model = tiny.model("bart", SEQ2SEQ, encoder_layers=3, decoder_layers=3)
    editor = Editor(model)
    editor.apply(Edit(source=(1, 1, 2)))
    gone, moved = copy.deepcopy(model), copy.deepcopy(model)
    for one, keep in ((gone, (0, 2)), (moved, (1,))):
        Editor(one).apply(KeepLayers(stack="encoder", keep=keep))
        for block in [block for stack in dissect(one).stacks for block in stack.blocks]:
            q = block.attention.q.module
            q.weight = torch.nn.Parameter(q.weight.detach().clone())  # as freshly loaded
        Editor(one).settle()
    encoder, decoder = q_weights(gone, "encoder"), q_weights(gone, "decoder")
    assert decoder[0] == decoder[1]
    assert decoder[0] not in encoder
    assert decoder[2] == encoder[1]
    assert q_weights(moved, "decoder")[:2] == q_weights(moved, "encoder") * 2
    Editor(moved).apply(KeepLayers(stack="decoder", keep=(1, 2)))
    assert q_weights(moved, "decoder")[0] == q_weights(moved, "encoder")[0]
    assert q_weights(moved, "decoder")[1] != q_weights(moved, "encoder")[0]


def test_layers_and_stacks_are_shared_together(tmp_path: Path):
    model = tiny.model("t5", SEQ2SEQ, num_decoder_layers=3)
    editor = Editor(model)
    editor.apply(ShareLayers(stack="encoder", source=(0, 0, 0), parts="attention"))
    editor.apply(Edit(source=(0, 1, 2)))
    assert len({*q_weights(model, "encoder"), *q_weights(model, "decoder")}) == 1
    lissom.save(model, tmp_path / "out")
    again = lissom.load(tmp_path / "out")
    assert len({*q_weights(again, "encoder"), *q_weights(again, "decoder")}) == 1


@pytest.mark.parametrize("source", [(0,), (0, 3), (-1, 0)])
def test_sources_that_are_no_encoder_blocks(source: tuple[int, ...]):
    with pytest.raises(LissomError) as caught:
        Editor(tiny.model("t5")).apply(Edit(source=source))
    assert caught.value.code == "LSM-451"
    wanted = f"source {list(source)} does not name, for each of the 2 decoder blocks, one of the 3 encoder blocks"
    assert caught.value.cause == wanted


def test_stacks_of_different_width_are_not_tied():
    model = tiny.model("bart", decoder_ffn_dim=40)
    with pytest.raises(LissomError, match="the layer that shares and its source differ in shape"):
        ShareStacks().apply(Editor(model), Given())


def test_a_model_of_one_stack_is_refused():
    with pytest.raises(LissomError, match=r"LSM-715 BertModel has no encoder and decoder to tie\. .*share_layers"):
        ShareStacks().check(dissect(tiny.model("bert")), Given())
