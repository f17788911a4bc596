"""Fewer layers and shared layers: what stays, what is tied, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch

from lissom.anatomy import dissect
from lissom.edits import Editor, Factorize, KeepLayers, Record, ShareLayers
from lissom.errors import LissomError
from tests import tiny


def refused(model: torch.nn.Module, edit: KeepLayers | ShareLayers, place: str) -> str:
    """The cause with which `edit` is refused; nothing is recorded."""
    with pytest.raises(LissomError) as caught:
        Editor(model).apply(edit)
    assert caught.value.code == "LSM-451"
    assert caught.value.place == place
    assert not Record.of(model).edits
    return caught.value.cause


@pytest.mark.parametrize("keep", [(), (3,), (-1,), (1, 0), (1, 1)])
def test_layers_that_are_no_choice(keep: tuple[int, ...]) -> None:
    cause = refused(tiny.model("bert"), KeepLayers(keep=keep), "")
    shown = ", ".join(map(str, keep))
    assert cause == f"layers of encoder.layer: [{shown}] is not an ascending choice of at least one of 0 to 2"


def test_a_long_list_is_shown_shortened() -> None:
    cause = refused(tiny.model("bert"), KeepLayers(keep=tuple(range(100))), "")
    assert "[0, 1, 2, 3, 4, 5, 6, 7, ...]" in cause


def test_an_unknown_stack() -> None:
    with pytest.raises(LissomError, match=r't5 has no stack "middle"\. Name one of: encoder, decoder\.') as caught:
        KeepLayers(stack="middle", keep=(0,)).apply(tiny.model("t5"))
    assert caught.value.code == "LSM-712"
    with pytest.raises(LissomError, match='has no stack ""'):
        KeepLayers(keep=(0,)).apply(tiny.model("t5"))


def test_layers_whose_arithmetic_depends_on_their_number() -> None:
    model = tiny.model("gpt2", scale_attn_by_inverse_layer_idx=True)
    cause = refused(model, KeepLayers(keep=(0, 2)), "h")
    assert cause.startswith("with scale_attn_by_inverse_layer_idx a layer depends on its number")
    Editor(model).apply(KeepLayers(keep=(0, 1)))


def test_blocks_that_run_in_turn_cannot_be_dropped() -> None:
    model = tiny.model("albert", num_hidden_groups=3)
    cause = refused(model, KeepLayers(keep=(0,)), "encoder.albert_layer_groups.*.albert_layers")
    assert cause == "3 shared blocks run in turn; layers can be dropped only where one block is repeated"


def test_layers_twice_are_as_once() -> None:
    twice, once = tiny.model("modernbert"), tiny.model("modernbert")
    inputs = tiny.batch(once)
    editor = Editor(twice)
    editor.apply(KeepLayers(keep=(0, 2)))
    editor.apply(KeepLayers(keep=(1,)))
    Editor(once).apply(KeepLayers(keep=(2,)))
    assert torch.equal(tiny.outputs(twice, inputs), tiny.outputs(once, inputs))
    assert twice.config.to_dict() == once.config.to_dict()
    assert editor.record.restore == Record.of(once).restore
    assert editor.record.restore["num_hidden_layers"] == 3


@pytest.mark.parametrize("source", [(0, 0), (1, 0, 2), (0, 0, 3), (0, 2, 1), (-1, 1, 2)])
def test_sources_that_are_no_roots(source: tuple[int, ...]) -> None:
    cause = refused(tiny.model("bert"), ShareLayers(source=source), "encoder.layer")
    assert cause == f"source {list(source)} does not name, for each of the 3 blocks, one that keeps its weights"


def test_shared_layers_answer_as_copies_of_the_source() -> None:
    model = tiny.model("bert")
    copied = copy.deepcopy(model)
    layers = copied.encoder.layer
    layers[2].load_state_dict(layers[0].state_dict())
    inputs = tiny.batch(model)
    Editor(model).apply(ShareLayers(source=(0, 1, 0)))
    assert torch.equal(tiny.outputs(model, inputs), tiny.outputs(copied, inputs))


def test_values_for_shared_layers_come_once() -> None:
    model = tiny.model("bert")
    name = "encoder.layer.0.output.dense.weight"
    Editor(model).apply(ShareLayers(source=(0, 0, 0)), {name: torch.zeros(32, 48)})
    assert not model.encoder.layer[2].output.dense.weight.any()


def storages(model: torch.nn.Module) -> list[int]:
    return [block.attention.q.weight.data_ptr() for block in dissect(model).stacks[0].blocks]


@pytest.mark.parametrize(("keep", "tied"), [((1, 2), True), ((0, 1), False), ((2,), False)])
def test_layers_dropped_after_sharing_stay_tied(keep: tuple[int, ...], tied: bool) -> None:
    """Blocks 1 and 2 use the weights of 1. Settling repeats what loading weights into an empty model needs."""
    model = tiny.model("bert")
    editor = Editor(model)
    editor.apply(ShareLayers(source=(0, 1, 1)))
    editor.apply(KeepLayers(keep=keep))
    for block in model.encoder.layer:
        dense = block.attention.self.query
        dense.weight = torch.nn.Parameter(dense.weight.detach().clone())  # as freshly loaded
    editor.settle()
    assert (len(set(storages(model))) < len(keep)) == tied


def test_sharing_survives_a_later_replacement() -> None:
    model = tiny.model("bert")
    editor = Editor(model)
    editor.apply(ShareLayers(source=(0, 0, 0)))
    editor.apply(Factorize(ranks={f"encoder.layer.{i}.output.dense": 4 for i in range(3)}))
    assert len({id(block.output.dense.up.weight) for block in model.encoder.layer}) == 1


def test_sharing_of_unequal_layers() -> None:
    model = tiny.model("bert")
    model.encoder.layer[1].output.dense = torch.nn.Linear(40, 32)
    with pytest.raises(LissomError, match="the layer that shares and its source differ in shape") as caught:
        Editor(model).apply(ShareLayers(source=(0, 0, 2)))
    assert caught.value.place == "encoder.layer.1.output.dense.weight"
    assert caught.value.remedy == "Share layers after heads and neurons are cut alike in them."
