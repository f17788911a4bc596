"""Groups of input channels: which maps have them, by hand, against one scale, saved and exported."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import lissom
from lissom.data import load_data
from lissom.edits import Editor, PackInputGroups
from lissom.errors import LissomError
from lissom.export import export
from lissom.methods import Given
from lissom.methods.quantization.int8 import Int8
from lissom.methods.quantization.peg import Peg, group_columns
from lissom.nn.input_groups import InputGroupsLinear
from lissom.nn.static import StaticInt8Linear
from tests import tiny
from tests.export.made import as_run, classifier, only_graph


def given(rows: int = 32) -> Given:
    data = load_data({"train": tiny.labelled_texts(rows), "validation": tiny.labelled_texts(4, seed=1)})
    return Given(data=data, tokenizer=tiny.tokenizer(), max_length=32)


def test_groups_by_hand() -> None:
    assert group_columns(torch.tensor([5.0, 1.0, 9.0, 2.0, 3.0]), 2).tolist() == [1, 0, 1, 0, 0]
    assert group_columns(torch.tensor([2.0, 1.0]), 4).tolist() == [2, 0]


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5"])
def test_readers_of_the_residual_have_groups_and_are_saved(kind: str, tmp_path: Path) -> None:
    model = tiny.model(kind) if kind != "t5" else tiny.model(kind, "AutoModelForSequenceClassification")
    editor, inputs = Editor(model), tiny.batch(model)
    whole = tiny.outputs(model, inputs)
    Peg(groups=4).apply(editor, given())
    for block in (block for stack in editor.anatomy().stacks for block in stack.blocks):
        for slot in (block.attention.q, block.attention.k, block.attention.v, block.ffn.up):
            assert isinstance(slot.module, InputGroupsLinear)
        assert isinstance(block.attention.o.module, StaticInt8Linear)
        assert isinstance(block.ffn.down.module, StaticInt8Linear)
    answer = tiny.outputs(editor.model, inputs)
    assert (answer - whole).norm() < 0.1 * whole.norm()
    lissom.save(editor.model, tmp_path)
    assert torch.equal(tiny.outputs(lissom.load(tmp_path), inputs), answer)


def test_loud_channels_harm_less_than_with_one_scale() -> None:
    model = tiny.model("bert")
    block = Editor(model).anatomy().stacks[0].blocks[0]
    with torch.no_grad():
        model.get_submodule(block.norms[0]).weight[3] *= 40
        block.ffn.up.weight[:, 3] /= 40
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = block.ffn.up.watch(lambda x, y: seen.append((x, y)))
    tiny.outputs(model, tiny.batch(model))
    handle.remove()
    [(x, wanted)] = seen
    errors = []
    for method in (Peg(groups=4), Int8(mode="static", calibrator="min_max")):
        editor = Editor(copy.deepcopy(model))
        method.apply(editor, given())
        errors.append(float((editor.model.get_submodule(block.ffn.up.path)(x) - wanted).norm()))
    assert errors[0] < 0.5 * errors[1]


def test_a_graph_multiplies_whole_numbers(tmp_path: Path) -> None:
    model = classifier(hidden_size=64, intermediate_size=256)
    Peg(groups=4).apply(Editor(model), given())
    artifact = export(model, "onnx", tmp_path / "out", tokenizer=tiny.tokenizer())
    assert artifact.parity["cosine"] > 0.9999
    assert artifact.parity["unrounded_largest_difference"] < 1e-5
    fused = as_run(only_graph(artifact.folder), tmp_path)
    assert fused["MatMulIntegerToFloat"] == 2 * (4 * 4 + 2)


def test_refusals() -> None:
    editor = Editor(tiny.model("bert"))
    with pytest.raises(LissomError, match="LSM-317"):
        Peg().check(editor.anatomy(), Given())
    with pytest.raises(LissomError, match="LSM-829 4 calibration texts are too few"):
        Peg().apply(editor, given(4))
    with pytest.raises(LissomError, match="LSM-451 PackInputGroups: 0 groups of columns, of 1 to 256"):
        editor.apply(PackInputGroups(groups=0))
    path = "encoder.layer.0.intermediate.dense"
    wrong = {f"{path}.input_group": torch.full((32,), 2, dtype=torch.uint8)}
    with pytest.raises(LissomError, match=f"LSM-451 {path}: a column is of group 2, of 2 groups"):
        editor.apply(PackInputGroups(groups=2, linears=(path,)), wrong)
