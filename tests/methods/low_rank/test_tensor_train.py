"""The table of tokens as a chain of three cores."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import lissom
from lissom.data import load_data
from lissom.edits import Editor, KeepHidden, KeepVocab, TensorTrain
from lissom.errors import LissomError
from lissom.methods import Given
from lissom.methods.low_rank.tensor_train import TensorTrain as Method
from lissom.methods.low_rank.tensor_train import column_sizes, decompose, rank_within, row_sizes
from lissom.nn import TensorTrainEmbedding
from lissom.recipe import Recipe
from tests import tiny

HEAD = "AutoModelForSequenceClassification"


def filled(count: int, cores: tuple[torch.Tensor, ...], rows, columns, ranks) -> TensorTrainEmbedding:
    made = TensorTrainEmbedding(count, rows, columns, ranks)
    with torch.no_grad():
        for one, core in zip((made.first, made.middle, made.last), cores, strict=True):
            one.copy_(core)
    return made


def test_a_row_by_hand():
    """Rank 1, one column a core: row 5 = (1, 0, 1) is first[1] · middle[0] · last[1] = 2 · 3 · 7."""
    cores = (torch.tensor([[1.0], [2]]), torch.tensor([[3.0], [5]]), torch.tensor([[1.0], [7]]))
    table = filled(7, cores, (2, 2, 2), (1, 1, 1), (1, 1))
    assert table(torch.tensor([5])).tolist() == [[42]]
    assert table.weight.flatten().tolist() == [3, 21, 5, 35, 6, 42, 10]


def test_rank_2_by_hand():
    """The middle core adds over both ranks: (1, 2) [[1, 0], [0, 10]] (3, 4)ᵀ = 3 + 80."""
    cores = (torch.tensor([[1.0, 2]]), torch.tensor([[1.0, 0, 0, 10]]), torch.tensor([[3.0, 4]]))
    assert filled(1, cores, (1, 1, 1), (1, 1, 1), (2, 2))(torch.tensor([0])).tolist() == [[83]]


def test_full_rank_is_the_table_and_less_is_not():
    weight = torch.randn(11, 12, generator=torch.Generator().manual_seed(0))
    rows, columns = (2, 3, 2), (3, 2, 2)
    full = (6, 4)
    table = filled(11, decompose(weight, rows, columns, full), rows, columns, full)
    torch.testing.assert_close(table.weight, weight)
    ids = torch.tensor([[0, 10], [7, 7]])
    torch.testing.assert_close(table(ids), weight[ids])
    errors = []
    for rank in (1, 2, 3, 4):
        cores = decompose(weight, rows, columns, (rank, rank))
        errors.append((filled(11, cores, rows, columns, (rank, rank)).weight - weight).norm())
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(("count", "width"), [(30522, 384), (49152, 576), (99, 32), (7, 5), (1, 1)])
def test_sizes_fit(count: int, width: int):
    rows, columns = row_sizes(count), column_sizes(width)
    assert count <= math.prod(rows) <= 1.05 * count + 8
    assert math.prod(columns) == width
    for ratio in (0.02, 0.1, 0.5):
        rank = rank_within(int(ratio * count * width), rows, columns)
        middle, ends = rows[1] * columns[1], rows[0] * columns[0] + rows[2] * columns[2]
        assert rank * rank * middle + rank * ends <= ratio * count * width
    assert column_sizes(384) == (8, 6, 8)
    assert row_sizes(1000) == (10, 10, 10)


def test_cut_trained_packed_saved_and_exported(tmp_path: Path):
    steps = "  - tensor_train: {ratio: 0.3}\n  - tune: {epochs: 1, learn: {task: {}}}\n  - int8: {mode: dynamic}\n"
    data = {"train": tiny.labelled_texts(16), "validation": tiny.labelled_texts(8, seed=1)}
    model = tiny.model("bert", HEAD)
    whole = model.get_input_embeddings().weight.numel()
    recipe = Recipe.parse(f"lissom: 1\nsteps:\n{steps}", "x")
    result = lissom.compress(model, recipe, data=data, tokenizer=tiny.tokenizer())
    table = result.model.get_input_embeddings()
    assert isinstance(table, TensorTrainEmbedding)
    assert sum(one.numel() for one in table.parameters()) <= 0.3 * whole
    result.save(tmp_path / "out")
    loaded, inputs = lissom.load(tmp_path / "out"), tiny.batch(result.model)
    assert torch.equal(tiny.outputs(loaded, inputs), tiny.outputs(result.model, inputs))
    result.export("onnx", tmp_path / "exported")  # refuses to be written unless it answers as torch does
    with pytest.raises(LissomError, match=r"LSM-451.*Cut the vocabulary first"):
        Editor(loaded).apply(KeepVocab.of(loaded, range(90)))
    with pytest.raises(LissomError, match=r"LSM-451.*Cut the hidden width first"):
        Editor(loaded).apply(KeepHidden(channels=tuple(range(16))))


def test_a_language_model_with_a_head_of_its_own_generates(tmp_path: Path):
    editor = Editor(tiny.model("llama", "AutoModelForCausalLM"))
    Method(ratio=0.5).apply(editor, Given())
    lissom.save(editor.model, tmp_path / "out")
    start = torch.tensor([[1, 5, 7]])
    both = (editor.model, lissom.load(tmp_path / "out"))
    said = [one.generate(start, max_new_tokens=4, do_sample=False) for one in both]
    assert torch.equal(*said)


def test_what_stays(caplog: pytest.LogCaptureFixture):
    """A table that a head shares; one that no chain is small enough for."""
    tied = Editor(tiny.model("gpt2", "AutoModelForCausalLM"))
    Method().apply(tied, Given())
    small = Editor(tiny.model("bert"))
    Method(ratio=0.001).apply(small, Given(data=load_data({"train": tiny.labelled_texts(2)})))
    assert not tied.record.edits
    assert not small.record.edits
    assert "tied to lm_head" in caplog.text
    assert "no tensor train of the token table" in caplog.text
    path = "embeddings.word_embeddings"
    with pytest.raises(LissomError, match=rf"LSM-451 {path}: .*for a table of 99 x 32"):
        small.apply(TensorTrain(path=path, rows=(2, 2, 2), columns=(2, 4, 4), ranks=(1, 1)))
    with pytest.raises(LissomError, match=rf"LSM-451 {path}: .*ranks \(1099511627776, 1\) for a table of 99 x 32"):
        small.apply(TensorTrain(path=path, rows=(5, 5, 4), columns=(2, 4, 4), ranks=(2**40, 1)))
