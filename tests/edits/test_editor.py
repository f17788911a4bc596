"""The editor: what it records, and what a copy, another model and a replay carry."""

from __future__ import annotations

import copy

import pytest
import torch

from lissom.edits import Editor, KeepLayers, KeepNeurons, Record
from tests import tiny


def test_an_untouched_model_has_an_empty_record() -> None:
    model = tiny.model("bert")
    assert Record.of(model) == Record() == Editor(model).record
    assert Record.of(torch.nn.Linear(2, 2)) == Record()


def test_edits_are_recorded_in_order_with_what_they_changed() -> None:
    model = tiny.model("t5")
    editor = Editor(model)
    made = (
        KeepLayers(stack="encoder", keep=(0, 2)),
        KeepNeurons(stack="decoder", neurons=((0,), (1,))),
        KeepLayers(stack="decoder", keep=(1,)),
    )
    for edit in made:
        editor.apply(edit)
    assert editor.record == Record(edits=made, restore={"num_layers": 3, "num_decoder_layers": 2})
    assert model.encoder.config.num_layers == 2
    assert model.decoder.config.num_layers == model.config.num_decoder_layers == 1


def test_the_first_value_is_the_one_to_restore() -> None:
    editor = Editor(tiny.model("qwen2"))
    editor.apply(KeepLayers(keep=(0, 1)))
    editor.apply(KeepLayers(keep=(0,)))
    assert editor.record.restore["num_hidden_layers"] == 3
    assert editor.record.restore["layer_types"] == ["full_attention"] * 3


def test_copies_go_their_own_ways() -> None:
    model = tiny.model("bert")
    Editor(model).apply(KeepLayers(keep=(0, 1)))
    twin = copy.deepcopy(model)
    Editor(twin).apply(KeepLayers(keep=(1,)))
    assert [len(Record.of(one).edits) for one in (model, twin)] == [1, 2]
    assert len(model.encoder.layer) == model.config.num_hidden_layers == 2


def test_replacing_the_model_takes_its_record() -> None:
    editor = Editor(tiny.model("bert"))
    editor.apply(KeepLayers(keep=(0,)))
    editor.replace(tiny.model("distilbert"))
    assert editor.record == Record()
    assert editor.anatomy().family == "distilbert"


@pytest.mark.parametrize("training", [True, False])
def test_a_replayed_record_is_the_record(training: bool) -> None:
    model, other = (tiny.model("bert").train(training) for _ in range(2))
    for edit in (KeepLayers(keep=(1, 2)), KeepNeurons(neurons=((3,), (4, 5)))):
        Editor(model).apply(edit)
    Editor(other).replay(Record.of(model))
    assert Record.of(other) == Record.of(model)
    left, right = model.state_dict(), other.state_dict()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
    assert all(module.training == training for module in other.modules())
