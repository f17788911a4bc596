"""What errors of a linear map cost, and the thin maps that are the best ones by that measure.

    min ‖D (W - A B) L‖_F  over A (out, r) and B (r, in):    D W L = U S Vᵀ    A = D⁻¹ U_r    B = U_rᵀ D W

since D A B L = U_r U_rᵀ (D W L) is the nearest matrix of rank r to D W L (Eckart and Young 1936). Without L, A = W V_r
and B = V_rᵀ are the same. Dropping the part of σ_k costs σ_k². No inverse of L is taken, so inputs that fill only a
subspace do no harm.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

_LEAST = 1e-6  # of the largest weight of a row: one that the loss never felt can still be divided by


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """rows: the diagonal of D (out,), not negative; None is 1.  inputs: L (in, k); None is the identity."""

    rows: Tensor | None = None
    inputs: Tensor | None = None

    def costs(self, weight: Tensor) -> Tensor:
        """σ² of D W L, largest first: what each part of `weight` (out, in) costs that is left out. Float64."""
        found: Tensor = torch.linalg.svdvals(self._seen(weight))
        return found.double().square()

    def factors(self, weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """up (out, rank) and down (rank, in), float32, of which column and row of each part have the same norm."""
        full, rows = weight.detach().float(), self._rows()
        u, _, vt = torch.linalg.svd(self._seen(weight), full_matrices=False)
        if self.inputs is None:  # A B = W V_r V_rᵀ is the same and divides by nothing
            up, down = full @ vt[:rank].t(), vt[:rank]
        else:
            left = u[:, :rank]
            up, down = left if rows is None else left / rows, left.t() @ (full if rows is None else rows * full)
        wide, tall = down.norm(dim=1), up.norm(dim=0)
        even = torch.where(tall > 0, wide / tall, 1.0).sqrt()
        return up * even, down / even[:, None]

    def _rows(self) -> Tensor | None:
        if self.rows is None or not bool(self.rows.any()):
            return None
        return self.rows.float().clamp_min(_LEAST * float(self.rows.max()))[:, None]

    def _seen(self, weight: Tensor) -> Tensor:
        """D W L."""
        seen, rows = weight.detach().float(), self._rows()
        seen = seen if rows is None else rows * seen
        return seen if self.inputs is None else torch.mm(seen, self.inputs)


def root(moments: Tensor) -> Tensor:
    """L (in, in) float32 with L Lᵀ = `moments`, a symmetric (in, in) without negative eigenvalues but for rounding."""
    values, vectors = torch.linalg.eigh(moments.double())
    found: Tensor = vectors * values.clamp_min(0).sqrt()
    return found.float()
