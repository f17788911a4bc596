"""Whole attention and feed-forward layers: those that add least go, and the hidden states pass them by."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import lissom
from lissom.data import load_data
from lissom.edits import AddExits, Editor, SetExits, ShareLayers
from lissom.errors import LissomError
from lissom.methods import Given
from lissom.methods.pruning.prune_branches import PruneBranches, branches
from lissom.nn.exit_rules import EVERYBODY
from lissom.recipe import Recipe
from lissom.stats.importance import branch_norms
from tests import tiny

HEAD = "AutoModelForSequenceClassification"


def texts() -> Given:
    return Given(data=load_data({"train": tiny.labelled_texts(12)}), tokenizer=tiny.tokenizer())


def silence(model: torch.nn.Module, path: str) -> None:
    with torch.no_grad():
        for one in model.get_submodule(path).parameters():
            one.zero_()


@pytest.mark.parametrize("variant", ["bert", "gpt2", "llama", "modernbert", "bart", "t5"])
def test_what_adds_nothing_goes_and_no_answer_changes(variant: str):
    """One layer of each kind is silent: a cut of as many changes nothing and leaves one empty unit in them."""
    editor = Editor(tiny.model(variant, HEAD))
    found = list(branches(editor.anatomy()))
    silent = [next(one for one in found if one.kind == kind) for kind in dict.fromkeys(one.kind for one in found)]
    for one in silent:
        silence(editor.model, one.writer.path)
    before, inputs = tiny.outputs(editor.model, tiny.batch(editor.model)), tiny.batch(editor.model)
    said = PruneBranches(ratio=len(silent) / len(found)).apply(editor, texts())
    assert said == {"removed": sorted(one.writer.path for one in silent)}
    torch.testing.assert_close(tiny.outputs(editor.model, inputs), before)
    left = list(branches(editor.anatomy()))
    assert [one.units for one in left if one.empty] == [1] * len(silent)
    assert all(one.units == was.units for one, was in zip(left, found, strict=True) if not one.empty)


def test_by_hand():
    """(3, 4) goes into the one block; its attention adds (0, 1), 1 in 5, its feed-forward layer (8, 6), 10 in 5."""
    model = tiny.model("bert", hidden_size=2, num_hidden_layers=1, num_attention_heads=1, intermediate_size=3)
    layer = model.encoder.layer[0]
    with torch.no_grad():
        for one in model.parameters():
            one.zero_()
        model.embeddings.LayerNorm.bias.copy_(torch.tensor([3.0, 4.0]))
        layer.attention.output.dense.weight.fill_(1)  # of values that are zero
        layer.attention.output.dense.bias.copy_(torch.tensor([0.0, 1.0]))
        layer.output.dense.bias.copy_(torch.tensor([8.0, 6.0]))
    found = branch_norms(model, Editor(model).anatomy().stacks, [tiny.batch(model)])
    assert list(found.values()) == pytest.approx([0.2, 2.0])
    editor = Editor(model)
    said = PruneBranches(ratio=0.5).apply(editor, texts())
    assert said == {"removed": ["encoder.layer.0.attention.output.dense"]}
    assert layer.attention.output.dense.bias.tolist() == [0, 0]


def test_padding_is_not_looked_at():
    model = tiny.model("bert")
    inputs = tiny.batch(model)
    stacks = Editor(model).anatomy().stacks
    found = branch_norms(model, stacks, [inputs])
    inputs["input_ids"][inputs["attention_mask"] == 0] = 7
    assert branch_norms(model, stacks, [inputs]) == found


def test_training_leaves_them_empty_and_a_second_cut_counts_them(tmp_path: Path):
    model = tiny.model("bert", HEAD)
    steps = "  - prune_branches: {ratio: 0.34}\n  - tune: {epochs: 2, learn: {task: {}}}\n"
    steps += "  - prune_branches: {ratio: 0.34}\n"
    data = {"train": tiny.labelled_texts(16), "validation": tiny.labelled_texts(8, seed=1)}
    recipe = Recipe.parse(f"lissom: 1\nsteps:\n{steps}  - int8: {{mode: dynamic}}\n", "x")
    result = lissom.compress(copy.deepcopy(model), recipe, data=data, tokenizer=tiny.tokenizer())
    cuts = [step["did"]["removed"] for step in result.steps if step["name"] == "prune_branches"]
    assert [len(one) for one in cuts] == [2, 0]
    inputs = tiny.batch(model)
    result.save(tmp_path / "out")
    assert torch.equal(tiny.outputs(lissom.load(tmp_path / "out"), inputs), tiny.outputs(result.model, inputs))
    result.export("onnx", tmp_path / "exported")  # refuses to be written unless it answers as torch does


def test_one_stays_and_ratio_0_changes_nothing():
    model = tiny.model("gpt2", HEAD)
    editor = Editor(model)
    PruneBranches(ratio=0).apply(editor, texts())
    assert not editor.record.edits
    PruneBranches(ratio=0.99).apply(editor, texts())
    assert sum(not one.empty for one in branches(editor.anatomy())) == 1


def test_what_it_cannot_do_it_says():
    with pytest.raises(LissomError, match=r"LSM-317.*needs texts"):
        PruneBranches().check(Editor(tiny.model("bert")).anatomy(), Given())
    editor = Editor(tiny.model("bert"))
    editor.apply(ShareLayers(source=(0, 0, 2)))
    with pytest.raises(LissomError, match=r"LSM-715.*layers share this map"):
        PruneBranches().check(editor.anatomy(), texts())


def test_texts_that_leave_early_do_not_hide_what_later_layers_add():
    editor = Editor(tiny.model("bert", HEAD))
    anatomy, given = editor.anatomy(), texts()
    plain = branch_norms(editor.model, anatomy.stacks, given.calibration(editor.model, 12))
    editor.apply(AddExits(layers=(1,)))
    editor.apply(SetExits(rule="confidence", points={"all": (EVERYBODY,)}, use="all"))
    assert branch_norms(editor.model, editor.anatomy().stacks, given.calibration(editor.model, 12)) == plain


def test_a_block_that_repeats_counts_as_often_as_it_is_executed():
    """Its attention is half of all that is executed: too much for a quarter, and what is asked for is not exceeded."""
    editor = Editor(tiny.model("albert", HEAD))
    assert [one.uses for one in branches(editor.anatomy())] == [3, 3]
    assert PruneBranches(ratio=0.25).apply(editor, texts()) == {"removed": []}
    assert len(PruneBranches(ratio=0.5).apply(editor, texts())["removed"]) == 1
