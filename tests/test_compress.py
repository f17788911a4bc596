import json
from pathlib import Path

import pytest
import torch

import lissom
from lissom.check import check
from lissom.errors import LissomError
from lissom.plan import plan
from lissom.recipe import Recipe
from lissom.store import save
from tests import tiny

HEAD = "AutoModelForSequenceClassification"


def recipe(steps: str) -> Recipe:
    return Recipe.parse(f"{{lissom: 1, steps: [{steps}]}}", "here")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory):
    """int8 on a local folder with data."""
    teacher = save(tiny.model("bert", HEAD), tmp_path_factory.mktemp("made") / "teacher", tokenizer=tiny.tokenizer())
    data = {"train": tiny.labelled_texts(60), "test": tiny.labelled_texts(30, seed=1)}
    return lissom.compress(teacher, recipe("int8"), data=data)


def test_a_local_path_is_not_written_down(result, tmp_path: Path) -> None:
    result.save(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "lissom.json").read_text())["base"] is None
    assert "base_model" not in (tmp_path / "out" / "README.md").read_text()


def test_the_gate_of_the_examples_can_be_met(result, tmp_path: Path) -> None:
    result.save(tmp_path / "out")
    assert all(one.met for one in check(tmp_path / "out", "keep>=0.1,size_mb<=30"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_worked_on_and_planned_in_float32(dtype: torch.dtype) -> None:
    model, steps = tiny.model("bert", HEAD).to(dtype), recipe("keep_layers: {keep: 2}")
    made = lissom.compress(model, steps).model
    assert {one.dtype for one in made.parameters()} == {torch.float32}
    found = plan(model, steps, tokenizer=tiny.tokenizer())
    assert found.after.size_mb == sum(one.numel() for one in made.parameters()) * 4 / 1e6
    assert any("float32" in note for note in found.notes)
    assert model.dtype == dtype


@pytest.mark.parametrize("steps", ["tune", "prune_heads: {by: first-order}", "prune_neurons: {by: first-order}"])
def test_what_needs_gradients_refuses_packed_layers(result, steps: str) -> None:
    data = {"train": tiny.labelled_texts(60), "test": tiny.labelled_texts(30, seed=1)}
    with pytest.raises(LissomError, match=r"LSM-713 .*int8"):
        lissom.compress(result.model, recipe(steps), data=data, tokenizer=tiny.tokenizer())


@pytest.mark.parametrize(("family", "head"), [("t5", "AutoModelForSeq2SeqLM"), ("bert", "AutoModelForMaskedLM")])
def test_running_text_is_refused_before_any_work_by_models_that_do_not_go_on_with_it(family: str, head: str) -> None:
    texts = {"train": {"text": tiny.texts(30)}, "test": {"text": tiny.texts(20, seed=1)}}
    told: list[str] = []
    with pytest.raises(LissomError, match=r"LSM-826 .*language modelling"):
        lissom.compress(
            tiny.model(family, head),
            recipe("{keep_layers: {keep: 1, by: importance, stack: encoder}}"),
            data=texts,
            tokenizer=tiny.tokenizer(),
            report=lambda what, done: told.append(what),
        )
    assert not told
