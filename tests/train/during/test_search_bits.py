"""Bits that are searched for: the two levels of training, packing what was trained, families, resuming."""

from types import SimpleNamespace

import pytest
import torch

from lissom.edits import Editor, KeepHeads, KeepNeurons, PackRows, ShareLayers
from lissom.errors import LissomError
from lissom.export import export
from lissom.methods import Given
from lissom.methods.distillation.tune import Tune
from lissom.nn import Int8Embedding
from lissom.nn.mixed_bits import MixedBitLinear
from lissom.train.during.held import drawn
from lissom.train.during.search_bits import SearchBits
from tests import tiny
from tests.train.during.families import CLASSIFIER, rows
from tests.train.during.running import FAMILIES, Stop, reloaded, run, same_bytes


def acting(model, **options):
    editor = Editor(model)
    return editor, SearchBits(**options).begin(editor, None)


def scattered(it, seed=0):
    """Choices that differ from group to group."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        it.choices.a.copy_(torch.randn(it.choices.a.shape, generator=generator))


def finish(editor, it):
    it.at(1.0)
    it.bake()
    it.end(editor)
    return editor.model


def stored_bits(model):
    found = [one for one in model.modules() if isinstance(one, MixedBitLinear)]
    return 8 * sum(one.weight.numel() for one in found) / sum(one.in_features * one.out_features for one in found)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_packed_is_what_was_trained(tmp_path, family):
    model = tiny.model(family, CLASSIFIER)
    editor, it = acting(model, groups=4, bits=8, activations="none")
    scattered(it)
    it.at(0.5)
    batch = tiny.batch(model)
    fake = tiny.outputs(model, batch)
    packed = finish(editor, it)
    torch.testing.assert_close(tiny.outputs(packed, batch), fake, atol=1e-5, rtol=1e-4)
    found = [slot.module for slot in editor.anatomy().linears()]
    assert all(isinstance(one, MixedBitLinear) for one in found)
    assert {bits for one in found for bits, _ in one.runs} == {0, 2, 4, 8}
    reloaded(packed, tmp_path / "out")


@pytest.mark.parametrize("bits", [1.0, 3.0, 5.5])
def test_the_mean_is_met(bits):
    editor, it = acting(tiny.model("bert"), groups=4, bits=bits)
    scattered(it)
    packed = finish(editor, it)
    assert min(bits, 3.3) - 0.1 < stored_bits(packed) <= bits  # the likeliest ones are 3.36 in the mean
    assert isinstance(packed.get_input_embeddings(), Int8Embedding)


def test_cuts_keep_the_bits():
    editor, it = acting(tiny.model("bert"), groups=4, activations="none")
    scattered(it)
    it.at(1.0)
    it.bake()
    editor.apply(KeepHeads(heads=((0, 2), (1,), (3,))))
    editor.apply(KeepNeurons(neurons=((1, 5, 7), (0,), tuple(range(40)))))
    fake = tiny.outputs(editor.model, tiny.batch(editor.model))
    it.end(editor)
    cosine = torch.nn.functional.cosine_similarity(tiny.outputs(editor.model, tiny.batch(editor.model)), fake, dim=0)
    assert cosine > 0.999


def test_shared_layers_choose_together():
    model = tiny.model("bert")
    Editor(model).apply(ShareLayers(source=(0, 0, 0)))
    editor, it = acting(model, groups=4)
    assert len(it.choices.a) == 6 * 4
    packed = finish(editor, it)
    assert packed.encoder.layer[0].output.dense.weight is packed.encoder.layer[2].output.dense.weight


def test_it_leaves_no_trace():
    model = tiny.model("bert")
    _, it = acting(model)
    it.remove()
    it.remove()
    assert same_bytes(model, tiny.model("bert"))


def test_choices_learn_from_kept_rows_and_the_size_and_a_cut_run_ends_with_the_same_bytes(tmp_path):
    during = [SearchBits(groups=4, bits=3.0, learning_rate=0.1)]
    whole = run(tmp_path / "whole", during, save_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", during, save_seconds=0, report=Stop())
    again = run(tmp_path / "cut", during, save_seconds=0)
    assert same_bytes(whole, again)
    assert stored_bits(whole) <= 3.0


def test_the_penalty_lowers_the_expected_bits():
    _, it = acting(tiny.model("bert"), groups=4, bits=1.0, penalty=2.0)
    before = it.choices.mean_bits(it.choices.a.softmax(1))
    assert before.item() == pytest.approx(3.5)  # of 8, 4, 2 and 0 alike
    it.slope = torch.zeros_like(it.choices.a)
    loss = it.penalty()
    assert loss.item() == pytest.approx(2.0 * (3.5 - 1))
    loss.backward()
    assert (it.choices.a.grad[:, 0] > 0).all()
    assert (it.choices.a.grad[:, 3] < 0).all()
    it.slope = torch.ones_like(it.choices.a)
    it.choices.a.grad = None
    assert it.penalty().item() == pytest.approx(2.0 * (3.5 - 1)), "the kept rows add a gradient and no loss"


def test_labels_are_needed():
    engine = SimpleNamespace(held=rows().remove_columns("labels"), args=SimpleNamespace(train_batch_size=4))
    with pytest.raises(LissomError, match=r"LSM-317 search_bits: the search needs labels, and the rows have none"):
        drawn(engine, "search_bits", "the search")


def test_the_graph_answers_as_torch(tmp_path):
    editor, it = acting(tiny.model("bert", CLASSIFIER, num_hidden_layers=1), groups=4)
    scattered(it)
    artifact = export(finish(editor, it), "onnx", tmp_path / "out")
    assert artifact.parity["cosine"] >= 0.999


def test_a_preview_has_the_structure_of_the_result():
    editor = Editor(tiny.model("bert", CLASSIFIER))
    Tune(while_=({"search_bits": {"bits": 3.0}},)).preview(editor, Given())
    assert any(isinstance(one, PackRows) for one in editor.record.edits)
    assert stored_bits(editor.model) <= 3.0
