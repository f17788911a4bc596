"""Nested widths: the ranking, what is open when, and the model that is left."""

from __future__ import annotations

import pytest
import torch

import lissom
from lissom.anatomy import dissect
from lissom.data.batches import pad
from lissom.edits import Editor
from lissom.stats.importance import first_order
from lissom.train.during.masks import Along
from lissom.train.during.sub_networks import Nested, SubNetworks
from lissom.train.during.units import Part
from lissom.train.objectives import OBJECTIVES
from lissom.train.run import train
from tests import tiny
from tests.train.tiny_rows import rows

CLASSIFIER = "AutoModelForSequenceClassification"


def run(work, model, **changes):
    torch.set_num_threads(1)
    options = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "work": work, **changes}
    return train(model, options.pop("rows", None) or rows(), {"task": OBJECTIVES["task"]()}, **options)


def test_the_best_units_are_open_and_a_column_goes_with_its_unit():
    along = Along(torch.arange(4).repeat_interleave(2), 1, torch.Size([3, 8]))
    mask = Nested(Part(heads=True, tied=False, units=4, size=2), along, 0.5, torch.device("cpu"))
    mask.scores.copy_(torch.tensor([1.0, 4.0, 3.0, 2.0]))
    weight = torch.ones(3, 8)
    assert torch.equal(mask(weight), weight)
    mask.width = 0.25
    assert mask(weight)[0].tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    mask.eval()
    assert mask(weight)[0].tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    mask.final = 0.01
    assert mask(weight)[0].tolist() == [0, 0, 1, 1, 0, 0, 0, 0], "one unit always stays"


def test_the_ranking_is_the_first_order_one(tmp_path):
    """One step without dropout: the scores are E |sum x · dL/dx|, here computed from gradients of gates."""
    data = rows(count=8)
    model = tiny.model("bert", CLASSIFIER, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    block = dissect(model).stacks[0].blocks[1]
    batch = pad(data.to_list(), 0)
    wanted = first_order(model, {"heads": (block.attention.o, 4)}, [batch])["heads"]
    model.train()
    editor = Editor(model)
    acting = SubNetworks().begin(editor, None)
    acting.at(0.0)
    model(**batch).loss.backward()
    acting.at(0.1)
    heads = [one for one in acting.made if len(one.scores) == 4][1]
    torch.testing.assert_close(heads.scores, wanted, rtol=1e-4, atol=1e-7)
    acting.remove()


def test_a_ranking_of_several_processes_is_added_up_before_a_checkpoint(monkeypatch):
    """Checkpoints and validation give every process the buffers of the first one."""
    monkeypatch.setattr("lissom.train.processes.summed", lambda tensor: 2 * tensor)  # as if another found the same
    acting = SubNetworks(rank=0.5).begin(Editor(tiny.model("bert", CLASSIFIER)), None)
    acting.at(0.0)
    one = acting.made[0]
    for progress, found in ((0.1, 2.0), (0.2, 4.0), (0.5, 6.0), (0.6, 6.0)):
        one.fresh += 1.0 if progress <= 0.5 else 0.0
        acting.at(progress)
        assert one.scores.tolist() == [found] * len(one.scores)
    assert not any("fresh" in name for name in one.state_dict())
    acting.remove()


@pytest.mark.parametrize("variant", ["bert", "distilbert", "albert", "gpt2", "llama", "mpnet"])
def test_the_model_is_cut_for_good(variant, tmp_path):
    model = tiny.model(variant, CLASSIFIER)
    before = dissect(model).stacks[0].blocks[0]
    run(tmp_path, model, during=[SubNetworks(keep=0.5)])
    after = dissect(model).stacks[0].blocks[0]
    assert 2 * after.attention.kv_heads == before.attention.kv_heads
    assert 2 * after.ffn.width == before.ffn.width
    inputs = tiny.batch(model)
    lissom.save(model, tmp_path / "saved")
    assert torch.equal(tiny.outputs(lissom.load(tmp_path / "saved"), inputs), tiny.outputs(model, inputs))


def test_the_narrow_model_is_trained(tmp_path):
    """The same width without training at it answers worse."""
    data = rows(count=120)
    losses = {}
    for widths in ((0.25,), (1.0,)):
        model = tiny.model("bert", CLASSIFIER, num_hidden_layers=2)
        run(tmp_path, model, rows=data, epochs=8, learning_rate=3e-3, during=[SubNetworks(widths=widths, keep=0.25)])
        from lissom.data.batches import pad

        with torch.no_grad():
            losses[widths] = float(model(**pad(data.to_list(), 0)).loss)
    assert losses[(0.25,)] < 0.8 * losses[(1.0,)]


class Stop:
    def __call__(self, phrase, fraction):
        if round(10 * fraction) == 7:
            raise KeyboardInterrupt


def test_an_interrupted_run_continues_to_the_same_bytes(tmp_path):
    whole, cut = (tiny.model("bert", CLASSIFIER) for _ in range(2))
    run(tmp_path / "whole", whole, save_seconds=0, during=[SubNetworks(rank=0.4)])
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", cut, save_seconds=0, report=Stop(), during=[SubNetworks(rank=0.4)])
    cut = tiny.model("bert", CLASSIFIER)
    done = run(tmp_path / "cut", cut, save_seconds=0, during=[SubNetworks(rank=0.4)])
    assert done.resumed == 6
    assert all(torch.equal(one, cut.state_dict()[name]) for name, one in whole.state_dict().items())
