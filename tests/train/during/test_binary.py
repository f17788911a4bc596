"""split_binary and binarize: what is packed is what was trained, stages and their teachers, resuming, and refusals."""

import copy
import json

import pytest
import torch

import lissom
from lissom.edits import Editor, ShareLayers, edit_from_json
from lissom.errors import LissomError
from lissom.export import export
from lissom.methods import Given
from lissom.methods.distillation.tune import Tune
from lissom.nn.binary import BinaryLinear
from lissom.nn.fake_levels import LearnedLevels
from lissom.nn.levels import ATTENTION, AttentionLevels
from lissom.recipe import Recipe
from lissom.train.during.binarize import Binarize
from lissom.train.during.fake_quant import FakeQuant
from lissom.train.during.split_binary import SplitBinary
from lissom.train.objectives import OBJECTIVES
from lissom.train.run import train
from tests import tiny
from tests.train.during.families import CLASSIFIER, rows
from tests.train.during.running import Stop, reloaded, same_bytes
from tests.train.tiny_rows import tokenizer, topics

torch.set_num_threads(1)
KINDS = [
    SplitBinary(),
    SplitBinary(activations="int4", scales="matrix"),
    SplitBinary(activations="none"),
    Binarize(),
    Binarize(bits=(2, 1), attention="bool", scales="matrix"),
]
IDS = ["split", "split-int4", "split-float", "bit", "bibert"]
REPLACEABLE = ["bert", "roberta", "distilbert", "albert", "electra", "gpt2", "llama", "modernbert"]
FIXED = ["t5", "bart", "mpnet", "deberta-v2"]
LEARN = {"logits": OBJECTIVES["logits"](), "hidden": OBJECTIVES["hidden"]()}


def trained(model, during):
    """`model` while `during` acts on it, at its end; every border is away from 0, where signs of integers would tie."""
    editor = Editor(model)
    acting = during.begin(editor, None)
    with torch.no_grad():
        model.train()
        for progress in (0.0, 1.0):
            acting.at(progress)
            model(**tiny.batch(model), **({"use_cache": False} if model.can_generate() else {}))
        for one in model.modules():
            if isinstance(one, LearnedLevels):
                one.shift.add_(0.013)
    model.eval()
    return editor, acting


