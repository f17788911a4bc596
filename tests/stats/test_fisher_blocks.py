"""Fisher information in blocks: by hand, against autograd, and the least loss among what may stay."""

import pytest
import torch
from torch import nn

from lissom.anatomy import Slot
from lissom.errors import LissomError
from lissom.stats.fisher_blocks import block_fisher, blocks_of, removed, saliency


class Toy(nn.Module):
    """Two numbers in, one out, and half of the square of what is off as its loss."""

    def __init__(self, weight):
        super().__init__()
        self.map = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.map.weight.data.copy_(weight)

    def forward(self, x, labels=None):
        class Answer:
            loss = None if labels is None else ((self.map(x) - labels) ** 2).sum() / 2

        return Answer


def test_fisher_by_hand():
    # gradients are (y - label) x: for w = (1, 1) they are 1·(1, 0), 2·(0, 1) and -1·(1, 1)
    model = Toy(torch.tensor([[1.0, 1.0]]))
    cases = [([1.0, 0.0], 0.0), ([0.0, 1.0], -1.0), ([1.0, 1.0], 3.0)]
    texts = [{"x": torch.tensor([x]), "labels": torch.tensor([[y]])} for x, y in cases]
    found = block_fisher(model, [Slot(model, "map")], texts, size=2, damp=0.1)["map"]
    plain = torch.tensor([[2.0, 1.0], [1.0, 5.0]]) / 3
    torch.testing.assert_close(found, (plain + 0.1 * (7 / 6) * torch.eye(2))[None])


def test_scores_and_update_by_hand():
    # The inverse of F is [[1, -2], [-2, 5]]; scores are 1 / 2 and 9 / 10. Without the first weight the second becomes
    # 3 + 2 · 1 / 1 = 5.
    fisher, weight = torch.tensor([[[5.0, 2.0], [2.0, 1.0]]]), torch.tensor([[1.0, 3.0]])
    torch.testing.assert_close(saliency(weight, fisher), torch.tensor([[0.5, 0.9]]))
    gone = torch.tensor([[True, False]])
    torch.testing.assert_close(removed(weight, fisher, gone), torch.tensor([[0.0, 5.0]]))
    torch.testing.assert_close(removed(weight, fisher, ~gone), torch.tensor([[1 + 2 * 3 / 5, 0.0]]))
    assert torch.equal(removed(weight, fisher, gone & False), weight)


def test_nothing_that_stays_could_be_better():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 7, generator=generator)
    root = torch.randn(6, 4, 9, generator=generator)
    fisher = root @ root.transpose(1, 2)
    gone = torch.rand(3, 7, generator=generator) < 0.5

    def loss(new):
        apart = blocks_of(new - weight, 4)
        return float((apart[:, None] @ fisher @ apart[:, :, None]).sum())

    best = removed(weight, fisher, gone)
    assert bool((best[gone] == 0).all())
    for _ in range(20):
        moved = best + 0.1 * torch.randn(3, 7, generator=generator).masked_fill(gone, 0)
        assert loss(best) < loss(moved)


def test_refusals():
    model = Toy(torch.ones(1, 2))
    with pytest.raises(LissomError, match="LSM-821"):
        block_fisher(model, [Slot(model, "map")], [{"x": torch.ones(1, 2)}], size=2, damp=0.1)
    texts = [{"x": torch.full((1, 2), torch.nan), "labels": torch.ones(1, 1)}]
    with pytest.raises(LissomError, match="LSM-902"):
        block_fisher(model, [Slot(model, "map")], texts, size=2, damp=0.1)
