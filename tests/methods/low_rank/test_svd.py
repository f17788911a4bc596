from __future__ import annotations

import copy

import pytest
import torch

import lissom
from lissom import edits
from lissom.data import load_data
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods import Given
from lissom.methods.low_rank.by_loss import smallest
from lissom.methods.low_rank.svd import Svd
from lissom.methods.quantization.int8 import Int8
from lissom.nn import LowRankLinear
from lissom.stats.batches import cut
from lissom.stats.sensitivity import answers_of, moved
from tests import tiny

KINDS = ("weights", "fisher", "input-size", "inputs")
RANKS = ("uniform", "energy")


def given(**splits) -> Given:
    data = {"train": tiny.labelled_texts(24), "validation": tiny.labelled_texts(4, seed=1)}
    return Given(data=load_data({**data, **splits}), tokenizer=tiny.tokenizer(), max_length=32)


def classifier(variant: str = "bert"):
    head = "AutoModelForSeq2SeqLM" if variant == "t5" else "AutoModelForSequenceClassification"
    return tiny.model(variant, head)


def matrices(model) -> int:
    """Numbers of the maps in the blocks, shared ones once."""
    blocks = [model.get_submodule(one.path) for stack in Editor(model).anatomy().stacks for one in stack.blocks]
    return sum(one.numel() for one in {id(p): p for b in blocks for p in b.parameters() if p.dim() == 2}.values())


def biases(model) -> int:
    """Numbers of T5's tables of positions, which lie in its blocks."""
    return sum(one.weight.numel() for name, one in model.named_modules() if name.endswith("relative_attention_bias"))


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("by", KINDS)
@pytest.mark.parametrize("variant", ["bert", "gpt2", "llama", "t5"])
def test_half_of_the_parameters_and_saved_and_loaded(variant: str, by: str, ranks: str, tmp_path):
    if variant == "t5" and by == "fisher":
        pytest.skip("its texts have no labels here")
    model = classifier(variant)
    before = matrices(model)
    gets, step = given(), Svd(ratio=0.5, by=by, ranks=ranks)
    step.check(Editor(model).anatomy(), gets)
    step.apply(Editor(model), gets)
    left = matrices(model) - biases(model)
    assert 0.3 * (before - biases(model)) < left <= 0.5 * (before - biases(model))
    lissom.save(model, tmp_path / "out")
    inputs = tiny.batch(model)
    assert torch.equal(tiny.outputs(lissom.load(tmp_path / "out"), inputs), tiny.outputs(model, inputs))


def test_each_block_is_fitted_to_what_the_factorized_ones_before_it_give():
    """The last map of the last block, on its own inputs in the result, is the best of its rank."""
    model, gets = classifier(), given()
    original = {slot.path: slot.weight.detach().clone() for slot in Editor(model).anatomy().linears()}
    path = "bert.encoder.layer.2.attention.self.query"
    Svd(ratio=0.5, by="inputs").apply(Editor(model), gets)
    slot = next(one for one in Editor(model).anatomy().linears() if one.path == path)
    seen: list[torch.Tensor] = []
    for batch in cut(gets.calibration(model, 256), 8):
        handle = slot.watch(lambda x, _, mask=batch["attention_mask"]: seen.append(x[mask.bool()].double()))
        with torch.no_grad():
            model(**batch)
        handle.remove()
    x, error = torch.cat(seen), original[path].double() - slot.weight.double()
    best = torch.linalg.svdvals(original[path].double() @ x.t())[slot.module.rank :]
    assert float((x @ error.t()).detach().norm()) == pytest.approx(float(best.norm()), rel=1e-3)


@pytest.mark.parametrize("ranks", RANKS)
def test_ratio_one_changes_nothing(ranks: str):
    model = tiny.model("bert")
    Svd(ratio=1, ranks=ranks).apply(Editor(model), Given())
    assert not Editor(model).record.edits


def test_packed_layers_are_factorized_each_by_itself():
    editor = Editor(tiny.model("bert"))
    Int8().apply(editor, Given())
    wanted = {slot.path: slot.weight for slot in editor.anatomy().linears()}
    Svd(ratio=0.9).apply(editor, Given())
    for slot in editor.anatomy().linears():
        rest = torch.linalg.svdvals(wanted[slot.path])[slot.module.rank :]
        assert torch.allclose((slot.weight - wanted[slot.path]).norm(), rest.norm(), atol=1e-4), slot.path


