"""oBERT on models: exact shares, patterns, a lower loss than by magnitude, zeros that stay, in parts as at once."""

import copy

import pytest
import torch

from lissom.data import load_data
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.measure.size import sparsity
from lissom.methods import Given
from lissom.methods.pruning import obert
from lissom.methods.pruning.obert import Obert
from lissom.methods.pruning.prune_weights import PruneWeights
from lissom.train.finetune import finetune
from tests import tiny

HEAD = "AutoModelForSequenceClassification"


def given(rows=24):
    data = load_data({"train": tiny.labelled_texts(rows), "validation": tiny.labelled_texts(4, seed=1)})
    return Given(data=data, tokenizer=tiny.tokenizer(), max_length=32)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "bart", "albert"])
@pytest.mark.parametrize("options", [{"ratio": 0.25}, {"pattern": "6:8"}], ids=str)
def test_models_are_pruned(kind, options):
    editor = Editor(tiny.model(kind, HEAD))
    frozen = [one.requires_grad for one in editor.model.parameters()]
    Obert(**options).apply(editor, given())
    assert sparsity(editor.model).value == pytest.approx(0.25, abs=1e-3)
    assert torch.isfinite(tiny.outputs(editor.model, tiny.batch(editor.model))).all()
    assert [one.requires_grad for one in editor.model.parameters()] == frozen
    assert all(one.grad is None for one in editor.model.parameters())


def test_none_is_none_and_zeros_stay_zero():
    editor = Editor(tiny.model("bert", HEAD))
    whole = tiny.outputs(editor.model, inputs := tiny.batch(editor.model))
    Obert(ratio=0).apply(editor, given())
    assert torch.equal(tiny.outputs(editor.model, inputs), whole)
    Obert(ratio=0.25).apply(editor, given())
    first = {slot.path: slot.weight == 0 for slot in editor.anatomy().linears()}
    Obert(ratio=0.5).apply(editor, given())
    assert all(bool((slot.weight == 0)[first[slot.path]].all()) for slot in editor.anatomy().linears())
    assert sparsity(editor.model).value == pytest.approx(0.5, abs=1e-3)


def test_maps_in_parts_are_maps_at_once(monkeypatch):
    made = []
    for held in (2**28, 1):
        monkeypatch.setattr(obert, "_HELD", held)
        editor = Editor(tiny.model("gpt2", HEAD))
        Obert(ratio=0.5).apply(editor, given())
        made.append(tiny.outputs(editor.model, tiny.batch(editor.model)))
    torch.testing.assert_close(*made)


def test_the_loss_rises_less_than_without_neighbours_and_by_magnitude(tmp_path):
    torch.set_num_threads(1)
    gets = given(96)
    how = {"epochs": 15, "learning_rate": 2e-3, "batch_size": 8, "max_length": 32, "work": tmp_path}
    model, _ = finetune(tiny.model("bert", HEAD), gets.data, tokenizer=gets.tokenizer, **how)
    batches = list(gets.calibration(model, 96, labelled=True))

    def loss(step):
        editor = Editor(copy.deepcopy(model).eval())
        step.apply(editor, gets)
        with torch.no_grad():
            return sum(float(editor.model(**one).loss) for one in batches)

    assert loss(Obert(ratio=0.7)) < loss(Obert(ratio=0.7, size=1)) < loss(PruneWeights(ratio=0.7))


def test_refusals():
    anatomy = Editor(tiny.model("bert", HEAD)).anatomy()
    with pytest.raises(LissomError, match=r"LSM-317 needs labelled texts\. Give --data, or take sparsegpt"):
        Obert().check(anatomy, Given())