@pytest.mark.parametrize("during", KINDS, ids=IDS)
@pytest.mark.parametrize("family", [*REPLACEABLE, *FIXED])
def test_what_is_packed_is_what_was_trained(family, during, tmp_path):
    model = tiny.model(family, CLASSIFIER)
    if family in FIXED and isinstance(during, Binarize):
        with pytest.raises(LissomError, match=r"LSM-715 binarize: the attention of .* cannot be replaced"):
            during.check(Editor(model).anatomy(), None)
        return
    inputs, plain = tiny.batch(model), tiny.outputs(model, tiny.batch(model))
    editor, acting = trained(model, during)
    fake = tiny.outputs(model, inputs)
    assert not torch.equal(fake, plain)
    acting.bake()
    acting.end(editor)
    packed = tiny.outputs(model, inputs)
    rounds = during.name == "split_binary" and during.activations == "int8"  # a rounding may fall to the other side
    torch.testing.assert_close(packed, fake, atol=1e-2 if rounds else 1e-5, rtol=1e-3 if rounds else 1e-5)
    assert not any(isinstance(one, LearnedLevels) for one in model.modules())
    maps = [slot.module for slot in editor.anatomy().linears()]
    assert all(isinstance(one, BinaryLinear) for one in maps)
    assert all(one.weight.numel() <= one.planes * one.out_features * (one.in_features + 7) // 8 for one in maps)
    found = reloaded(model, tmp_path / "out")
    if isinstance(during, Binarize):
        assert found.config._attn_implementation == ATTENTION
        assert "attn_implementation" not in (tmp_path / "out" / "config.json").read_text()


def test_transformers_alone_loads_bi_attention(tmp_path):
    from transformers import AutoModelForSequenceClassification

    model = tiny.model("bert", CLASSIFIER)
    editor, acting = trained(model, Binarize(attention="bool"))
    acting.bake()
    acting.end(editor)
    lissom.save(model, tmp_path / "out")
    for options in ({}, {"attn_implementation": "eager"}):
        found = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", **options).eval()
        assert torch.equal(tiny.outputs(found, tiny.batch(model)), tiny.outputs(model, tiny.batch(model)))


@pytest.mark.parametrize("scales", ["row", "matrix"])
def test_the_split_changes_no_answer(scales):
    """The ternary model and its split answer the same, in torch and packed."""
    model, twin = tiny.model("bert", CLASSIFIER), tiny.model("bert", CLASSIFIER)
    inputs = tiny.batch(model)
    ternary = FakeQuant(weights="ternary", activations="none", scales=scales).begin(Editor(model), None)
    wanted = tiny.outputs(model, inputs)
    SplitBinary(activations="none", scales=scales).begin(Editor(twin), None)
    torch.testing.assert_close(tiny.outputs(twin, inputs), wanted, atol=1e-5, rtol=1e-4)
    ternary.remove()


def test_weights_that_are_not_packed_stay_unrounded():
    model = tiny.model("bert", CLASSIFIER)
    before = copy.deepcopy(model)
    editor = Editor(model)
    during = FakeQuant(weights="ternary", pack=False)
    acting = during.begin(editor, None)
    acting.at(1.0)
    acting.bake()
    acting.end(editor)
    assert same_bytes(model, before)
    assert not editor.record.edits
    assert not during.packs


@pytest.mark.parametrize("during", KINDS, ids=IDS)
def test_taken_out_it_leaves_no_trace(during):
    model = tiny.model("gpt2", CLASSIFIER)
    before, kind = copy.deepcopy(model), model.config._attn_implementation
    acting = during.begin(Editor(model), None)
    acting.at(1.0)
    acting.remove()
    acting.remove()
    assert model.state_dict().keys() == before.state_dict().keys()
    for name, one in model.state_dict().items():
        torch.testing.assert_close(one, before.state_dict()[name], atol=1e-6, rtol=1e-6)
    assert not any(one._forward_pre_hooks for one in model.modules())
    assert model.config._attn_implementation == kind


def run(work, during, family="bert", **options):
    teacher = tiny.model(family, CLASSIFIER, seed=1)
    model = tiny.model(family, CLASSIFIER)
    options = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, **options}
    train(model, rows(), LEARN, during=[during], teachers=[teacher], work=work, **options)
    return model