@pytest.mark.parametrize("by", ["weights", "inputs"])
def test_thin_maps_become_thinner(by: str):
    editor = Editor(classifier())
    whole = matrices(editor.model)
    for count in (1, 2):
        Svd(ratio=0.6, by=by).apply(editor, given())
        assert matrices(editor.model) <= 0.6**count * whole
    assert all(isinstance(slot.module.down, torch.nn.Linear) for slot in editor.anatomy().linears())


def test_thin_maps_that_save_nothing_become_dense():
    editor = Editor(tiny.model("bert"))
    paths = [slot.path for slot in editor.anatomy().linears()]
    editor.apply(edits.Factorize(ranks={paths[0]: 32, paths[1]: 2}))
    wanted = editor.model.get_submodule(paths[0]).dense().detach()
    Svd(ratio=1).apply(editor, Given())
    assert type(editor.model.get_submodule(paths[0])) is torch.nn.Linear
    assert torch.equal(editor.model.get_submodule(paths[0]).weight, wanted)
    assert isinstance(editor.model.get_submodule(paths[1]), LowRankLinear)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("by", ["weights", "inputs"])
def test_layers_that_share_share_their_factors(by: str, ranks: str):
    editor = Editor(classifier())
    editor.apply(edits.ShareLayers(source=(0, 0, 2)))
    before = matrices(editor.model)
    Svd(ratio=0.5, by=by, ranks=ranks).apply(editor, given())
    first, second, third = (block.ffn.up.module for block in editor.anatomy().stacks[0].blocks)
    assert first.up.weight is second.up.weight
    assert first.up.weight is not third.up.weight
    assert matrices(editor.model) <= 0.5 * before


@pytest.mark.parametrize("by", ["weights", "inputs"])
def test_a_larger_budget_of_loss_leaves_less_and_none_nothing(by: str):
    left, far = [], []
    for budget in (1e-12, 2e-4, 1e6):
        model, gets = classifier(), given()
        batches = list(gets.calibration(model, 64))
        before = [answers_of(model, batch) for batch in batches]
        Svd(ratio=0.25, by=by, ranks="loss", budget=budget).apply(Editor(model), gets)
        left.append(matrices(model))
        each = [moved(a, answers_of(model, b), b["attention_mask"])[1] for a, b in zip(before, batches, strict=True)]
        far.append(float(torch.cat(each).detach().mean()))
        assert far[-1] <= budget
    whole = matrices(classifier())
    assert left[0] == whole > left[1] > left[2]
    assert left[2] <= 0.25 * whole
    assert far[0] == 0 < far[1] < far[2]


def test_the_smallest_rank_that_fits():
    tried = []

    def fits(rank: int) -> bool:
        tried.append(rank)
        return rank >= 6

    assert smallest([1, 2, 4, 6, 8, 9, 10, 12], fits) == 6
    assert len(tried) == 3
    assert smallest([1, 2, 4], fits) == 0


def test_ranks_by_loss_need_texts_and_share():
    editor = Editor(classifier())
    with pytest.raises(LissomError, match="LSM-317 ranks: loss looks at texts"):
        Svd(ranks="loss").check(editor.anatomy(), Given())
    editor.apply(edits.ShareLayers(source=(0, 0, 2)))
    Svd(ratio=0.25, ranks="loss", budget=1e6).apply(editor, given())
    first, second, _ = (block.ffn.up.module for block in editor.anatomy().stacks[0].blocks)
    assert first.up.weight is second.up.weight


@pytest.mark.parametrize("ranks", RANKS)
def test_a_plan_shows_the_shapes_without_texts(ranks: str):
    model = classifier()
    twin = copy.deepcopy(model)
    step = Svd(ratio=0.5, by="inputs", ranks=ranks)
    step.preview(Editor(twin), Given())
    step.apply(Editor(model), given())
    assert matrices(twin) == pytest.approx(matrices(model), rel=0.2)


@pytest.mark.parametrize("by", ["fisher", "input-size", "inputs"])
def test_it_needs_texts(by: str):
    with pytest.raises(
        LissomError, match=f"LSM-317 by: {by} looks at texts. Give --data, or choose by: weights and ranks"
    ):
        Svd(by=by).check(Editor(tiny.model("bert")).anatomy(), Given())


def test_fisher_needs_labels_and_floats():
    editor = Editor(classifier())
    texts = {"train": {"text": tiny.labelled_texts(8)["text"]}}
    bare = Given(data=load_data({**texts, "validation": tiny.labelled_texts(4)}), tokenizer=tiny.tokenizer())
    with pytest.raises(LissomError, match="LSM-8"):
        Svd(by="fisher").apply(editor, bare)
    Int8().apply(editor, Given())
    with pytest.raises(LissomError, match="LSM-713"):
        Svd(by="fisher").check(editor.anatomy(), given())
