"""Q-BERT's training: widths by curvature, by hand; packing what was trained; families; resuming."""

import pytest
import torch

from lissom.anatomy import dissect
from lissom.edits import Editor, KeepNeurons, ShareLayers
from lissom.errors import LissomError
from lissom.methods import Given
from lissom.methods.distillation.tune import Tune
from lissom.nn import Int8Embedding
from lissom.nn.fake_groups import FakeGroups
from lissom.nn.grouped import GroupedLinear
from lissom.stats.curvature import block_weights
from lissom.train.during.group_quant import GroupQuant
from lissom.train.objectives import OBJECTIVES
from lissom.train.run import train
from tests import tiny
from tests.train.during.families import CLASSIFIER, rows
from tests.train.during.running import FAMILIES, Stop, reloaded, run, same_bytes


def acting(model, **options):
    editor = Editor(model)
    return editor, GroupQuant(**{"group": 8, "activations": "none", **options}).begin(editor, None)


def finish(editor, it):
    it.at(1.0)
    it.bake()
    it.end(editor)
    return editor.model


def widths(model):
    """Bits of each block."""
    blocks = [block for stack in dissect(model).stacks for block in stack.blocks]
    return [{slot.module.bits for slot in block.slots()} for block in blocks]


def test_rounding_by_hand():
    fake = FakeGroups(group=4)
    weight = torch.tensor([[0.0, 1.0, 2.2, 3.0, -1.0, -0.4, 1.1, 2.0]], requires_grad=True)
    assert fake(weight) is weight
    fake.bits.fill_(2)  # both groups: scale 1; zero points 0 and 1
    assert fake(weight).tolist() == [[0.0, 1.0, 2.0, 3.0, -1.0, 0.0, 1.0, 2.0]]
    (fake(weight) * torch.arange(8.0)).sum().backward()
    assert weight.grad.tolist() == [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]]
    turned = FakeGroups(group=4, transposed=True)
    turned.bits.fill_(2)
    assert torch.equal(turned(weight.t()), fake(weight).t())


def test_blocks_where_the_loss_bends_more_get_more_bits():
    model = tiny.model("bert", CLASSIFIER)
    editor, it = acting(model, bits=2.4)
    names = list(block_weights(editor.anatomy()))
    assert not it.chosen
    it.choose({names[0]: 0.01, names[1]: 5.0, names[2]: 0.02})  # one of three can have 3 bits: 2.33 on average
    assert it.chosen
    assert widths(finish(editor, it)) == [{2}, {3}, {2}]


def test_nothing_is_rounded_before_and_nothing_is_left_of_it():
    model, batch = tiny.model("bert", CLASSIFIER), tiny.batch(tiny.model("bert"))
    before = tiny.outputs(model, batch)
    _, it = acting(model, activations="int8")
    assert torch.equal(tiny.outputs(model, batch), before)
    it.choose(dict.fromkeys(block_weights(dissect(model)), 1.0))
    assert not torch.equal(tiny.outputs(model, batch), before)
    it.remove()
    it.remove()
    assert same_bytes(model, tiny.model("bert", CLASSIFIER))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_packed_is_what_was_trained(tmp_path, family):
    model = tiny.model(family, CLASSIFIER)
    editor, it = acting(model)
    it.choose(dict.fromkeys(block_weights(editor.anatomy()), 1.0))
    batch = tiny.batch(model)
    fake = tiny.outputs(model, batch)
    packed = finish(editor, it)
    torch.testing.assert_close(tiny.outputs(packed, batch), fake, atol=1e-5, rtol=1e-4)
    slots = list(editor.anatomy().linears())
    assert all(isinstance(slot.module, GroupedLinear) and slot.module.bits in (2, 3) for slot in slots)
    counts = [slot.in_features * slot.out_features for slot in slots]
    assert sum(slot.module.bits * n for slot, n in zip(slots, counts, strict=True)) <= 2.5 * sum(counts)
    reloaded(packed, tmp_path / "out")


