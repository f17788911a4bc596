"""Kronecker products against the matrices that they stand for."""

from __future__ import annotations

import pytest
import torch

from lissom.nn import KroneckerEmbedding, KroneckerLinear


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_by_hand():
    module = KroneckerLinear((2, 1), (1, 2))
    with torch.no_grad():
        module.left.weight.copy_(torch.tensor([[2.0], [3.0]]))
        module.right.weight.copy_(torch.tensor([[1.0, -1.0]]))
        module.bias.copy_(torch.tensor([10.0, 20.0]))
    assert module.dense().tolist() == [[2, -2], [3, -3]]
    assert module(torch.tensor([[5.0, 1.0]])).tolist() == [[2 * 4 + 10, 3 * 4 + 20]]


@pytest.mark.parametrize(("left", "right"), [((4, 3), (2, 5)), ((2, 6), (7, 2)), ((1, 1), (3, 4)), ((8, 1), (1, 9))])
def test_it_multiplies_by_the_product(left: tuple[int, int], right: tuple[int, int]):
    module = KroneckerLinear(left, right)
    x = drawn(2, 3, module.in_features)
    wanted = torch.nn.functional.linear(x, torch.kron(module.left.weight, module.right.weight), module.bias)
    torch.testing.assert_close(module(x), wanted)
    assert module.dense().shape == (module.out_features, module.in_features)


def test_rows_of_a_table_by_hand():
    table = KroneckerEmbedding(3, 4, 2, padding_idx=0)
    with torch.no_grad():
        table.table.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, 4.0]]))
        table.part.copy_(torch.tensor([1.0, -1.0]))
    assert table(torch.tensor([[2, 1]])).tolist() == [[[3, -3, 4, -4], [1, -1, 2, -2]]]
    assert table.weight.tolist() == [[0, 0, 0, 0], [1, -1, 2, -2], [3, -3, 4, -4]]
    assert (table.num_embeddings, table.embedding_dim) == (3, 4)
