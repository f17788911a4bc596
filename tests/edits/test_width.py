"""Fewer heads and neurons: twice is once, the rest of the model does not move, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissom.anatomy import dissect
from lissom.edits import Editor, KeepHeads, KeepNeurons, Record
from lissom.errors import LissomError
from tests import tiny


def refused(model: torch.nn.Module, edit: KeepHeads | KeepNeurons) -> LissomError:
    with pytest.raises(LissomError) as caught:
        Editor(model).apply(edit)
    assert caught.value.code == "LSM-451"
    assert not Record.of(model).edits
    return caught.value


WRONG = [
    ("bert", KeepHeads(heads=((0,), (0,))), "2 choices of heads for 3 blocks"),
    ("bert", KeepNeurons(neurons=((0,),)), "1 choices of neurons for 3 blocks"),
    ("bert", KeepHeads(heads=((0,), (4,), (0,))), "[4] is not an ascending choice of at least one of 0 to 3"),
    ("bert", KeepHeads(heads=((0,), (), (0,))), "[] is not an ascending choice"),
    ("llama", KeepHeads(heads=((0,), (2,), (0,))), "[2] is not an ascending choice of at least one of 0 to 1"),
    ("bert", KeepNeurons(neurons=((0,), (0, 0), (0,))), "[0, 0] is not an ascending choice of at least one of 0 to 47"),
    ("bert", KeepHeads(heads=((0,),) * 3, cross=True), "there is no attention to an encoder here"),
    ("t5", KeepHeads(stack="encoder", heads=((0,),) * 3, cross=True), "there is no attention to an encoder here"),
    ("gpt2", KeepHeads(heads=((0,),) * 3, cross=True), "there is no attention to an encoder here"),
    ("t5", KeepHeads(stack="encoder", heads=((0,), (1,), (0,))), "all blocks share one position bias"),
    ("mpnet", KeepHeads(heads=((0,), (0, 1), (0,))), "all blocks share one position bias and must keep the same heads"),
]


@pytest.mark.parametrize(("variant", "edit", "cause"), WRONG, ids=str)
def test_edits_that_do_not_fit(variant: str, edit: KeepHeads | KeepNeurons, cause: str) -> None:
    assert cause in refused(tiny.model(variant), edit).cause


subsets = st.sets(st.integers(0, 3), min_size=1).map(lambda one: tuple(sorted(one)))


@settings(max_examples=25, deadline=None)
@given(variant=st.sampled_from(["bert", "gpt2", "gpt_neox", "modernbert"]), data=st.data())
def test_two_cuts_are_one(variant: str, data: st.DataObject) -> None:
    """Cutting what is left of a first cut is cutting once; in every tensor."""
    first = tuple(data.draw(subsets) for _ in range(3))
    second = tuple(tuple(sorted(data.draw(st.sets(st.integers(0, len(one) - 1), min_size=1)))) for one in first)
    composed = tuple(tuple(a[i] for i in b) for a, b in zip(first, second, strict=True))
    twice, once = tiny.model(variant), tiny.model(variant)
    for make in (lambda keep: KeepHeads(heads=keep), lambda keep: KeepNeurons(neurons=keep)):
        Editor(twice).apply(make(first))
        Editor(twice).apply(make(second))
        Editor(once).apply(make(composed))
    left, right = twice.state_dict(), once.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("variant", tiny.CONFIGS)
def test_keeping_everything_changes_nothing(variant: str) -> None:
    model = tiny.model(variant)
    inputs = tiny.batch(model)
    whole = tiny.outputs(model, inputs)
    editor = Editor(model)
    for stack in editor.anatomy().stacks:
        heads = tuple(tuple(range(block.attention.kv_heads)) for block in stack.blocks)
        neurons = tuple(tuple(range(block.ffn.width)) for block in stack.blocks)
        editor.apply(KeepHeads(stack=stack.name, heads=heads))
        editor.apply(KeepNeurons(stack=stack.name, neurons=neurons))
    assert torch.equal(tiny.outputs(model, inputs), whole)
    assert not editor.record.restore


def test_a_shape_edit_keeps_the_counts() -> None:
    assert KeepHeads(heads=((1, 3), (2,))).shape() == KeepHeads(heads=((0, 1), (0,)))
    assert KeepNeurons(stack="decoder", neurons=((5, 7, 9),)).shape() == KeepNeurons(
        stack="decoder", neurons=((0, 1, 2),)
    )


def test_counts_that_modules_keep_follow() -> None:
    model = tiny.model("llama")
    Editor(model).apply(KeepNeurons(neurons=((0, 1), (2,), tuple(range(48)))))
    assert [layer.mlp.intermediate_size for layer in model.layers] == [2, 1, 48]


def test_cut_weights_stay_trainable_or_frozen() -> None:
    model = tiny.model("bert")
    frozen = dissect(model).stacks[0].blocks[0].attention.q.module
    frozen.weight.requires_grad_(False)
    Editor(model).apply(KeepHeads(heads=((0,),) * 3))
    attention = dissect(model).stacks[0].blocks[0].attention
    assert not attention.q.weight.requires_grad
    assert attention.k.weight.requires_grad
    assert attention.k.weight.is_contiguous()
    model(**tiny.batch(model)).last_hidden_state.sum().backward()
    assert attention.k.module.weight.grad is not None
