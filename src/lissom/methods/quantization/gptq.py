"""Store weights in few bits, column by column: what rounding a column loses, the columns after it make up for.

    code_j = round(w_j / s + z)    w_k -= (w_j - (code_j - z) · s) / U_jj · U_jk  for k > j    UᵀU = (H + damp)⁻¹

with H = 2 Σ xᵀx over the calibration tokens. Each block is done on the outputs of the done blocks before it.
Source: Frantar et al. 2022, "GPTQ", algorithm 1; the order of columns and the scales from the weights as they were
are those of the authors' code (`act-order`, `static-groups`).
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lissom.anatomy import Anatomy, Slot
from lissom.errors import LissomError
from lissom.methods.quantization.calibrated import Calibrated
from lissom.methods.quantization.groups import Stored
from lissom.nn.grouped import grid

_LAZY = 128  # columns between two updates of all later ones, as published
_TRIES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gptq(Calibrated):
    """Rounding that makes up for its errors."""

    name: ClassVar[str] = "gptq"
    source: ClassVar[str] = "Frantar et al. 2022, algorithm 1"

    damp: Annotated[float, Field(ge=0, le=1, description="share of the mean of H's diagonal added to it")] = 0.01
    act_order: Annotated[bool, Field(description="columns of large inputs first")] = True

    def chosen(self, slots: list[Slot], hessians: dict[str, Tensor], anatomy: Anatomy) -> dict[str, Stored]:
        """Each map by itself, see `solve`."""
        return {slot.path: self.solve(slot.weight.detach().float(), hessians[slot.path], slot.path) for slot in slots}

    def solve(self, weight: Tensor, hessian: Tensor, path: str = "") -> Stored:
        """Codes, scales and zero points for a weight (out, in) float32 and H (in, in), neither of which is changed.

        Columns that are always zero on the texts are rounded to the nearest.
        Raises LissomError LSM-901 for NaN and infinity, LSM-903 when H is not positive definite whatever the damping.
        """
        if not bool(torch.isfinite(hessian).all()):
            raise LissomError(901, "an input holds NaN or infinity on a calibration text", place=path)
        try:
            scale, zero = grid(weight, bits=self.bits, group=self.group)
        except ValueError as error:
            raise LissomError(901, str(error), place=path) from error
        columns = weight.shape[1]
        order = torch.arange(columns, device=weight.device)
        if self.act_order:
            order = hessian.diagonal().argsort(descending=True, stable=True)
        upper = self._factor(hessian[order][:, order], path)
        rest, codes = weight[:, order].clone(), torch.empty_like(weight)
        for start in range(0, columns, _LAZY):
            end = min(start + _LAZY, columns)
            errors = torch.empty_like(rest[:, start:end])
            for j in range(start, end):
                part = int(order[j]) // self.group
                s, z = scale[:, part], zero[:, part]
                code = (rest[:, j] / s + z).round_().clamp_(0, 2**self.bits - 1)
                loss = (rest[:, j] - (code - z) * s) / upper[j, j]
                rest[:, j + 1 : end] -= loss[:, None] * upper[j, j + 1 : end]
                errors[:, j - start], codes[:, order[j]] = loss, code
            rest[:, end:] -= errors @ upper[start:end, end:]
        return Stored(codes.long(), scale, zero)

    def _factor(self, hessian: Tensor, path: str) -> Tensor:
        """Upper U with UᵀU the inverse of the damped H (in, in), which is changed."""
        diagonal = hessian.diagonal()
        mean = diagonal.mean()
        diagonal[diagonal == 0] = 1.0  # never seen: alone, so that nothing makes up for it
        damp = self.damp
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
