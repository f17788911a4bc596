"""Weights set to zero: scores by hand, shares and patterns exactly, what is refused, and block after block."""

import copy

import pytest
import torch

import lissom
from lissom.anatomy import stored_maps
from lissom.data import load_data
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.measure.size import sparsity
from lissom.methods import Given
from lissom.methods.pruning.prune_weights import PruneWeights, scores
from lissom.methods.pruning.zeros import lowest_of_each
from lissom.methods.quantization.int8 import Int8
from lissom.recipe import Recipe
from tests import tiny


def given(rows=16):
    data = load_data({"train": tiny.labelled_texts(rows), "validation": tiny.labelled_texts(4, seed=1)})
    return Given(data=data, tokenizer=tiny.tokenizer(), max_length=32)


def made(kind):
    return tiny.model(kind, "AutoModelForSeq2SeqLM" if kind in ("t5", "bart") else "AutoModel")


def weights(model):
    slots = [part for slot in lissom.dissect(model).linears() for part in stored_maps(slot)]
    return {slot.path: slot.weight.detach().clone() for slot in slots}


ORDERS = ("magnitude", "wanda", "ria", "random")
WEIGHT = torch.tensor([[1.0, -2.0, 4.0], [3.0, 1.0, -1.0]])


def test_scores_by_hand():
    norm = torch.tensor([4.0, 1.0, 0.25])
    assert scores(WEIGHT, norm, "wanda").tolist() == [[4, 2, 1], [12, 1, 0.25]]
    # rows sum to 7 and 5, columns to 4, 3 and 5; roots of the norms are 2, 1 and 1/2
    wanted = [[2 * (1 / 7 + 1 / 4), 2 / 7 + 2 / 3, (4 / 7 + 4 / 5) / 2], [2 * (3 / 5 + 3 / 4), 1 / 5 + 1 / 3, 0.2]]
    torch.testing.assert_close(scores(WEIGHT, norm, "ria"), torch.tensor(wanted))


def test_what_goes_by_hand():
    # a third of each row: one weight; a third of the matrix: the two smallest, both in the second row
    by_row = PruneWeights(ratio=1 / 3, across="row").gone(WEIGHT.abs())
    assert by_row.tolist() == [[True, False, False], [False, True, False]]
    whole = PruneWeights(ratio=1 / 3).gone(WEIGHT.abs())
    assert whole.tolist() == [[True, False, False], [False, True, False]]
    by_wanda = PruneWeights(ratio=1 / 3, by="wanda").gone(scores(WEIGHT, torch.tensor([4.0, 1.0, 0.25]), "wanda"))
    assert by_wanda.tolist() == [[False, False, True], [False, False, True]]
    pattern = PruneWeights(pattern="1:2").gone(torch.tensor([[1.0, 2.0, 4.0, 3.0, 5.0]]))
    assert pattern.tolist() == [[True, False, False, True, False]]  # the fifth has nobody beside it


def test_of_equal_scores_the_first_ones_go():
    assert lowest_of_each(torch.ones(1, 6), 2, 4).tolist() == [[True, True, False, False, True, False]]


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5", "bart", "albert"])
@pytest.mark.parametrize("options", [*({"by": one} for one in ORDERS), {"across": "model"}], ids=str)
def test_exactly_so_many_go_and_the_others_keep_their_values(kind, options):
    editor = Editor(made(kind))
    before = weights(editor.model)
    step = PruneWeights(ratio=0.25, **options)
    step.check(editor.anatomy(), given())
    step.apply(editor, given())
    assert sparsity(editor.model).value == pytest.approx(0.25, abs=1e-3)
    assert all(bool(((one == 0) | (one == before[path])).all()) for path, one in weights(editor.model).items())
    if options == {"by": "wanda"}:
        assert {int(n) for one in weights(editor.model).values() for n in (one == 0).sum(1) * 4 / one.shape[1]} == {1}


