"""A plan foretells exactly what running the recipe leaves, without training and without changing the model."""

from __future__ import annotations

import copy

import pytest
import torch

from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.measure.flops import model_flops
from lissom.measure.size import in_memory, parameters
from lissom.methods import METHODS, Given
from lissom.plan import describe, plan
from lissom.recipe import Recipe
from tests import tiny

RECIPES = {
    "all": "keep_layers: {keep: 2}|prune_heads: {ratio: 0.5}|prune_neurons|svd|share_layers: {unique: 1}|int8",
    "across": "prune_heads: {ratio: 0.5, across: model}|prune_neurons: {across: model}|int8: {embeddings: false}",
    "low rank": "svd: {ratio: 0.3}",
    "zeros": "prune_weights: {ratio: 0.7}",
}


def recipe(name):
    steps = "".join(f"  - {step}\n" for step in RECIPES[name].split("|"))
    return Recipe.parse(f"lissom: 1\nsteps:\n{steps}", name, name="r")


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("bert", "AutoModelForSequenceClassification"),
        ("gpt2", "AutoModelForCausalLM"),
        ("llama", "AutoModelForCausalLM"),
        ("distilbert", "AutoModel"),
    ],
)
def test_a_plan_is_exact(name, family, head):
    model = tiny.model(family, head)
    before = copy.deepcopy(model.state_dict())
    found = plan(model, recipe(name))
    editor = Editor(copy.deepcopy(model))
    recipe(name).run(editor, Given())
    assert found.after.parameters == parameters(editor.model).value
    assert found.after.size_mb == in_memory(editor.model).value
    assert found.after.flops == model_flops(editor.model, 32).value
    assert found.before.parameters == parameters(model).value
    assert found.after.latency_ms is None  # nothing to read texts with
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert [step.speed for step in found.steps] == [step.speed for step in recipe(name).steps]


def test_a_recipe_that_cannot_work_is_refused():
    for steps, code in (("  - int8\n  - svd\n", 316), ("  - keep_layers: {keep: 9}\n", 318)):
        with pytest.raises(LissomError, match=f"LSM-{code}"):
            plan(tiny.model("bert"), Recipe.parse(f"lissom: 1\nsteps:\n{steps}", "r"))


@pytest.mark.parametrize("family", ["bert", "albert", "gpt2", "llama", "t5", "modernbert"])
def test_parts_add_up(family):
    model = tiny.model(family)
    found = describe(model)
    assert sum(found["parts"].values()) == found["parameters"]
    assert found["parts"]["attention"] > 0
    assert found["parts"]["feed-forward"] > 0
    assert set(found["methods"]) == set(METHODS)
    assert all(verdict.split(":")[0].split(",")[0] in ("yes", "no") for verdict in found["methods"].values())
