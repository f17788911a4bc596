from __future__ import annotations

import logging

import pytest
import torch

import lissom
from lissom import edits
from lissom.anatomy import dense_weight
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods import Given
from lissom.methods.low_rank.kronecker import Kronecker, nearest, shape
from lissom.methods.low_rank.svd import Svd
from lissom.methods.quantization.int8 import Int8
from lissom.methods.quantization.rtn import Rtn
from lissom.nn import Int8Linear, KroneckerEmbedding, KroneckerLinear
from lissom.recipe import parameters
from lissom.train.during.units import parts
from tests import tiny

CLASSIFIER = "AutoModelForSequenceClassification"


def test_nearest_by_hand():
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]])
    left, right = nearest(torch.kron(a, b), (1, 2))
    assert torch.allclose(torch.kron(left, right), torch.tensor([[3.0, 6.0], [4.0, 8.0]]), atol=1e-5)
    assert float(left.norm()) == pytest.approx(float(right.norm()))


def test_nothing_is_nearer():
    """All that is left over is what the other parts of the rearranged matrix hold."""
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    left, right = nearest(weight, (3, 2))
    blocks = torch.stack([weight[2 * i : 2 * i + 2, 4 * j : 4 * j + 4].flatten() for i in range(3) for j in range(2)])
    rest = torch.linalg.svdvals(blocks)[1:].norm()
    assert torch.allclose((weight - torch.kron(left, right)).norm(), rest, rtol=1e-5)


@pytest.mark.parametrize(
    ("rows", "columns", "ratio", "wanted"),
    [
        (4, 4, 0.5, (2, 2)),  # 4 + 4 numbers, as (4, 1) and (1, 4) hold, whose product has rank 1
        (384, 384, 0.26, (192, 192)),
        (1536, 384, 0.26, (768, 192)),  # (384, 384) and (4, 1) have as many numbers and the same rank
        (7, 5, 0.5, (7, 1)),
        (2, 2, 0.5, None),
    ],
)
def test_shapes_by_hand(rows: int, columns: int, ratio: float, wanted: tuple[int, int] | None):
    found = shape(rows, columns, ratio)
    assert found == wanted
    if found is not None:
        p, q = found
        assert p * q + (rows // p) * (columns // q) <= ratio * rows * columns


@pytest.mark.parametrize("variant", ["bert", "gpt2", "llama", "t5-gated"])
def test_maps_and_table_and_packed_and_saved(variant: str, tmp_path):
    head = "AutoModelForSeq2SeqLM" if variant.startswith("t5") else CLASSIFIER
    model = tiny.model(variant, head)
    before = parameters(model)
    Kronecker(ratio=0.25, table=4).apply(Editor(model), Given())
    assert all(isinstance(slot.module, KroneckerLinear) for slot in Editor(model).anatomy().linears())
    assert isinstance(model.get_input_embeddings(), KroneckerEmbedding) == (variant != "t5-gated")  # shared by stacks
    assert parameters(model) < 0.6 * before
    Int8().apply(Editor(model), Given())
    assert all(isinstance(slot.module.left, Int8Linear) for slot in Editor(model).anatomy().linears())
    lissom.save(model, tmp_path / "out")
    inputs = tiny.batch(model)
    assert torch.equal(tiny.outputs(lissom.load(tmp_path / "out"), inputs), tiny.outputs(model, inputs))


def test_every_second_layer_and_groups_of_bits():
    model = tiny.model("gpt2", "AutoModelForCausalLM")
    Kronecker(ratio=0.5, every=2).apply(Editor(model), Given())
    kinds = [
        {type(slot.module).__name__ for slot in block.slots()} for block in Editor(model).anatomy().stacks[0].blocks
    ]
    assert kinds == [{"Conv1D"}, {"KroneckerLinear"}, {"Conv1D"}]
    Rtn(group=8).apply(Editor(model), Given())
    assert torch.isfinite(tiny.outputs(model, tiny.batch(model))).all()


def test_a_table_that_the_head_shares_stays(caplog: pytest.LogCaptureFixture):
    model = tiny.model("gpt2", "AutoModelForCausalLM")
    with caplog.at_level(logging.WARNING, "lissom"):
        Kronecker(table=2).apply(Editor(model), Given())
    assert type(model.get_input_embeddings()) is torch.nn.Embedding
    assert "the token table is tied to lm_head" in caplog.text


def test_layers_that_share_share_their_factors():
    editor = Editor(tiny.model("bert"))
    editor.apply(edits.ShareLayers(source=(0, 0, 2)))
    Kronecker().apply(editor, Given())
    first, second, third = (block.ffn.up.module for block in editor.anatomy().stacks[0].blocks)
    assert first.left.weight is second.left.weight
    assert first.left.weight is not third.left.weight


def test_thin_maps_become_products_and_products_thin_maps():
    editor = Editor(tiny.model("bert"))
    for step in (Svd(ratio=0.5), Kronecker(ratio=0.3), Svd(ratio=0.5)):
        before = parameters(editor.model)
        step.apply(editor, Given())
        assert torch.isfinite(tiny.outputs(editor.model, tiny.batch(editor.model))).all()
        assert parameters(editor.model) <= before


@pytest.mark.parametrize("kept", [range(8, 24), [row for row in range(32) if row % 8 in (1, 6)]], ids=["A", "B"])
def test_whole_blocks_can_go_and_the_same_rows_of_all(kept):
    """A has 4 rows, B has 8: rows 8 to 23 are those of two rows of A, every eighth is one row of B."""
    editor = Editor(tiny.model("bert"))
    slot = editor.anatomy().stacks[0].blocks[0].ffn.down
    editor.apply(edits.Kronecker(lefts={slot.path: (4, 4)}))
    slot.module.bias.data.copy_(torch.arange(32.0))
    wanted = dense_weight(slot.module)
    slot.keep(out=list(kept))
    assert torch.equal(slot.weight, wanted[list(kept)])
    assert slot.module.bias.tolist() == list(kept)


def test_others_cannot():
    editor = Editor(tiny.model("bert"))
    stack = editor.anatomy().stacks[0]
    path = stack.blocks[0].ffn.up.path
    editor.apply(edits.Kronecker(lefts={path: (4, 4)}))
    neurons = tuple(tuple(range(1, block.ffn.width)) for block in stack.blocks)
    with pytest.raises(LissomError, match=rf"LSM-451 {path}: of a Kronecker product whole blocks can go, or the same"):
        editor.apply(edits.KeepNeurons(stack=stack.name, neurons=neurons))
    with pytest.raises(LissomError, match=rf"LSM-451 {path}: the rows of a Kronecker product cannot go one by one"):
        parts(editor.anatomy())


@pytest.mark.parametrize(
    ("edit", "cause"),
    [
        (edits.Kronecker(lefts={"pooler.dense": (5, 1)}), "a factor of size 5 does not divide 32"),
        (edits.Kronecker(tables={"embeddings.word_embeddings": 3}), "a factor of size 3 does not divide 32"),
        (edits.Kronecker(tables={"pooler.dense": 2}), "no plain embedding table stands here"),
    ],
)
def test_factors_that_do_not_fit(edit: edits.Kronecker, cause: str):
    with pytest.raises(LissomError, match=cause):
        Editor(tiny.model("bert")).apply(edit)


def test_a_table_of_another_width_is_refused_early():
    with pytest.raises(LissomError, match="LSM-318 table 5 does not divide the 32 columns of the token table"):
        Kronecker(table=5).check(Editor(tiny.model("bert")).anatomy(), Given())
