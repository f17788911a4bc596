"""LayerDrop: what a dropped layer gives, how often it is dropped, and which layers stay."""

import pytest
import torch

import lissom
from lissom.anatomy import dissect
from lissom.anatomy.dissect import stack_record
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.train.during.layer_drop import LayerDrop
from lissom.train.objectives import OBJECTIVES
from lissom.train.ramp import Ramp
from lissom.train.run import train
from tests import tiny
from tests.train.during.families import CLASSIFIER, quiet, rows

torch.set_num_threads(1)
VARIANTS = sorted(tiny.CONFIGS)


def begin(model, **options):
    acting = LayerDrop(**options).begin(Editor(model), None)
    acting.at(0.0)
    return acting


def layers(model):
    """What each block took and gave in one forward, as hidden states."""
    seen, handles = [], []
    for stack in dissect(model).stacks:
        for block in stack.blocks:
            module = model.get_submodule(block.path)
            handles.append(module.register_forward_hook(lambda _, args, out: seen.append((args[0], out))))
    with torch.no_grad():
        model(**tiny.batch(model))
    for one in handles:
        one.remove()
    return seen


def states(out):
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_table_of_families_says_what_blocks_give(variant):
    model = tiny.model(variant)
    stack = dissect(model).stacks[0]
    gives = stack_record(model, stack.name).gives
    _, out = layers(model)[0]
    assert isinstance(out, tuple) == (gives is not None)
    if gives is not None:
        assert len(out) == 1 + len(gives)


@pytest.mark.parametrize("variant", VARIANTS)
def test_with_probability_1_the_embeddings_pass_through(variant):
    model = quiet(tiny.model(variant))
    form = [type(out) for _, out in layers(model)]
    acting = begin(model, probability=1.0)
    seen = layers(model)
    assert [type(out) for _, out in seen] == form
    assert all(torch.equal(x, states(out)) for x, out in seen)
    acting.remove()


@pytest.mark.parametrize("variant", VARIANTS)
def test_with_probability_0_and_in_evaluation_all_layers_run(variant):
    model = quiet(tiny.model(variant))
    whole = [states(out) for _, out in layers(model)]
    acting = begin(model, probability=0.0)
    assert all(torch.equal(one, states(out)) for one, (_, out) in zip(whole, layers(model), strict=True))
    acting.options = LayerDrop(probability=1.0)
    acting.at(0.0)
    whole = [states(out) for _, out in layers(model.eval())]
    acting.remove()
    assert all(torch.equal(one, states(out)) for one, (_, out) in zip(whole, layers(model), strict=True))


@pytest.mark.parametrize("variant", ["t5", "t5-gated"])
def test_position_bias_stays_when_the_first_layer_is_dropped(variant, monkeypatch):
    model = quiet(tiny.model(variant))
    stack = dissect(model).stack("encoder")
    wanted = {}
    second = model.get_submodule(stack.blocks[1].path)
    for name, drawn in (("all", [0.9, 0.9, 0.9]), ("without the first", [0.1, 0.9, 0.9])):
        draws = iter([*drawn, 0.9, 0.9])
        acting = begin(model, probability=0.5)
        monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: next(draws))  # noqa: B023
        handle = second.register_forward_hook(lambda _, args, out: wanted.update({name: out[1]}))  # noqa: B023
        with torch.no_grad():
            model(**tiny.batch(model))
        handle.remove()
        acting.remove()
    assert torch.equal(wanted["all"], wanted["without the first"])


def test_each_layer_is_dropped_as_often_as_probability_says():
    model = quiet(tiny.model("bert"))
    acting = begin(model, probability=Ramp(start=0.0, end=0.5))
    acting.at(0.5)
    torch.manual_seed(0)
    count = 400
    dropped = torch.tensor([[float(torch.equal(x, out)) for x, out in layers(model)] for _ in range(count)])
    margin = 4 * (0.25 * 0.75 / count) ** 0.5
    assert torch.all((dropped.mean(dim=0) - 0.25).abs() < margin)
    assert dropped.sum(dim=1).unique().numel() > 2, "layers are drawn one by one"


def test_the_blocks_are_left_as_they_were():
    model = tiny.model("bert")
    names = list(model.state_dict())
    acting = begin(model)
    assert list(model.state_dict()) == names
    acting.remove()
    acting.remove()
    assert not [one for one in model.modules() if "forward" in vars(one)]