@pytest.mark.parametrize("during", [SplitBinary(), Binarize(bits=(2, 1)), Binarize(bits=(3, 2, 1), attention="bool")])
def test_an_interrupted_run_continues_to_the_same_bytes(during, tmp_path):
    whole = run(tmp_path / "whole", during, save_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", during, save_seconds=0, report=Stop())
    assert same_bytes(run(tmp_path / "cut", during, save_seconds=0), whole)


def test_each_stage_is_taught_by_the_one_before(tmp_path):
    """The second stage learns from the student that ended the first, in its bits, which never changes again."""
    asked = []

    class Watching(Binarize):
        def begin(self, editor, teacher):
            acting = super().begin(editor, teacher)
            before = acting.before

            def note(engine, inputs):
                before(engine, inputs)
                bits = {one.bits for one in engine.teachers[0].modules() if isinstance(one, LearnedLevels)}
                own = {one.bits for one in engine.model.modules() if isinstance(one, LearnedLevels)}
                asked.append((bits, own, engine.teachers[0]))
                acting.sums = [*getattr(acting, "sums", []), _sum(engine.teachers[0])]
                self.sums.append(acting.sums[-1])

            acting.before = note
            return acting

    during = Watching(bits=(2, 1))
    object.__setattr__(during, "sums", [])
    run(tmp_path, during)
    assert [(bits, own) for bits, own, _ in asked] == 5 * [(set(), {2})] + 5 * [({2}, {1})]
    teacher = asked[-1][2]
    assert all(one is teacher for _, _, one in asked[5:])
    assert not teacher.training
    assert not any(one.requires_grad for one in teacher.parameters())
    assert len(set(during.sums[5:])) == 1


def _sum(model):
    return float(sum(one.double().sum() for one in model.state_dict().values()))


def test_levels_and_both_halves_are_trained(tmp_path):
    model = run(tmp_path / "bit", Binarize())
    scales = [float(one.levels.scale) for one in model.modules() if isinstance(one, BinaryLinear)]
    shifts = [float(one.levels.shift) for one in model.modules() if isinstance(one, BinaryLinear)]
    assert len(set(scales)) == len(scales)
    assert all(shifts)
    halves = run(tmp_path / "split", SplitBinary())
    (layer, *_) = [one for one in halves.modules() if isinstance(one, BinaryLinear)]
    first, second = layer.weight_scale.chunk(2)
    assert not torch.allclose(first, second, rtol=1e-4)


def test_shared_layers_stay_shared(tmp_path):
    model = tiny.model("bert", CLASSIFIER)
    editor = Editor(model)
    editor.apply(ShareLayers(stack="encoder", source=(0, 0, 0)))
    for during in (Binarize(), SplitBinary(activations="int4")):
        one = copy.deepcopy(model)
        made, acting = trained(one, during)
        fake = tiny.outputs(one, tiny.batch(one))
        acting.bake()
        acting.end(made)
        torch.testing.assert_close(tiny.outputs(one, tiny.batch(one)), fake, atol=1e-5, rtol=1e-5)
        reloaded(one, tmp_path / during.name)


@pytest.mark.parametrize("during", KINDS, ids=IDS)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_graph_answers_as_torch(family, during, tmp_path):
    model = tiny.model(family, CLASSIFIER, num_hidden_layers=2)
    editor, acting = trained(model, during)
    acting.bake()
    acting.end(editor)
    figures = export(model, "onnx", tmp_path / "out").parity
    assert figures["cosine"] > 0.9999
    assert figures.get("unrounded_largest_difference", figures["largest_difference"]) < 1e-3


@pytest.mark.parametrize("name", ["binarize", "split_binary"])
def test_a_preview_has_the_structure_of_the_result(name):
    editor = Editor(tiny.model("bert", CLASSIFIER))
    step = Tune(while_=({name: {}},))
    assert step.reached().name == "BITS"
    step.preview(editor, Given())
    kinds = {type(one).__name__ for one in editor.record.edits}
    assert kinds == {"PackBinary", "PackBits"} | ({"LevelAttention"} if name == "binarize" else set())


@pytest.mark.parametrize("name", ["binarize", "split_binary"])
def test_nothing_else_acts_beside_it(name):
    model = tiny.model("bert", CLASSIFIER, num_labels=2, vocab_size=14)
    step = Tune(learn={"logits": {}}, while_=({"magnitude": {}}, {name: {}}))
    given = Given(data=topics(), tokenizer=tokenizer(), teacher=model)
    with pytest.raises(LissomError, match=rf"LSM-319 while: magnitude stands beside {name}, which goes with nothing"):
        step.check(Editor(model).anatomy(), given)


def test_binarize_wants_a_teacher():
    model = tiny.model("bert", CLASSIFIER, num_labels=2, vocab_size=14)
    step = Tune(learn={"task": {}}, while_=({"binarize": {}},))
    with pytest.raises(LissomError, match="LSM-317 while: binarize works with a teacher"):
        step.check(Editor(model).anatomy(), Given(data=topics(), tokenizer=tokenizer()))


def test_what_is_packed_cannot_be_trained():
    editor, acting = trained(tiny.model("bert", CLASSIFIER), Binarize())
    acting.bake()
    acting.end(editor)
    with pytest.raises(LissomError, match="LSM-713"):
        Tune().check(editor.anatomy(), Given())


@pytest.mark.parametrize(
    "change", [{"bits": 0}, {"bits": 9}, {"bits": "1"}, {"planes": 0}, {"planes": 1000}, {"rule": "x"}]
)
def test_records_from_files_are_checked(change):
    kind = {"edit": "LevelAttention", "bits": 1, "rule": "bool"} if "rule" in change else {"edit": "PackBinary"}
    with pytest.raises(LissomError, match="LSM-452"):
        edit_from_json(json.loads(json.dumps({**kind, **change})))


def test_a_preview_of_the_recipes_holds_levels_in_each_attention():
    editor = Editor(tiny.model("llama", CLASSIFIER))
    Recipe.read("bibert").steps[0].preview(editor, Given())
    found = [one for one in editor.model.modules() if isinstance(one, AttentionLevels)]
    assert [one.rule for one in found] == ["bool"] * 3
    assert all(one.weights is None for one in found)
