"""Tables of vectors: k-means and gradients by hand, the share of the noise, and what a table gives."""

from __future__ import annotations

import pytest
import torch

from lissom.nn.vectors import FakeVectors, fitted, indexed, nearest

torch.set_num_threads(1)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_nearest_vector_by_hand() -> None:
    table = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    index, gaps = nearest(torch.tensor([[1.0, 1.0], [3.0, 3.0], [1.5, 2.0]]), table)
    assert index.tolist() == [0, 1, 0]
    assert gaps.tolist() == pytest.approx([2.0, 1.0, 6.25])


def test_k_means_by_hand() -> None:
    vectors = torch.tensor([[0.0, 0.0], [0.0, 2.0], [10.0, 0.0], [12.0, 0.0], [50.0, 50.0]])
    table = fitted(vectors, 3)
    assert sorted(map(tuple, table.tolist())) == [(0.0, 1.0), (11.0, 0.0), (50.0, 50.0)]


def test_few_different_vectors_are_kept() -> None:
    weight = random(7, 4)[[0, 1, 2, 0, 1, 2, 0]].repeat(1, 3)
    index, table = indexed(weight, 4, 256)
    assert table.shape == (256, 4)
    torch.testing.assert_close(table[index].flatten(1), weight)


def test_no_better_table_is_one_step_away() -> None:
    """Where every vector of the table is the mean of what is nearest to it, the error cannot fall by that."""
    vectors = random(4000, 4)
    table = fitted(vectors, 16)
    index, gaps = nearest(vectors, table)
    means = torch.stack([vectors[index == i].mean(0) for i in range(16)])
    after = nearest(vectors, means)[1].sum()
    assert after <= gaps.sum()
    assert after > 0.995 * gaps.sum()
    assert gaps.sum() < 0.6 * vectors.square().sum()


def test_the_gradient_of_a_table_is_a_mean_by_hand() -> None:
    made = FakeVectors(torch.zeros(2, 4), 2, count=3)
    made.index.copy_(torch.tensor([[0, 1], [0, 0]]))
    made.fixed.fill_(True)
    made(torch.zeros(2, 4)).backward(torch.tensor([[1.0, 2.0, 5.0, 6.0], [3.0, 4.0, 5.0, 9.0]]))
    assert made.table.grad.tolist() == [[3.0, 5.0], [5.0, 6.0], [0.0, 0.0]]


@pytest.mark.parametrize("transposed", [False, True])
def test_noise_leaves_whole_vectors_out_and_the_others_grow(transposed: bool) -> None:
    weight = random(40, 48).requires_grad_()
    made = FakeVectors(weight, 8, transposed=transposed)
    made.noise = 0.25
    torch.manual_seed(0)
    y = made(weight)
    rows, fake = (one.detach().t() if transposed else one.detach() for one in (weight, y))
    vectors, plain = fake.reshape(-1, 8), rows.reshape(-1, 8)
    gone = (vectors == 0).all(1)
    assert gone.float().mean() == pytest.approx(0.25, abs=0.08)
    torch.testing.assert_close(vectors[~gone], plain[~gone] / 0.75)
    y.sum().backward()
    torch.testing.assert_close(weight.grad, (y.detach() != 0) / 0.75)
    assert torch.equal(made.eval()(weight), weight)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_table_is_found_once_and_used_from_then_on(transposed: bool) -> None:
    weight = random(40, 48)
    made = FakeVectors(weight, 4, count=16, transposed=transposed)
    made.fix(weight)
    index, table = indexed(weight.t() if transposed else weight, 4, 16)
    dense = table[index].flatten(1)
    assert torch.equal(made(weight), dense.t() if transposed else dense)
    made.fix(weight + 1)
    assert torch.equal(made.table, table)