def test_the_table_takes_8_bits():
    packed = finish(*acting(tiny.model("bert")))
    assert isinstance(packed.get_input_embeddings(), Int8Embedding)
    without = finish(*acting(tiny.model("bert"), embeddings=False))
    assert type(without.get_input_embeddings()) is torch.nn.Embedding


def test_shared_layers_have_one_width_and_count_once():
    model = tiny.model("bert")
    Editor(model).apply(ShareLayers(source=(0, 0, 0)))
    packed = finish(*acting(model, bits=3))
    assert widths(packed)[0] == {3}
    assert packed.encoder.layer[0].output.dense.weight is packed.encoder.layer[2].output.dense.weight


def test_what_is_cut_afterwards_is_rounded_anew():
    editor, it = acting(tiny.model("bert"))
    it.at(1.0)
    it.bake()
    editor.apply(KeepNeurons(neurons=(tuple(range(10)),) * 3))
    it.end(editor)
    assert editor.model.encoder.layer[0].output.dense.in_features == 10
    assert torch.isfinite(tiny.outputs(editor.model, tiny.batch(editor.model))).all()


@pytest.mark.parametrize("activations", ["int8", "none"])
def test_a_run_measures_trains_and_packs(tmp_path, activations):
    packed = run(tmp_path, [GroupQuant(group=8, activations=activations, samples=16)])
    assert sorted(one for each in widths(packed) for one in each) in ([2, 2, 3], [2, 3, 3], [2, 2, 2])
    assert len({one for each in widths(packed) for one in each}) == 2
    reloaded(packed, tmp_path / "out")


def test_a_cut_run_ends_with_the_same_bytes(tmp_path):
    during = [GroupQuant(group=8, samples=16)]
    whole = run(tmp_path / "whole", during, save_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", during, save_seconds=0, report=Stop())
    assert same_bytes(whole, run(tmp_path / "cut", during, save_seconds=0))


def test_training_makes_up_for_the_rounding(tmp_path):
    options = {"epochs": 10, "learning_rate": 2e-3, "rows": rows()}
    model = tiny.model("bert", CLASSIFIER)
    after = run(tmp_path / "first", [], model=model, **options)
    so = run(tmp_path / "so", [GroupQuant(group=8, bits=2, samples=16)], **options)
    finish(*acting(after, bits=2))

    def loss(model):
        with torch.no_grad():
            return sum(
                model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss.item()
                for row in options["rows"]
            )

    assert loss(so) < loss(after)


def test_rows_without_labels_are_refused(tmp_path):
    data = rows().remove_columns("labels")
    model = tiny.model("bert", CLASSIFIER)
    with pytest.raises(LissomError, match=r"LSM-317 group_quant: .*labelled texts.* Give labels\."):
        train(
            model,
            data,
            {"logits": OBJECTIVES["logits"]()},
            teachers=[tiny.model("bert", CLASSIFIER, seed=1)],
            during=[GroupQuant(group=8)],
            work=tmp_path,
        )


def test_a_budget_below_the_smallest_width_is_refused():
    with pytest.raises(LissomError, match=r"LSM-318 group_quant\.bits: an average of 2\.5 bits"):
        GroupQuant(choices=(3, 4)).check(dissect(tiny.model("bert")), None)


def test_weights_that_are_not_finite_are_refused():
    editor, it = acting(tiny.model("bert"))
    it.choose(dict.fromkeys(block_weights(editor.anatomy()), 1.0))
    with torch.no_grad():
        editor.model.encoder.layer[1].intermediate.dense.parametrizations.weight.original[0, 0] = torch.nan
    with pytest.raises(LissomError, match=r"LSM-901 encoder\.layer\.1\.intermediate\.dense: .*NaN"):
        finish(editor, it)


def test_a_preview_has_a_structure_within_the_budget():
    editor = Editor(tiny.model("bert", CLASSIFIER))
    step = Tune(learn={"task": {}}, while_=({"group_quant": {"group": 8, "bits": 2.4}},))
    step.preview(editor, Given())
    assert sorted(one for each in widths(editor.model) for one in each) == [2, 2, 3]
