"""Blocks trained to give what they gave: what is stored, that the error falls, and what is refused."""

import copy

import pytest
import torch

import lissom
from lissom.data import load_data
from lissom.edits import Editor, Pack, PackBits, ShareLayers
from lissom.errors import LissomError
from lissom.methods import Given
from lissom.methods.quantization.int8 import Int8
from lissom.methods.quantization.reconstruct import Reconstruct
from lissom.nn.fake_quant import LARGEST
from lissom.nn.low_bit import LowBitEmbedding, LowBitLinear
from tests import tiny


def given(rows=32):
    data = load_data({"train": tiny.labelled_texts(rows), "validation": tiny.labelled_texts(4, seed=1)})
    return Given(data=data, tokenizer=tiny.tokenizer(), max_length=32)


def test_without_steps_it_rounds_to_the_nearest_by_hand():
    editor = Editor(tiny.model("bert"))
    block = editor.anatomy().stacks[0].blocks[0]
    with torch.no_grad():
        for slot in (block.ffn.up, block.attention.q):
            slot.weight[0] = 0
            slot.weight[0, :3] = torch.tensor([1.4, -0.7, 0.29])
    Reconstruct(steps=0).apply(editor, Given())
    block = editor.anatomy().stacks[0].blocks[0]
    up, q = block.ffn.up.module, block.attention.q.module
    assert up.codes()[0, :3].tolist() == [7, -4, 1]  # in units of 0.2; -3.5 goes to the even neighbour
    assert q.codes()[0, :3].tolist() == [127, -64, 26]
    assert (type(up), up.bits, up.per_token, q.per_token) == (LowBitLinear, 4, True, True)
    assert [type(one) for one in editor.record.edits] == [Pack, PackBits]


METHODS = [
    Reconstruct(attention="int4", steps=30, learning_rate=1e-3),
    Reconstruct(attention="int4", steps=30, learning_rate=1e-3, scales="learned", blocks=3, activations="tensor"),
    Reconstruct(
        attention="ternary",
        feed_forward="ternary",
        steps=40,
        learning_rate=1e-3,
        target="original",
        teacher_forcing=0.5,
    ),
]


@pytest.mark.parametrize("method", METHODS, ids=["layers", "learned", "ternary"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_the_error_falls_and_codes_are_saved(kind, method, tmp_path):
    model = tiny.model(kind)
    editor = Editor(copy.deepcopy(model))
    did = method.apply(editor, given())
    assert len(did["errors"]) == {1: 3, 3: 1}[method.blocks]
    assert all(one["after"] < 0.9 * one["before"] for one in did["errors"])
    for slot in editor.anatomy().linears():
        largest = LARGEST[method.kind(slot.path, editor.anatomy())]
        assert slot.module.codes().abs().max() <= largest
        assert slot.module.per_token == (method.activations == "token")
    inputs = tiny.batch(model)
    answer = tiny.outputs(editor.model, inputs)
    lissom.save(editor.model, tmp_path)
    assert torch.equal(tiny.outputs(lissom.load(tmp_path), inputs), answer)


def test_the_whole_model_is_nearer_than_by_rounding_alone():
    model = tiny.model("bert")
    inputs = tiny.batch(model)
    whole = tiny.outputs(model, inputs)
    errors = []
    for steps in (60, 0):
        editor = Editor(copy.deepcopy(model))
        Reconstruct(feed_forward="ternary", steps=steps, learning_rate=1e-3).apply(editor, given(64))
        errors.append(float((tiny.outputs(editor.model, inputs) - whole).norm()))
    assert errors[0] < 0.9 * errors[1]


def test_what_was_trained_is_what_is_stored():
    """The last row's error, as training saw it, is that of the packed model."""
    model = tiny.model("bert", num_hidden_layers=1)
    batch = next(iter(given().calibration(model, 32)))
    with torch.no_grad():
        wanted = model.eval()(**batch).last_hidden_state
    editor = Editor(copy.deepcopy(model))
    did = Reconstruct(steps=5, samples=32, embeddings="none").apply(editor, given())
    with torch.no_grad():
        answer = editor.model(**batch).last_hidden_state
    real = batch["attention_mask"].bool()
    assert torch.nn.functional.mse_loss(answer[real], wanted[real]).item() == pytest.approx(
        did["errors"][0]["after"], rel=1e-3
    )


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_shared_blocks_stay_shared(blocks, tmp_path):
    editor = Editor(tiny.model("bert"))
    editor.apply(ShareLayers(source=(0, 1, 0)))
    did = Reconstruct(steps=20, learning_rate=1e-3, blocks=blocks).apply(editor, given())
    assert len(did["errors"]) == {1: 2, 2: 1, 3: 1}[blocks]
    first, _, last = editor.anatomy().stacks[0].blocks
    assert last.ffn.up.module.weight is first.ffn.up.module.weight
    inputs = tiny.batch(editor.model)
    answer = tiny.outputs(editor.model, inputs)
    lissom.save(editor.model, tmp_path)
    assert torch.equal(tiny.outputs(lissom.load(tmp_path), inputs), answer)


def test_training_that_makes_it_worse_is_put_back():
    model, steps = tiny.model("bert"), []
    for count in (0, 3):
        editor = Editor(copy.deepcopy(model))
        did = Reconstruct(steps=count, learning_rate=1.0).apply(editor, given())
        steps.append(editor.model.state_dict())
    assert all(one["after"] == one["before"] for one in did["errors"])
    assert all(torch.equal(value, steps[1][name]) for name, value in steps[0].items())


def test_other_dtypes_and_frozen_weights_stay_as_they_are():
    model = tiny.model("bert").bfloat16().requires_grad_(False)
    editor = Editor(model)
    Reconstruct(steps=2, embeddings="int4").apply(editor, given())
    assert isinstance(model.embeddings.word_embeddings, LowBitEmbedding)
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}
    assert not any(one.requires_grad for one in model.parameters())
    assert model(**tiny.batch(model)).last_hidden_state.dtype == torch.bfloat16


def test_refusals():
    editor = Editor(tiny.model("bert"))
    with pytest.raises(LissomError, match=r"LSM-315 reconstruct.teacher_forcing: .*Write target: original."):
        Reconstruct(teacher_forcing=0.5).check(editor.anatomy(), given())
    with pytest.raises(LissomError, match=r"LSM-317 needs texts to look at. Give --data"):
        Reconstruct().apply(editor, Given())
    editor = Editor(tiny.model("bert"))
    with torch.no_grad():
        editor.anatomy().stacks[0].blocks[0].ffn.up.weight[0, 0] = torch.nan
    with pytest.raises(LissomError, match=r"LSM-901 encoder.layer.0.*NaN or infinity"):
        Reconstruct(steps=0).apply(editor, Given())
    editor = Editor(tiny.model("bert"))
    Int8().apply(editor, Given())
    with pytest.raises(LissomError, match="LSM-713"):
        Reconstruct().check(editor.anatomy(), given())
