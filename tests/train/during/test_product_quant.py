"""Product quantization in training: turns by hand, packing what was trained, families, and resuming."""

import copy

import pytest
import torch

from lissom.edits import Editor, KeepNeurons, Palette, ShareLayers
from lissom.errors import LissomError
from lissom.methods import Given
from lissom.methods.distillation.tune import Tune
from lissom.nn.palette import PaletteEmbedding, PaletteLinear
from lissom.train.during.product_quant import ProductQuant
from tests import tiny
from tests.train.during.families import CLASSIFIER, rows
from tests.train.during.running import FAMILIES, Stop, reloaded, run, same_bytes


def acting(model, **options):
    editor = Editor(model)
    return editor, ProductQuant(**options).begin(editor, None)


def finish(editor, it):
    it.at(1.0)
    it.bake()
    it.end(editor)
    return editor.model


def fixed(it, model):
    return {name for name, one in model.named_modules() if one in it.quantizers and it.quantizers[one].fixed}


def test_maps_get_their_tables_in_turn():
    model = tiny.model("bert")
    _, it = acting(model, start=0.4)
    ffn, table, attention = (
        "encoder.layer.0.output.dense",
        "embeddings.word_embeddings",
        "encoder.layer.0.attention.self.query",
    )
    seen = {}
    for progress in (0.0, 0.39, 0.4, 0.59, 0.61, 0.79, 0.81):
        it.at(progress)
        names = fixed(it, model)
        seen[progress] = [one in names for one in (ffn, table, attention)]
        assert it.settled == (progress > 0.8)
    none, first, two, three = [False] * 3, [True, False, False], [True, True, False], [True] * 3
    assert list(seen.values()) == [none, none, first, first, two, two, three]
    it.remove()
    it.remove()
    assert same_bytes(model, tiny.model("bert"))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_packed_is_what_was_trained(tmp_path, family):
    model = tiny.model(family, CLASSIFIER)
    editor, it = acting(model)
    it.at(1.0)
    with torch.no_grad():
        for one in it.made:
            one.table.mul_(1.1)
    batch = tiny.batch(model)
    fake = tiny.outputs(model, batch)
    packed = finish(editor, it)
    torch.testing.assert_close(tiny.outputs(packed, batch), fake, atol=1e-5, rtol=1e-4)
    found = {one.vector for one in packed.modules() if isinstance(one, PaletteLinear)}
    assert found == {4, 8}
    assert not any(isinstance(one, torch.nn.Linear) for slot in editor.anatomy().linears() for one in [slot.module])
    reloaded(packed, tmp_path / "out")


def test_one_bit_a_weight_is_stored():
    packed = finish(*acting(tiny.model("bert")))
    up = packed.encoder.layer[0].intermediate.dense
    assert (up.weight.shape, up.weight_table.shape, up.bits) == ((48, 32 // 8), (256, 8), 8)
    assert packed.encoder.layer[0].attention.self.key.weight.shape == (32, 32 // 4)
    assert isinstance(packed.get_input_embeddings(), PaletteEmbedding)
    without = finish(*acting(tiny.model("bert"), embeddings=False))
    assert type(without.get_input_embeddings()) is torch.nn.Embedding


def test_what_is_cut_afterwards_gets_a_table_of_its_own():
    editor, it = acting(tiny.model("bert"))
    it.at(1.0)
    it.bake()
    editor.apply(KeepNeurons(neurons=(tuple(range(8)),) * 3))
    before = tiny.outputs(editor.model, tiny.batch(editor.model))
    it.end(editor)
    assert editor.model.encoder.layer[0].output.dense.weight.shape == (32, 1)
    torch.testing.assert_close(tiny.outputs(editor.model, tiny.batch(editor.model)), before, atol=1e-5, rtol=1e-4)


def test_shared_layers_have_one_table():
    model = tiny.model("bert")
    Editor(model).apply(ShareLayers(source=(0, 0, 0)))
    editor, it = acting(model)
    assert len(it.made) == 6 + 1
    packed = finish(editor, it)
    assert packed.encoder.layer[0].output.dense.weight is packed.encoder.layer[2].output.dense.weight


def test_tables_are_trained_and_a_cut_run_ends_with_the_same_bytes(tmp_path):
    during = [ProductQuant(start=0.3)]
    whole = run(tmp_path / "whole", during, save_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", during, save_seconds=0, report=Stop())
    again = run(tmp_path / "cut", during, save_seconds=0)
    assert same_bytes(whole, again)
    still = run(tmp_path / "still", during, learning_rate=1e-9)
    path = "bert.encoder.layer.1.output.dense"
    assert not torch.equal(whole.get_submodule(path).weight_table, still.get_submodule(path).weight_table)


def test_training_the_tables_makes_up_for_them(tmp_path):
    """Tables that are trained lose less than those that are only found, for the same model."""
    options = {"epochs": 10, "learning_rate": 2e-3, "rows": rows()}
    model = tiny.model("bert", CLASSIFIER, hidden_size=64, intermediate_size=256)
    after = run(tmp_path / "first", [], model=model, **options)
    so = run(tmp_path / "so", [ProductQuant(attention=8, start=0.0)], model=copy.deepcopy(after), **options)
    finish(*acting(after, attention=8))

    def loss(model):
        with torch.no_grad():
            return sum(
                model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss.item()
                for row in options["rows"]
            )

    assert loss(so) < loss(after)


def test_vectors_that_do_not_fit_are_refused():
    model = tiny.model("bert", intermediate_size=50)
    with pytest.raises(LissomError, match=r"LSM-318 encoder\.layer\.0\.output\.dense: vectors of 8 do not fill 50 col"):
        ProductQuant().check(Editor(model).anatomy(), None)


def test_weights_that_are_not_finite_are_refused():
    model = tiny.model("bert")
    editor, it = acting(model)
    with torch.no_grad():
        model.encoder.layer[1].intermediate.dense.parametrizations.weight.original[0, 0] = torch.nan
    with pytest.raises(LissomError, match=r"LSM-901 encoder\.layer\.1\.intermediate\.dense: .*NaN"):
        finish(editor, it)


def test_a_preview_has_the_structure_of_the_result():
    editor = Editor(tiny.model("bert", CLASSIFIER))
    Tune(while_=({"product_quant": {}},)).preview(editor, Given())
    assert {type(one) for one in editor.record.edits} == {Palette}
