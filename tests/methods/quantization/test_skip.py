"""`skip`: which maps a recipe leaves in floating point."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lissom
from lissom.data import load_data
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods import METHODS, Given
from lissom.methods.low_rank.svd import Svd
from lissom.nn import Int8Linear
from tests import tiny

CLASSIFIER = "AutoModelForSequenceClassification"
METHODS_THAT_SKIP = {"int8": {}, "rtn": {"group": 8}, "hqq": {"group": 8}, "gptq": {"group": 8}, "awq": {"group": 8}}


def given() -> Given:
    return Given(data=load_data({"train": tiny.labelled_texts(8)}), tokenizer=tiny.tokenizer(), max_length=32)


def left(editor: Editor) -> list[str]:
    return [slot.path for slot in editor.anatomy().linears() if not isinstance(slot.module, Int8Linear)]


@pytest.mark.parametrize("name", METHODS_THAT_SKIP)
@pytest.mark.parametrize("variant", ["bert", "gpt2", "t5"])
def test_what_is_skipped_stays_and_is_loaded_so(name: str, variant: str, tmp_path: Path):
    model = tiny.model(variant, CLASSIFIER)
    editor = Editor(model)
    paths = [slot.path for slot in editor.anatomy().linears()]
    step = METHODS[name](**METHODS_THAT_SKIP[name], skip=(paths[1],))
    step.check(editor.anatomy(), given())
    before = editor.anatomy().linears
    weight = next(slot.weight.clone() for slot in before() if slot.path == paths[1])
    step.apply(editor, given())
    assert left(editor) == [paths[1]]
    if name != "awq":  # which moves factors from one map into another
        assert torch.equal(editor.model.get_submodule(paths[1]).weight, _stored(weight, variant))
    inputs = tiny.batch(model)
    answer = tiny.outputs(editor.model, inputs)
    lissom.save(editor.model, tmp_path / "saved")
    assert torch.equal(tiny.outputs(lissom.load(tmp_path / "saved"), inputs), answer)


def _stored(weight: torch.Tensor, variant: str) -> torch.Tensor:
    return weight.t() if variant == "gpt2" else weight


def test_a_star_stands_for_any_part():
    editor = Editor(tiny.model("bert", CLASSIFIER))
    METHODS["int8"](skip=("*.output.dense", "bert.encoder.layer.0.*")).apply(editor, Given())
    kept = set(left(editor))
    assert {path for path in kept if "layer.0." in path} == kept - {
        f"bert.encoder.layer.{layer}.{part}output.dense" for layer in (1, 2) for part in ("", "attention.")
    }
    assert len(kept) == 6 + 4


def test_static_ranges_are_not_looked_for_where_a_map_is_skipped():
    editor = Editor(tiny.model("bert", CLASSIFIER))
    METHODS["int8"](mode="static", skip=("*.query", "*.output.dense")).apply(editor, given())
    assert len(left(editor)) == 3 * 3
    assert torch.isfinite(tiny.outputs(editor.model, tiny.batch(editor.model))).all()


def test_a_misspelt_map_is_refused_before_any_work():
    anatomy = Editor(tiny.model("bert", CLASSIFIER)).anatomy()
    wrong = "bert.encoder.layer.2.output.dens"
    said = f'LSM-318 no linear map of the blocks is called "{wrong}". Did you mean "bert.encoder.layer.2.output.dense"'
    for name, options in METHODS_THAT_SKIP.items():
        with pytest.raises(LissomError) as caught:
            METHODS[name](**options, skip=(wrong,)).check(anatomy, given())
        assert str(caught.value).startswith(said)


def test_a_misspelt_last_name_is_told_as_a_pattern():
    anatomy = Editor(tiny.model("bert", CLASSIFIER)).anatomy()
    for wrong, said in (("quary", 'Did you mean "*.query"?'), ("zz", "Known: *.dense, *.key, *.query, *.value.")):
        with pytest.raises(LissomError) as caught:
            METHODS["int8"](skip=(wrong,)).check(anatomy, given())
        assert str(caught.value) == f'LSM-318 no linear map of the blocks is called "{wrong}". {said}'


def test_one_factor_of_a_low_rank_map_can_stay():
    editor = Editor(tiny.model("bert", CLASSIFIER))
    step = METHODS["int8"](skip=("bert.encoder.layer.0.output.dense.up",))
    step.check(editor.anatomy(), given())  # a step before it makes the factors
    Svd(ratio=0.5).apply(editor, Given())
    step.apply(editor, Given())
    low = editor.model.get_submodule("bert.encoder.layer.0.output.dense")
    assert isinstance(low.down, Int8Linear)
    assert isinstance(low.up, torch.nn.Linear)


def test_seven_bits_end_at_63():
    editor = Editor(tiny.model("bert", CLASSIFIER))
    METHODS["int8"](bits=7).apply(editor, Given())
    maps = [one for one in editor.model.modules() if isinstance(one, Int8Linear)]
    assert {int(one.weight.abs().amax()) for one in maps} == {63}
    assert 2 * 255 * 63 < 2**15 < 2 * 255 * 127
    table = editor.model.get_input_embeddings()
    assert int(table.weight.abs().amax()) == 127  # it multiplies nothing
