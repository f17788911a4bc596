"""The best thin maps by each measure, against matrices that are written down and against what else could be chosen."""

from __future__ import annotations

import pytest
import torch

from lissom.methods.low_rank.metrics import Metric, root

TABLE = torch.diag(torch.tensor([9.0, 4.0, 1.0]))


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_factors_by_hand():
    up, down = Metric().factors(TABLE, 2)
    assert torch.allclose(up @ down, torch.diag(torch.tensor([9.0, 4.0, 0.0])), atol=1e-6)
    assert torch.allclose(up.abs(), torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]]), atol=1e-6)
    assert Metric().costs(TABLE).tolist() == pytest.approx([81, 16, 1])


@pytest.mark.parametrize(
    ("metric", "costs", "left"),
    [
        (Metric(rows=torch.tensor([0.1, 0.5, 3.0])), [9, 4, 0.81], [0.0, 4.0, 1.0]),  # 0.9, 2 and 3 squared
        (Metric(inputs=torch.diag(torch.tensor([0.1, 0.5, 3.0]))), [9, 4, 0.81], [0.0, 4.0, 1.0]),
        (Metric(rows=torch.zeros(3)), [81, 16, 1], [9.0, 4.0, 0.0]),  # a loss that feels nothing says nothing
    ],
)
def test_what_matters_stays_by_hand(metric: Metric, costs: list[float], left: list[float]):
    up, down = metric.factors(TABLE, 2)
    assert torch.allclose(up @ down, torch.diag(torch.tensor(left)), atol=1e-5)
    assert metric.costs(TABLE).tolist() == pytest.approx(costs)


def test_inputs_of_one_direction_by_hand():
    x = torch.tensor([[1.0, 1.0, 0.0]])  # all that ever comes in: W x = (9, 4, 0)
    metric = Metric(inputs=root(x.t() @ x))
    up, down = metric.factors(TABLE, 1)
    assert torch.allclose(up @ down @ x[0], torch.tensor([9.0, 4.0, 0.0]), atol=1e-5)
    assert metric.costs(TABLE).tolist() == pytest.approx([97, 0, 0], abs=1e-4)


@pytest.mark.parametrize("kind", ["weights", "rows", "inputs", "both"])
def test_full_rank_is_the_same_map_and_the_sum_of_the_costs_is_what_is_lost(kind: str):
    weight, x = drawn(5, 7), drawn(40, 7, seed=1) * torch.linspace(0.1, 3, 7)
    rows = torch.linspace(0.2, 2, 5) if kind in ("rows", "both") else None
    metric = Metric(rows=rows, inputs=root(x.t() @ x) if kind in ("inputs", "both") else None)
    up, down = metric.factors(weight, 5)
    assert torch.allclose(up @ down, weight, atol=1e-4)
    assert torch.allclose(up.norm(dim=0), down.norm(dim=1), rtol=1e-4)
    up, down = metric.factors(weight, 3)
    error = (weight - up @ down) * (1.0 if rows is None else rows[:, None])
    error = error if metric.inputs is None else error @ x.t()
    assert float(error.square().sum()) == pytest.approx(float(metric.costs(weight)[3:].sum()), rel=1e-3)


def test_with_the_inputs_the_outputs_change_less_than_with_the_weights_alone():
    weight, x = drawn(6, 8), drawn(100, 8, seed=1) @ drawn(8, 8, seed=2)
    lost = {}
    for name, metric in {"weights": Metric(), "inputs": Metric(inputs=root(x.t() @ x))}.items():
        up, down = metric.factors(weight, 3)
        lost[name] = float((x @ (weight - up @ down).t()).norm())
    assert lost["inputs"] < 0.9 * lost["weights"]


def test_any_root_gives_the_same_map():
    weight, x = drawn(6, 4), drawn(50, 4, seed=1)
    moments = x.t() @ x
    products = [
        up @ down
        for one in (root(moments), torch.linalg.cholesky(moments))  # DRONE's and SVD-LLM's
        for up, down in [Metric(inputs=one).factors(weight, 2)]
    ]
    assert torch.allclose(*products, atol=1e-4)
    assert torch.allclose(root(moments) @ root(moments).t(), moments, atol=1e-4)
