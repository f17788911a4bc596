"""Steps that pack, on maps that are packed already."""

from __future__ import annotations

import pytest

from lissom.data import load_data
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods import METHODS, Given
from lissom.nn import Int8Linear
from lissom.plan import plan
from lissom.recipe import Recipe
from tests import tiny

PACKING = ("gptq", "rtn", "hqq", "awq", "auto_round", "mixed", "smooth", "codebook", "split_int8", "peg")
MAPS = 3 * 6
SAID = (
    rf"LSM-713 .*encoder\.layer\.0\.attention\.self\.query: nothing is left to do: all {MAPS} linear maps are packed "
    r"already, to 8 bits\. Begin with the model as it was before it was packed\."
)


def given() -> Given:
    return Given(data=load_data({"train": tiny.labelled_texts(8)}), tokenizer=tiny.tokenizer(), max_length=32)


def packed(**options: object) -> Editor:
    editor = Editor(tiny.model("bert", "AutoModelForSequenceClassification"))
    METHODS["int8"](**options).apply(editor, Given())
    return editor


def recipe(*steps: str) -> Recipe:
    return Recipe.parse("lissom: 1\nsteps:\n" + "".join(f"  - {step}\n" for step in steps), "r")


@pytest.mark.parametrize("name", PACKING)
def test_where_no_map_is_left_they_say_so(name: str):
    with pytest.raises(LissomError, match=SAID):
        METHODS[name]().check(packed().anatomy(), given())


@pytest.mark.parametrize("name", PACKING)
def test_where_one_map_is_left_they_go_on(name: str):
    METHODS[name]().check(packed(skip=("*.layer.1.output.dense",)).anatomy(), given())


def test_a_map_that_is_skipped_is_not_left():
    anatomy = packed(skip=("*.layer.1.attention.output.dense",)).anatomy()
    with pytest.raises(LissomError, match=f"LSM-713 .*all {MAPS - 1} linear maps"):
        METHODS["rtn"](skip=("*.layer.1.attention.output.dense",)).check(anatomy, Given())


@pytest.mark.parametrize("name", ["codebook", "peg"])
def test_a_token_table_is_work_enough(name: str):
    anatomy = packed(embeddings=False).anatomy()
    METHODS[name]().check(anatomy, given())
    with pytest.raises(LissomError, match="LSM-713"):
        METHODS[name](embeddings=False).check(anatomy, given())


@pytest.mark.parametrize("second", ["gptq", "rtn", "mixed", "split_int8", "reconstruct"])
def test_two_steps_of_one_recipe_that_pack_all_are_refused_before_any_work(second: str):
    said = rf"LSM-316 recipe, step 3: {second} has nothing left to pack: int8 packs every linear map\. Leave one"
    with pytest.raises(LissomError, match=said):
        recipe("prune_neurons", "int8", second).check_order()
    recipe("prune_neurons", "int8: {skip: ['*.query']}", second).check_order()


def test_four_bits_and_an_int8_table_go_together():
    editor = Editor(tiny.model("bert"))
    recipe("rtn: {group: 8}", "int8").run(editor, Given())
    assert [type(edit).__name__ for edit in editor.record.edits] == ["PackGroups", "Pack"]


def test_what_is_left_by_the_run_is_checked_when_it_is_the_turn_of_a_step():
    steps = recipe("int8: {skip: ['*.query']}", "rtn: {group: 8, skip: ['*.query']}")
    with pytest.raises(LissomError, match=r"LSM-713 recipe, step 2 \(rtn\): .*nothing is left to do"):
        steps.run(Editor(tiny.model("bert")), Given())
    with pytest.raises(LissomError, match="LSM-713"):
        plan(tiny.model("bert"), steps)
    editor = Editor(tiny.model("bert"))
    recipe("int8: {skip: ['*.query']}", "rtn: {group: 8}").run(editor, Given())
    assert all(isinstance(slot.module, Int8Linear) for slot in editor.anatomy().linears())


def test_a_plan_without_data_refuses_what_compress_would():
    with pytest.raises(LissomError, match="LSM-713"):
        plan(packed().model, recipe("gptq"))
