"""Heads and neurons under one budget: what goes, what it costs, and what stays true."""

import copy
from pathlib import Path

import pytest
import torch

import lissom
from lissom.data import load_data
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.measure.flops import model_flops
from lissom.methods import Given
from lissom.methods.low_rank.svd import Svd
from lissom.methods.pruning.prune_heads import PruneHeads
from lissom.methods.pruning.prune_units import PruneUnits
from lissom.methods.quantization.int8 import Int8
from lissom.stats.unit_cost import unit_flops
from lissom.stats.unit_latency import Saved, UnitLatency
from tests import tiny

HEAD = "AutoModelForSequenceClassification"


def texts(head: str = HEAD) -> Given:
    made = tiny.labelled_texts(40)
    rows = made if head == HEAD else {"text": made["text"]}
    return Given(data=load_data({"train": rows}), tokenizer=tiny.tokenizer(), max_length=32)


def quiet(editor: Editor) -> None:
    """Head 2 and the first twelve neurons of every layer say nothing."""
    for block in editor.anatomy().stacks[0].blocks:
        with torch.no_grad():
            block.attention.o.weight[:, 16:24] = 0
            block.ffn.down.weight[:, :12] = 0


@pytest.mark.parametrize("by", ["answers", "labels"])
@pytest.mark.parametrize("refit", ["weights", "gates", "none"])
def test_what_says_nothing_goes_and_nothing_changes(by: str, refit: str):
    editor = Editor(tiny.model("bert", HEAD))
    quiet(editor)
    cost = unit_flops(editor.anatomy(), 10)
    # a head of 8: four maps of 32 x 8 and two products; a neuron: two maps of 32
    assert set(cost.units.values()) == {2 * 10 * 4 * 32 * 8 + 4 * 100 * 8, 2 * 10 * 2 * 32}
    gone = 3 * (2 * 10 * 4 * 32 * 8 + 4 * 100 * 8 + 12 * 2 * 10 * 2 * 32)
    inputs = tiny.batch(editor.model)
    before = tiny.outputs(editor.model, inputs)
    PruneUnits(flops=1 - gone / cost.total, length=10, by=by, refit=refit).apply(editor, texts())
    heads, neurons = editor.record.edits
    assert heads.heads == ((0, 1, 3),) * 3
    assert neurons.neurons == (tuple(range(12, 48)),) * 3
    assert torch.allclose(tiny.outputs(editor.model, inputs), before, atol=1e-4)


@pytest.mark.parametrize(
    ("variant", "head"),
    [("bert", HEAD), ("llama", "AutoModelForCausalLM"), ("t5", "AutoModelForSeq2SeqLM"), ("bart", "AutoModel")],
)
def test_the_budget_is_met_as_the_measure_counts_it(variant: str, head: str):
    editor = Editor(tiny.model(variant, head))
    before = unit_flops(editor.anatomy(), 12)
    if variant in ("bert", "llama"):
        whole = model_flops(editor.model, 12).value
        outside = whole - before.total
    did = PruneUnits(flops=0.6, length=12, samples=16, refit_samples=8).apply(editor, texts(head))
    after = unit_flops(editor.anatomy(), 12)
    assert did["tokens"] == 12
    assert 0.52 * before.total < after.total <= 0.6 * before.total
    if variant in ("bert", "llama"):
        assert model_flops(editor.model, 12).value == outside + after.total


def test_all_of_it_is_the_identity():
    editor = Editor(tiny.model("bert", HEAD))
    inputs = tiny.batch(editor.model)
    before = tiny.outputs(editor.model, inputs)
    PruneUnits(flops=1).apply(editor, texts())
    assert not editor.record.edits
    assert torch.allclose(tiny.outputs(editor.model, inputs), before, atol=1e-5)


def test_a_model_that_is_cut_already_is_cut_again():
    editor = Editor(tiny.model("llama", "AutoModelForCausalLM", num_key_value_heads=2))
    PruneHeads(ratio=0.5).apply(editor, Given())
    before = unit_flops(editor.anatomy(), 8).total
    PruneUnits(flops=0.7, length=8).apply(editor, texts(""))
    assert unit_flops(editor.anatomy(), 8).total <= 0.7 * before
    assert all(block.attention.kv_heads == 1 for block in editor.anatomy().stacks[0].blocks)
    editor.model.generate(torch.tensor([[1, 5, 7]]), max_new_tokens=3, do_sample=False)


