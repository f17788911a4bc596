import pytest
import torch

import lissom
from lissom.data import load_data
from lissom.edits import Editor, PackSplit
from lissom.errors import LissomError
from lissom.methods import Given
from lissom.methods.low_rank.svd import Svd
from lissom.methods.quantization.split_int8 import SplitInt8
from lissom.nn.split import SplitInt8Linear
from tests import tiny


def given(rows=16):
    data = load_data({"train": tiny.labelled_texts(rows), "validation": tiny.labelled_texts(4, seed=1)})
    return Given(data=data, tokenizer=tiny.tokenizer(), max_length=32)


def model(factor=1.0):
    """A model in which the third input of the maps after a norm is `factor` times as large."""
    made = tiny.model("bert", "AutoModelForSequenceClassification")
    norm = made.bert.encoder.layer[0].attention.output.LayerNorm
    with torch.no_grad():
        norm.weight[2] = factor
        norm.bias[2] = factor
    return made


def test_the_column_that_is_large_stays_apart():
    editor = Editor(model(50.0))
    up = editor.anatomy().stacks[0].blocks[0].ffn.up
    weight = up.weight.detach().clone()
    inputs = tiny.batch(editor.model)
    whole = tiny.outputs(editor.model, inputs)
    SplitInt8().apply(editor, given())
    packed = editor.anatomy().stacks[0].blocks[0].ffn.up.module
    assert packed.weight_positions.tolist() == [2]
    assert torch.equal(packed.dense()[:, 2], weight[:, 2])
    assert packed.codes()[:, 2].tolist() == [0] * len(weight)
    assert sum(isinstance(one, SplitInt8Linear) for one in editor.model.modules()) == 3 * 6
    apart = (tiny.outputs(editor.model, inputs) - whole).norm()
    other = Editor(model(50.0))
    SplitInt8(threshold=1e9).apply(other, given())
    assert apart < (tiny.outputs(other.model, inputs) - whole).norm()


def test_a_lower_threshold_keeps_more_columns():
    counts = []
    for threshold in (0.5, 2.0, 1e9):
        editor = Editor(model())
        SplitInt8(threshold=threshold).apply(editor, given())
        counts.append(sum(editor.record.edits[-1].columns.values()))
    assert counts[0] > counts[1] > counts[2] == 0


def test_factors_are_packed_and_twice_is_once(tmp_path):
    editor = Editor(model())
    Svd(ratio=0.5).apply(editor, Given())
    SplitInt8(threshold=1.0).apply(editor, given())
    SplitInt8(threshold=0.1).apply(editor, given())
    assert sum(isinstance(one, SplitInt8Linear) for one in editor.model.modules()) == 3 * 6 * 2
    assert len(editor.record.edits) == 2
    lissom.save(editor.model, tmp_path / "out")
    inputs = tiny.batch(editor.model)
    again = lissom.load(tmp_path / "out")
    assert torch.equal(tiny.outputs(again, inputs), tiny.outputs(editor.model, inputs))


def test_what_cannot_be_calibrated_is_refused():
    editor = Editor(model())
    with pytest.raises(LissomError, match=r"LSM-317 needs texts to look at. Give --data"):
        SplitInt8().apply(editor, Given())
    with torch.no_grad():
        editor.model.bert.embeddings.LayerNorm.weight[0] = torch.nan
    with pytest.raises(LissomError, match=r"LSM-901 .*layer\.0\.attention\..*: an input holds NaN"):
        SplitInt8().apply(editor, given())
    assert not editor.record.edits
    assert not any(one._forward_hooks for one in editor.model.modules())


@pytest.mark.parametrize("count", [-1, 10**6])
def test_counts_that_do_not_fit_are_refused(count):
    path = "bert.encoder.layer.0.intermediate.dense"
    with pytest.raises(LissomError, match=f"LSM-451 {path}: {count} columns of"):
        Editor(model()).apply(PackSplit(columns={path: count}))


def test_columns_elsewhere_are_refused():
    editor = Editor(model())
    path = "bert.encoder.layer.0.intermediate.dense"
    tensors = {f"{path}.weight_positions": torch.tensor([10**6], dtype=torch.int32)}
    with pytest.raises(LissomError, match=f"LSM-451 {path}: column 1000000 is kept in floating point"):
        editor.apply(PackSplit(columns={path: 1}), tensors)