@pytest.mark.parametrize("by", ["magnitude", "wanda"])
@pytest.mark.parametrize(("pattern", "of"), [("2:4", 4), ("1:8", 8), ("4:4", 4)])
def test_patterns_hold_everywhere(by, pattern, of):
    editor = Editor(tiny.model("gpt2"))
    PruneWeights(by=by, pattern=pattern).apply(editor, given())
    for one in weights(editor.model).values():
        assert bool(((one.reshape(len(one), -1, of) != 0).sum(-1) == int(pattern[0])).all())


@pytest.mark.parametrize("by", ORDERS)
def test_none_is_none_and_twice_is_once(by):
    model = tiny.model("llama")
    inputs, whole = tiny.batch(model), tiny.outputs(model, tiny.batch(model))
    editor = Editor(model)
    PruneWeights(ratio=0, by=by).apply(editor, given())
    assert torch.equal(tiny.outputs(model, inputs), whole)
    if by != "random":
        PruneWeights(by=by).apply(editor, given())
        once = weights(model)
        PruneWeights(by=by).apply(editor, given())
        assert all(torch.equal(one, once[path]) for path, one in weights(model).items())


def test_later_blocks_see_what_pruned_ones_give():
    """The second block of a model whose first one is pruned is pruned as in the whole walk."""
    whole = Editor(tiny.model("bert"))
    half = Editor(copy.deepcopy(whole.model))
    PruneWeights(by="wanda").apply(whole, given())
    first, *_ = lissom.dissect(half.model).stacks[0].blocks
    for slot in first.slots():
        with torch.no_grad():
            slot.weight.copy_(whole.model.get_submodule(slot.path).weight)
    PruneWeights(by="wanda").apply(half, given())
    assert all(torch.equal(one, weights(half.model)[path]) for path, one in weights(whole.model).items())


def test_inputs_decide():
    """An input that is always zero is the first to go, however large its weights are."""
    editor = Editor(tiny.model("bert"))
    block = editor.anatomy().stacks[0].blocks[0]
    with torch.no_grad():
        block.attention.v.weight[:8] = 0
        editor.model.get_submodule(block.attention.v.path).bias[:8] = 0
        block.attention.o.weight[:, :8] = 100
    PruneWeights(by="wanda", ratio=0.25).apply(editor, given())
    gone = editor.anatomy().stacks[0].blocks[0].attention.o.weight == 0
    assert bool(gone[:, :8].all())
    assert not bool(gone[:, 8:].any())


def test_refusals():
    anatomy = Editor(tiny.model("bert")).anatomy()
    with pytest.raises(LissomError, match=r"LSM-317 by: wanda looks at texts"):
        PruneWeights(by="wanda").check(anatomy, Given())
    with pytest.raises(LissomError, match=r"LSM-318 across: .*ria goes block by block"):
        PruneWeights(by="ria", across="model").check(anatomy, given())
    with pytest.raises(LissomError, match=r"LSM-318 across: .*a pattern holds in each row"):
        PruneWeights(pattern="2:4", across="model").check(anatomy, given())
    with pytest.raises(LissomError, match=r"LSM-318 pattern: pattern 4:2 keeps more weights than there are"):
        PruneWeights(pattern="4:2").check(anatomy, given())
    packed = Editor(tiny.model("bert"))
    Int8().apply(packed, given())
    with pytest.raises(LissomError, match=r"LSM-713 .*a packed layer has none"):
        PruneWeights().check(packed.anatomy(), given())


def test_int8_keeps_the_zeros():
    editor = Editor(tiny.model("llama"))
    PruneWeights(by="wanda").apply(editor, given())
    Int8().apply(editor, given())
    assert sparsity(editor.model).value >= 0.5


def test_a_pattern_that_is_none_is_told_in_words():
    said = r'LSM-315 .*pattern "2-4" is not written as it should be: "2:4" keeps two of every four'
    with pytest.raises(LissomError, match=said) as told:
        Recipe.parse('lissom: 1\nsteps:\n  - prune_weights: {pattern: "2-4"}\n', "r")
    assert "\\d" not in str(told.value)
