"""Earth mover's distance between the layers of two models: how much of each student layer goes to which teacher layer.

    min over flows f of sum f_ij · d_ij,  with sum over j of f_ij = w_i^S, sum over i of f_ij = w_j^T

for costs d (student layers, teacher layers) and the layers' weights w, which add up to 1. After each batch layers that
are dear to transport lose weight to others:

    w_i = softmax over i of ( sum over l of c_l / c_i ),  c_i = sum over j of f_ij · d_ij / w_i

Source: Li et al. 2020 (BERT-EMD), section 3, transport and cost attention. Differs: no layer's weight falls below about
0.001, since one of weight zero could never come back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    Array = np.ndarray[Any, np.dtype[np.float64]]

_LEAST = 1e-3


def shares(student: int, teacher: int) -> nn.Module:
    """The layers' weights, equal at first, as buffers: they are a part of a checkpoint."""
    import torch
    from torch import nn

    made = nn.Module()
    made.register_buffer("student", torch.full((student,), 1 / student))
    made.register_buffer("teacher", torch.full((teacher,), 1 / teacher))
    return made


def moved(costs: Tensor, shares: nn.Module) -> Tensor:
    """Sum of f_ij · d_ij for `costs` d (student layers, teacher layers); the gradient goes through d alone.

    The weights in `shares` are brought up to date. Costs that are NaN or infinite give such a sum and change nothing.
    """
    import torch

    if not torch.isfinite(costs).all():
        return costs.sum()
    cost = costs.detach().double().cpu().numpy()
    supply, demand = (_unit(one.double().cpu().numpy()) for one in shares.buffers())
    found = flow(cost, supply, demand)
    spent = found * cost
    for buffer, weights, dear in zip(
        shares.buffers(), (supply, demand), (spent.sum(axis=1), spent.sum(axis=0)), strict=True
    ):
        buffer.copy_(torch.from_numpy(reweighed(dear / weights)))
    return (torch.from_numpy(found).to(costs) * costs).sum()


def flow(cost: Array, supply: Array, demand: Array) -> Array:
    """The cheapest flow (m, n) that empties `supply` (m,) into `demand` (n,), both adding up to 1."""
    import numpy as np
    from scipy.optimize import linprog

    m, n = cost.shape
    rows, columns = np.kron(np.eye(m), np.ones(n)), np.kron(np.ones(m), np.eye(n))
    found = linprog(
        cost.ravel() / max(cost.max(), 1e-30),  # its tolerances are absolute
        A_eq=np.vstack([rows, columns[:-1]]),  # the last one follows from the others
        b_eq=np.concatenate([supply, demand[:-1]]),
        method="highs",
    )
    return np.asarray(found.x, dtype=np.float64).reshape(m, n).clip(min=0.0)


def reweighed(unit: Array) -> Array:
    """Weights of layers from what it cost to move a unit of each."""
    import numpy as np

    cheap = unit.sum() / unit.clip(min=1e-30)
    weights = np.exp(cheap - cheap.max())
    return _unit(_unit(weights).clip(min=_LEAST))


def _unit(weights: Array) -> Array:
    found: Array = weights / weights.sum()
    return found
