"""Where exits are put, with which weights, and what is refused."""

from __future__ import annotations

import pytest
import torch

from lissom.edits import Editor, exits_of
from lissom.errors import LissomError
from lissom.methods import METHODS
from lissom.methods.base import Given
from lissom.methods.early_exit.add_exits import AddExits
from tests import tiny

CLASSIFIER = "AutoModelForSequenceClassification"


def test_after_every_layer_but_the_last() -> None:
    assert METHODS["add_exits"] is AddExits
    model = tiny.model("bert", CLASSIFIER, num_hidden_layers=4)
    inputs = tiny.batch(model)
    before = tiny.outputs(model, inputs)
    AddExits().apply(Editor(model), Given())
    exits = exits_of(model)
    assert exits is not None
    assert exits.layers == (1, 2, 3)
    assert exits.depth == 4
    assert torch.equal(tiny.outputs(model, inputs), before)  # nobody leaves yet


def test_the_seed_draws_the_weights() -> None:
    def drawn(seed: int) -> torch.Tensor:
        model = tiny.model("bert", CLASSIFIER)
        AddExits(judge=True).apply(Editor(model), Given(seed=seed))
        return torch.cat([one.flatten() for one in exits_of(model).parameters()])

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
    assert 0.015 < drawn(0)[drawn(0) != 0].std().item() < 0.025


@pytest.mark.parametrize("layers", [(), (3,), (2, 1)])
def test_layers_that_are_no_choice(layers: tuple[int, ...]) -> None:
    anatomy = Editor(tiny.model("bert", CLASSIFIER)).anatomy()
    with pytest.raises(LissomError, match=r"LSM-318 exits after layers .* are no ascending choice of 1 to 2"):
        AddExits(layers=layers).check(anatomy, Given())


def test_a_decoder_is_refused() -> None:
    with pytest.raises(LissomError, match="LSM-715 GPT2ForSequenceClassification is no encoder"):
        AddExits().check(Editor(tiny.model("gpt2", CLASSIFIER)).anatomy(), Given())