def test_layers_that_share_a_position_bias_keep_the_same_heads():
    editor = Editor(tiny.model("t5", "AutoModelForSeq2SeqLM"))
    PruneUnits(flops=0.6, length=8, samples=16, refit_samples=8).apply(editor, texts(""))
    cut = [one.heads for one in editor.record.edits if hasattr(one, "heads")]
    assert cut
    assert any(len(set(one)) == 1 for one in cut)


def test_fitting_keeps_the_answers_nearer():
    model = tiny.model("bert", HEAD)
    given, inputs = texts(), tiny.batch(model, rows=16, length=12)
    before, errors = tiny.outputs(model, inputs), {}
    for refit in ("none", "weights"):
        editor = Editor(copy.deepcopy(model))
        PruneUnits(flops=0.7, refit=refit).apply(editor, given)
        errors[refit] = float((tiny.outputs(editor.model, inputs) - before).square().mean())
    assert errors["weights"] < errors["none"]


def test_preview_leaves_as_many_operations():
    editor = Editor(tiny.model("bert", HEAD))
    before = unit_flops(editor.anatomy(), 16).total
    PruneUnits(flops=0.5, length=16).preview(editor, Given())
    assert 0.45 * before < unit_flops(editor.anatomy(), 16).total <= 0.5 * before


def test_a_budget_that_nothing_meets_is_refused_before_any_work():
    editor = Editor(tiny.model("bert", HEAD))
    with pytest.raises(
        LissomError, match=r"LSM-318 flops: flops 0\.1 is less than one head and one neuron a layer need"
    ):
        PruneUnits(flops=0.1).check(editor.anatomy(), Given())


def test_time_is_a_budget_too(monkeypatch: pytest.MonkeyPatch):
    """With a table in which only neurons save time, heads stay."""

    def table(model: object, tokens: int, **_: object) -> UnitLatency:
        heads, neurons = ("encoder", "heads"), ("encoder", "neurons")
        blocks = editor.anatomy().stacks[0].blocks
        units = {block.attention.o.path: (heads, 4) for block in blocks}
        return UnitLatency(
            whole=1.0,
            saved={heads: Saved(shares=(0.5, 1), seconds=(0, 0)), neurons: Saved(shares=(0.5, 1), seconds=(0.3, 0))},
            units={**units, **{block.ffn.down.path: (neurons, 48) for block in blocks}},
        )

    monkeypatch.setattr("lissom.methods.pruning.prune_units.unit_latency", table)
    editor = Editor(tiny.model("bert", HEAD))
    PruneUnits(latency=0.8, length=8).apply(editor, texts())
    (cut,) = editor.record.edits
    assert sorted(map(len, cut.neurons)) == [24, 24, 48]  # two layers of three save 0.2 of 1
    with pytest.raises(LissomError, match=r"LSM-318 latency: latency 0\.2 is less than one head and one neuron"):
        PruneUnits(latency=0.2, length=8).apply(editor, texts())


def test_what_is_factorized_is_cut_too_and_saved_with_its_ragged_widths(tmp_path: Path):
    editor, given = Editor(tiny.model("bert", HEAD)), texts()
    Svd(ratio=0.8).apply(editor, given)
    before = unit_flops(editor.anatomy(), 8).total
    assert (
        before
        == sum(
            2 * 8 * one.weight.numel()
            for one in editor.model.bert.encoder.modules()
            if isinstance(one, torch.nn.Linear)
        )
        + 3 * 4 * 64 * 32
    )
    PruneUnits(flops=0.8, length=8).apply(editor, given)
    assert unit_flops(editor.anatomy(), 8).total <= 0.8 * before
    assert len({block.ffn.width for block in editor.anatomy().stacks[0].blocks}) > 1
    Int8().apply(editor, given)
    inputs = tiny.batch(editor.model)
    lissom.save(editor.model, tmp_path / "out")
    assert torch.equal(tiny.outputs(lissom.load(tmp_path / "out"), inputs), tiny.outputs(editor.model, inputs))
