"""int8: {mode: static}."""

import json

import pytest
import torch

import lissom
from lissom.data import load_data
from lissom.edits import Editor, edit_from_json
from lissom.errors import LissomError
from lissom.methods import Given
from lissom.methods.quantization.int8 import Int8
from lissom.nn import Int8Linear
from lissom.nn.static import StaticInt8Linear
from tests import tiny

HEAD = "AutoModelForSequenceClassification"


def given(rows=32):
    data = load_data({"train": tiny.labelled_texts(rows), "validation": tiny.labelled_texts(4, seed=1)})
    return Given(data=data, tokenizer=tiny.tokenizer(), max_length=32)


def static(editor, **options):
    Int8(mode="static", **options).apply(editor, given())


@pytest.mark.parametrize("variant", ["bert", "albert", "gpt2", "llama", "bart", "t5"])
def test_it_stays_near_and_is_loaded_equal(variant, tmp_path):
    heads = (HEAD, "AutoModelForSeq2SeqLM")
    editor = Editor(tiny.model(variant, next(one for one in heads if one in tiny.heads(variant))))
    inputs = tiny.batch(editor.model)
    whole = tiny.outputs(editor.model, inputs)
    static(editor)
    assert all(isinstance(one.module, StaticInt8Linear) for one in editor.anatomy().linears())
    answer = tiny.outputs(editor.model, inputs)
    assert 0 < (answer - whole).norm() < 0.2 * whole.norm()
    lissom.save(editor.model, tmp_path / "out")
    assert torch.equal(tiny.outputs(lissom.load(tmp_path / "out"), inputs), answer)


def test_the_scale_is_that_of_what_the_texts_show():
    editor = Editor(tiny.model("bert", HEAD))
    seen = []
    up = editor.anatomy().stacks[0].blocks[0].ffn.up
    hook = up.watch(lambda x, _: seen.append(x.detach()))
    static(editor, calibrator="min_max", samples=32)
    hook.remove()
    # padding is the only thing that may lie outside of it
    low, high = min(one.min() for one in seen), max(one.max() for one in seen)
    packed = editor.anatomy().stacks[0].blocks[0].ffn.up.module
    found = -packed.input_zero.float() * packed.input_scale, (255 - packed.input_zero.float()) * packed.input_scale
    assert low - packed.input_scale <= found[0] <= 0.5 * low
    assert 0.5 * high <= found[1] <= high + packed.input_scale


def test_maps_that_read_one_input_share_its_scale():
    editor = Editor(tiny.model("bert", HEAD))
    static(editor)
    for block in editor.anatomy().stacks[0].blocks:
        q, k, v = (one.module for one in (block.attention.q, block.attention.k, block.attention.v))
        assert q.input_scale == k.input_scale == v.input_scale
        assert q.input_zero == k.input_zero == v.input_zero
        assert q.input_scale != block.ffn.down.module.input_scale


def test_the_weights_are_those_of_the_dynamic_form():
    one, other = (Editor(tiny.model("bert", HEAD)) for _ in range(2))
    static(one)
    Int8().apply(other, Given())
    for a, b in zip(one.anatomy().linears(), other.anatomy().linears(), strict=True):
        assert type(b.module) is Int8Linear
        assert torch.equal(a.module.weight, b.module.weight)
        assert torch.equal(a.module.weight_scale, b.module.weight_scale)


def test_a_record_from_before_is_dynamic():
    editor = Editor(tiny.model("bert"))
    static(editor)
    stored = json.loads(json.dumps(editor.record.edits[0].to_json()))
    assert edit_from_json(stored).static
    del stored["static"]
    assert not edit_from_json(stored).static


def test_what_cannot_be_calibrated_is_refused():
    editor = Editor(tiny.model("bert", HEAD))
    step = Int8(mode="static")
    with pytest.raises(LissomError, match=r"LSM-317 int8: \{mode: static\} finds the ranges .*Give --data"):
        step.check(editor.anatomy(), Given())
    with pytest.raises(LissomError, match=r"LSM-829 7 calibration texts are too few .*8 is the least.*mode: dynamic"):
        step.apply(editor, given(rows=7))
    Int8().check(editor.anatomy(), Given())
    assert not editor.record.edits


def test_inputs_that_are_not_finite_are_refused():
    editor = Editor(tiny.model("bert", HEAD))
    with torch.no_grad():
        editor.model.bert.embeddings.LayerNorm.weight[0] = torch.nan
    with pytest.raises(LissomError, match=r"LSM-901 .*layer\.0\.attention\.self\.query: an input holds NaN"):
        static(editor)
    assert not any(one._forward_hooks for one in editor.model.modules())


def test_an_input_that_never_changes_is_refused():
    editor = Editor(tiny.model("bert", HEAD))
    norm = editor.model.bert.encoder.layer[0].attention.output.LayerNorm
    with torch.no_grad():
        norm.weight.zero_()
        norm.bias.fill_(0.5)
    with pytest.raises(LissomError, match=r"LSM-829 .*layer\.0\.intermediate\.dense: its input is 0\.5 on every"):
        static(editor)


def test_the_same_seed_gives_the_same_scales():
    one, other = (Editor(tiny.model("bert", HEAD)) for _ in range(2))
    for editor in (one, other):
        static(editor, samples=16)
    state = other.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in one.model.state_dict().items())


def test_a_plan_leaves_the_same_structure():
    one, other = (Editor(tiny.model("bert", HEAD)) for _ in range(2))
    static(one)
    Int8(mode="static").preview(other, Given())
    assert one.record.edits == other.record.edits
