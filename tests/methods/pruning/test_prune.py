"""Heads and neurons: what goes is what matters least, on the weights and on texts."""

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


def texts() -> Given:
    return Given(data=load_data({"train": tiny.labelled_texts(40)}), tokenizer=tiny.tokenizer())


@pytest.mark.parametrize("by", ["magnitude", "first-order"])
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


@pytest.mark.parametrize("by", ["magnitude", "first-order"])
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
    with pytest.raises(LissomError, match=r"LSM-317 by: first-order needs labelled texts\. Give --data, or choose"):
        method(by="first-order").check(editor.anatomy(), Given())
