"""Heads and neurons: what goes is what matters least, on the weights and on texts."""

import copy

import pytest
import torch

from lissom.data import load_data
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods import Given
from lissom.methods.pruning.prune_heads import PruneHeads
from lissom.methods.pruning.prune_neurons import PruneNeurons
from tests import tiny

HEAD = "AutoModelForSequenceClassification"


def texts(*, labels: bool = True) -> Given:
    made = tiny.labelled_texts(40)
    rows = made if labels else {"text": made["text"]}
    return Given(data=load_data({"train": rows}), tokenizer=tiny.tokenizer(), max_length=32)


@pytest.mark.parametrize("by", ["magnitude", "output", "first-order", "fisher"])
def test_a_head_that_answers_zero_goes_first_and_nothing_changes(by: str):
    editor = Editor(tiny.model("bert", HEAD))
    for block in editor.anatomy().stacks[0].blocks:
        with torch.no_grad():  # head 2 is silent: its rows of v and its columns of o are zero
            block.attention.v.weight[16:24] = 0
            block.attention.v.bias[16:24] = 0
            block.attention.o.weight[:, 16:24] = 0
    inputs = tiny.batch(editor.model)
    before = tiny.outputs(editor.model, inputs)
    PruneHeads(ratio=0.25, by=by).apply(editor, texts())
    assert editor.record.edits[0].heads == ((0, 1, 3),) * 3
    assert torch.allclose(tiny.outputs(editor.model, inputs), before, atol=1e-5)


@pytest.mark.parametrize("by", ["magnitude", "output", "first-order", "fisher"])
def test_neurons_that_answer_zero_go_first_and_nothing_changes(by: str):
    editor = Editor(tiny.model("llama", HEAD))
    for block in editor.anatomy().stacks[0].blocks:
        with torch.no_grad():
            for slot in (block.ffn.up, block.ffn.gate):
                slot.weight[:24] = 0
            block.ffn.down.weight[:, :24] = 0
    inputs = tiny.batch(editor.model)
    before = tiny.outputs(editor.model, inputs)
    PruneNeurons(ratio=0.5, by=by).apply(editor, texts())
    assert editor.record.edits[0].neurons == (tuple(range(24, 48)),) * 3
    assert torch.allclose(tiny.outputs(editor.model, inputs), before, atol=1e-5)


def test_grouped_queries_go_with_their_key_value_head():
    editor = Editor(tiny.model("llama", "AutoModelForCausalLM"))
    PruneHeads(ratio=0.5).apply(editor, Given())
    attention = editor.anatomy().stacks[0].blocks[0].attention
    assert (attention.heads, attention.kv_heads) == (2, 1)
    editor.model.generate(torch.tensor([[1, 5, 7]]), max_new_tokens=3, do_sample=False)


def test_layers_that_share_a_position_bias_keep_the_same_heads():
    editor = Editor(tiny.model("t5", "AutoModelForSeq2SeqLM"))
    PruneHeads(ratio=0.5, across="model").apply(editor, Given())
    assert all(len(set(one.heads)) == 1 for one in editor.record.edits)
    assert {(one.stack, one.cross) for one in editor.record.edits} == {
        ("encoder", False),
        ("decoder", False),
        ("decoder", True),
    }


@pytest.mark.parametrize("method", [PruneHeads, PruneNeurons])
def test_ratio_zero_changes_nothing(method: type):
    editor = Editor(tiny.model("bert"))
    method(ratio=0).apply(editor, Given())
    assert not editor.record.edits


@pytest.mark.parametrize("method", [PruneHeads, PruneNeurons])
def test_first_order_without_data_is_refused_before_any_work(method: type):
    editor = Editor(tiny.model("bert"))
    with pytest.raises(LissomError, match=r"LSM-317 needs labelled texts\. Give --data, or choose"):
        method(by="first-order").check(editor.anatomy(), Given())


def test_heads_that_look_everywhere_go_first():
    editor = Editor(tiny.model("bert", HEAD))
    for block in editor.anatomy().stacks[0].blocks:
        with torch.no_grad():
            block.attention.q.weight[8:16] = 0
            block.attention.q.bias[8:16] = 0
    PruneHeads(ratio=0.25, by="attention").apply(editor, texts())
    assert editor.record.edits[0].heads == ((0, 2, 3),) * 3


@pytest.mark.parametrize("method", [PruneHeads, PruneNeurons])
@pytest.mark.parametrize("variant", ["bert", "llama", "t5"])
def test_what_is_left_is_fitted_to_what_was(method: type, variant: str):
    head = "AutoModelForSeq2SeqLM" if variant == "t5" else HEAD
    model, errors = tiny.model(variant, head), {}
    given = texts(labels=variant != "t5")
    inputs = next(iter(given.calibration(model, 32)))
    before = tiny.outputs(model, inputs)
    for reconstruct in (False, True):
        editor = Editor(copy.deepcopy(model))
        method(ratio=0.25, reconstruct=reconstruct).apply(editor, given)
        errors[reconstruct] = float((tiny.outputs(editor.model, inputs) - before).square().mean())
    assert errors[True] < 0.8 * errors[False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "output"}, r"LSM-317 by: output looks at texts\. Give --data, or choose by: magnitude"),
        ({"by": "fisher"}, r"LSM-317 needs labelled texts\. Give --data"),
        ({"reconstruct": True}, r"LSM-317 reconstruct looks at texts\. Give --data"),
    ],
)
@pytest.mark.parametrize("method", [PruneHeads, PruneNeurons])
def test_what_looks_at_texts_is_refused_without_them(method: type, options: dict[str, object], message: str):
    with pytest.raises(LissomError, match=message):
        method(**options).check(Editor(tiny.model("bert")).anatomy(), Given())
