"""Change the columns of a weight one after the other: what changing one loses, the columns after it make up for.

    e_j = (w_j - w'_j) / U_jj        w_k -= e_j · U_jk  for k > j        UᵀU = (H + damp)⁻¹

with H = 2 Σ xᵀx over the calibration tokens. w'_j is what a column becomes: rounded (GPTQ), or partly zero (SparseGPT).
Sources: Frantar et al. 2022, "GPTQ", algorithm 1; Frantar and Alistarh 2023, "SparseGPT", algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lissom.errors import LissomError

_TRIES = 4


def inverse_factor(hessian: Tensor, *, damp: float, path: str = "") -> Tensor:
    """Upper U (in, in) with UᵀU the inverse of the damped H (in, in), which is changed.

    damp: share of the mean of H's diagonal added to it; ten times as much where that is not enough, thrice at most. An
    input that is always zero stands alone, so that nothing makes up for it.
    Raises LissomError LSM-903 when H is not positive definite whatever the damping.
    """
    diagonal = hessian.diagonal()
    mean = diagonal.mean()
    diagonal[diagonal == 0] = 1.0  # never seen
    upper: Tensor
    for _ in range(_TRIES):
        damped = hessian + damp * mean * torch.eye(len(hessian), device=hessian.device)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not int(failed) and bool(torch.isfinite(upper).all()):
                return upper
        damp = max(damp, 0.001) * 10
    raise LissomError(
        903,
        "the inputs on the calibration texts give a matrix that is not positive definite",
        place=path,
        remedy="Give more texts, or raise damp.",
    )


def sweep(rest: Tensor, upper: Tensor, change: Callable[[int], Tensor], *, lazy: int) -> None:
    """Go over the columns in turn. What they become is what `change` gave; `rest` holds errors afterwards.

    rest: the weight with a column in each row, (in, out), changed in place. When `change` is asked for column j, its
        row j, and those up to the next multiple of `lazy`, hold what all columns before have left them to make up for.
    upper: from `inverse_factor`, (in, in), in the order of `rest`.
    change: what column j becomes, (out,).  lazy: columns between two updates of all later ones.
    """
    columns = len(rest)
    for start in range(0, columns, lazy):
        end = min(start + lazy, columns)
        errors = torch.empty_like(rest[start:end])
        for j in range(start, end):
            made = change(j)
            errors[j - start] = rest[j].sub_(made).div_(upper[j, j])
            rest[j + 1 : end].addr_(upper[j, j + 1 : end], errors[j - start], alpha=-1)
        rest[end:].addmm_(upper[start:end, end:].t(), errors, alpha=-1)
