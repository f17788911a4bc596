"""Store weights in few bits, column by column: what rounding a column loses, the columns after it make up for.

    code_j = round(w_j / s + z)    w_k -= (w_j - (code_j - z) · s) / U_jj · U_jk  for k > j    UᵀU = (H + damp)⁻¹

with H = 2 Σ xᵀx over the calibration tokens. Each block is done on the outputs of the done blocks before it. The ends
of each group are drawn in, by 0 to 4/5 in 20 steps, to where Σ_j H_jj e_j² over its rounding errors e is least.
Source: Frantar et al. 2022, "GPTQ", algorithm 1; the order of columns, scales from the weights as they were and the
search for ends are those of the authors' code (`act-order`, `static-groups`, `mse`). Differs: that search weighs the
columns by H, where the authors' sums |e|^2.4.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lissom.anatomy import Anatomy, Slot
from lissom.methods.quantization.calibrated import Calibrated
from lissom.methods.quantization.groups import Stored
from lissom.nn.grouped import groups_of
from lissom.stats.blocks import Step
from lissom.stats.finite import check_finite_inputs
from lissom.stats.hessian import hessians_of
from lissom.stats.sweep import inverse_factor, sweep

_LAZY = 64  # columns between two updates of all later ones
_CLIP = 0.8  # of the ends of groups, at most, as in the authors' code


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gptq(Calibrated):
    """Rounding that makes up for its errors."""

    name: ClassVar[str] = "gptq"
    source: ClassVar[str] = "Frantar et al. 2022, algorithm 1"

    damp: Annotated[float, Field(ge=0, le=1, description="share of the mean of H's diagonal added to it")] = 0.01
    act_order: Annotated[bool, Field(description="columns of large inputs first")] = True

    def chosen(self, step: Step, slots: list[Slot], anatomy: Anatomy) -> dict[str, Stored]:
        """Maps that read one tensor are solved together: rows do not see each other."""
        together: dict[int, list[Slot]] = {}
        hessians = hessians_of(step, slots)
        for slot in slots:
            if slot.path in hessians:
                together.setdefault(id(hessians[slot.path]), []).append(slot)
        stored: dict[str, Stored] = {}
        for same in together.values():
            weight = torch.cat([slot.weight.detach().float() for slot in same])
            found = self.solve(weight, hessians[same[0].path], ", ".join(slot.path for slot in same))
            start = 0
            for slot in same:
                rows = slice(start, start := start + slot.out_features)
                stored[slot.path] = Stored(found.codes[rows], found.scale[rows], found.zero[rows])
        return stored

    def solve(self, weight: Tensor, hessian: Tensor, path: str = "") -> Stored:
        """Codes, scales and zero points for a weight (out, in) float32 and H (in, in), neither of which is changed.

        Columns that are always zero on the texts are rounded to the nearest.
        Raises LissomError LSM-901 for NaN and infinity, LSM-903 when H is not positive definite whatever the damping.
        """
        check_finite_inputs(hessian, path)
        rows, columns = weight.shape
        part = (torch.arange(columns, device=weight.device) // self.group).expand(rows, -1)
        empty, power = weight.new_zeros(rows, groups_of(columns, self.group)), hessian.diagonal()
        _, scale, zero = self.drawn_in(weight, path, lambda e: empty.scatter_add(1, part, e * e * power), _CLIP)
        order = torch.arange(columns, device=weight.device)
        if self.act_order:
            order = hessian.diagonal().argsort(descending=True, stable=True)
        upper = inverse_factor(hessian[order][:, order], damp=self.damp, path=path)
        rest, codes = weight.t()[order], torch.empty(columns, len(weight), dtype=torch.uint8, device=weight.device)
        parts = (order // self.group).tolist()
        scales, zeros = scale.t().contiguous(), zero.t().contiguous()  # a column of weights is a row here: side by side

        def change(j: int) -> Tensor:
            s, z = scales[parts[j]], zeros[parts[j]]
            code = (rest[j] / s).add_(z).round_().clamp_(0, 2**self.bits - 1)
            codes[j] = code
            return code.sub_(z).mul_(s)

        sweep(rest, upper, change, lazy=_LAZY)
        return Stored(codes[order.argsort()].t().contiguous(), scale, zero)
