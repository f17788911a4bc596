"""What is left returns to its first values."""

import copy

import pytest
import torch

from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods import Given
from lissom.methods.low_rank.svd import Svd
from lissom.methods.pruning.keep_layers import KeepLayers
from lissom.methods.pruning.prune_heads import PruneHeads
from lissom.methods.pruning.prune_neurons import PruneNeurons
from lissom.methods.pruning.rewind import Rewind
from tests import tiny


def shaken(model: object) -> None:
    with torch.no_grad():
        for one in model.parameters():
            one.add_(1.0)


@pytest.mark.parametrize("variant", ["bert", "llama", "t5"])
def test_it_is_the_original_with_the_same_parts_gone(variant: str):
    start = tiny.model(variant)
    steps = (PruneHeads(ratio=0.5), PruneNeurons(ratio=0.25))
    wanted, trained = Editor(copy.deepcopy(start)), Editor(copy.deepcopy(start))
    for step in steps:
        step.apply(wanted, Given())
        step.apply(trained, Given())
    shaken(trained.model)
    Rewind().apply(trained, Given(teacher=start))
    assert trained.record == wanted.record
    after = trained.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in wanted.model.state_dict().items())


def test_a_model_that_was_cut_before_returns_to_what_it_was_then():
    editor = Editor(tiny.model("bert"))
    KeepLayers(keep=2).apply(editor, Given())
    start = copy.deepcopy(editor.model)
    PruneNeurons(ratio=0.25).apply(editor, Given())
    shaken(editor.model)
    Rewind().apply(editor, Given(teacher=start))
    down = Editor(start).anatomy().stacks[0].blocks[1].ffn.down.weight
    keep = list(editor.record.edits[1].neurons[1])
    assert torch.equal(editor.anatomy().stacks[0].blocks[1].ffn.down.weight, down[:, keep])


def test_what_has_no_first_values_is_refused():
    start, editor = tiny.model("bert"), Editor(tiny.model("bert"))
    Svd(ratio=0.5).apply(editor, Given())
    with pytest.raises(LissomError, match=r"LSM-319 Factorize changed more than which layers"):
        Rewind().apply(editor, Given(teacher=start))
    with pytest.raises(LissomError, match=r"LSM-319 the teacher is not the model that this one was cut from"):
        Rewind().apply(Editor(start), Given(teacher=tiny.model("bert", num_hidden_layers=2)))