def run(work, variant="bert", seed=0, **changes):
    model = tiny.model(variant, CLASSIFIER)
    options = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "work": work, "during": [LayerDrop()], **changes}
    return model, train(model, rows(), {"task": OBJECTIVES["task"]()}, seed=seed, **options)


@pytest.mark.parametrize("variant", ["bert", "roberta", "distilbert", "albert", "gpt2", "llama", "t5", "bart"])
def test_kept_layers_are_saved_and_loaded(tmp_path, variant):
    model, _ = run(tmp_path / "work", variant, max_steps=3, during=[LayerDrop(probability=0.5, keep=2)])
    assert all(len(stack.order) == 2 for stack in dissect(model).stacks)
    inputs = tiny.batch(model)
    lissom.save(model, tmp_path / "saved", tokenizer=None)
    again = lissom.load(tmp_path / "saved")
    assert torch.equal(tiny.outputs(model, inputs), tiny.outputs(again, inputs))


@pytest.mark.parametrize("variant", ["bert", "distilbert", "albert", "gpt2", "llama", "t5", "bart", "modernbert"])
def test_the_score_is_that_of_the_layers_that_stay(tmp_path, variant, monkeypatch):
    """What validation sees before the layers are cut is what the cut model answers."""
    seen = []
    during = [LayerDrop(probability=0.5, keep=2)]

    def validate(model):
        seen.append(tiny.outputs(model.eval(), tiny.batch(model)))
        return 0.0 if len(seen) < 2 else 1.0  # the last weights are the best ones

    monkeypatch.setattr("lissom.train.run.bf16_is_faster", lambda device: False)
    model, done = run(tmp_path, variant, validate=validate, during=during)
    assert done.best_step == done.steps
    torch.testing.assert_close(seen[-1], tiny.outputs(model, tiny.batch(model)), rtol=1e-5, atol=1e-6)


def test_every_other_layer_stays_by_its_weights(tmp_path):
    model = tiny.model("bert", CLASSIFIER, num_hidden_layers=6)
    blocks = [block.attention.self.query.weight for block in model.bert.encoder.layer]
    options = LayerDrop(keep=3)
    options.check(dissect(model), None)
    acting = options.begin(Editor(model), None)
    acting.bake()
    acting.end(Editor(model))
    assert [block.attention.self.query.weight for block in model.bert.encoder.layer] == [blocks[i] for i in (0, 2, 4)]


def test_what_keep_cannot_be_is_said_before_any_work():
    with pytest.raises(LissomError, match=r"LSM-318 .*keep 4 of the 3 layers"):
        LayerDrop(keep=4).check(dissect(tiny.model("bert")), None)
    with pytest.raises(LissomError, match="LSM-318"):
        LayerDrop(keep=2, by="last").check(dissect(tiny.model("gpt2", scale_attn_by_inverse_layer_idx=True)), None)
    with pytest.raises(LissomError, match="LSM-712"):
        LayerDrop(stack="decoder").check(dissect(tiny.model("bert")), None)
    LayerDrop(stack="decoder", keep=2).check(dissect(tiny.model("t5")), None)


class Stop:
    def __call__(self, phrase, fraction):
        if round(10 * fraction) == 7:
            raise KeyboardInterrupt


def test_an_interrupted_run_continues_to_the_same_bytes(tmp_path):
    whole, _ = run(tmp_path / "whole", save_seconds=0)
    other, _ = run(tmp_path / "other", save_seconds=0, seed=1)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", save_seconds=0, report=Stop())
    resumed, done = run(tmp_path / "cut", save_seconds=0)
    assert done.resumed == 6
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(whole.parameters(), other.parameters(), strict=True))


def test_it_changes_what_is_trained_in_decoders_too(tmp_path):
    """Where a model would fill a cache in training, nothing would be dropped."""
    for variant in ("gpt2", "llama"):
        dropped, _ = run(tmp_path / variant, variant, max_steps=2, during=[LayerDrop(probability=1.0)])
        fresh = tiny.model(variant, CLASSIFIER)
        block = dissect(fresh).stacks[0].blocks[0].path
        pairs = zip(fresh.get_submodule(block).parameters(), dropped.get_submodule(block).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert not torch.equal(fresh.score.weight, dropped.score.weight)


def test_a_share_of_the_layers_stays(tmp_path):
    model, _ = run(tmp_path, "bert", max_steps=1, during=[LayerDrop(probability=0.5, keep=0.3)])
    assert model.config.num_hidden_layers == 1
