import pytest
import torch

from lissom.edits import Editor
from lissom.methods import Given
from lissom.methods.low_rank.svd import Svd, factors, rank_for
from lissom.methods.quantization.int8 import Int8
from lissom.nn import LowRankLinear
from tests import tiny


def test_factors_by_hand():
    up, down = factors(torch.diag(torch.tensor([9.0, 4.0, 1.0])), 2)
    assert torch.allclose(up @ down, torch.diag(torch.tensor([9.0, 4.0, 0.0])), atol=1e-6)
    assert torch.allclose(up.abs(), torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]]), atol=1e-6)


def test_full_rank_is_the_same_map():
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    up, down = factors(weight, 5)
    assert torch.allclose(up @ down, weight, atol=1e-5)


@pytest.mark.parametrize(
    ("ratio", "rows", "columns", "rank"), [(0.5, 384, 384, 96), (0.5, 384, 1536, 153), (1e-6, 4, 4, 1)]
)
def test_the_rank_keeps_the_share_of_parameters(ratio: float, rows: int, columns: int, rank: int):
    assert rank_for(ratio, rows, columns) == rank
    assert rank == 1 or rank * (rows + columns) <= ratio * rows * columns


def test_every_linear_map_in_the_blocks_is_factorized():
    model = tiny.model("gpt2", "AutoModelForCausalLM")
    before = sum(p.numel() for p in model.transformer.h.parameters() if p.dim() == 2)
    Svd(ratio=0.5).apply(Editor(model), Given())
    found = [one for one in model.modules() if isinstance(one, LowRankLinear)]
    after = sum(p.numel() for p in model.transformer.h.parameters() if p.dim() == 2)
    assert len(found) == 3 * 4
    assert 0.4 * before < after <= 0.5 * before


def test_ratio_one_changes_nothing():
    model = tiny.model("bert")
    Svd(ratio=1).apply(Editor(model), Given())
    assert not Editor(model).record.edits


def test_packed_layers_are_factorized_each_by_itself():
    editor = Editor(tiny.model("bert"))
    Int8().apply(editor, Given())
    wanted = {slot.path: slot.weight for slot in editor.anatomy().linears()}
    Svd(ratio=0.9).apply(editor, Given())
    for slot in editor.anatomy().linears():
        rest = torch.linalg.svdvals(wanted[slot.path])[slot.module.rank :]
        assert torch.allclose((slot.weight - wanted[slot.path]).norm(), rest.norm(), atol=1e-4), slot.path
