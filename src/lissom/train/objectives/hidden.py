"""The teacher's hidden states, layer by layer.

    L = mean over student layers m of loss( H_m^S · W, target_m )

with H_m^S (rows, width) of student layer m and a trained W, one for all layers, where the widths differ. What a row and
the target are:

uniform, last, skip, pairs: the state of the teacher layer that m is mapped to. Jiao et al. 2020 (TinyBERT), eq. 8, with
    g(m) = m · N / M for M student and N teacher layers, 0 the output of the embeddings; skip: Sun et al. 2019 (PKD),
    section 3.2, which compares normalised states of the first token.
attend: sum over all teacher layers n of a_mn · H_n^T, a_mn = softmax over n of <H_m^S · W, H_n^T>, row by row.
    Passban et al. 2021 (ALP-KD), section 3.
combine: W_m · [H_a^T; H_b^T; ...], a trained combination of the adjacent teacher layers that m stands for.
    Wu et al. 2020 (CKD), section 3. Differs: W_m gives the student's width, so nothing else is trained.
random: PKD's skip, with teacher layers that are a random sorted choice, made anew `draws` times in a run.
    Haidar et al. 2022 (RAIL-KD), section 3.
transport: not a target a layer but the earth mover's distance over all pairs of layers, see `transport`.
    Li et al. 2020 (BERT-EMD), section 3. Differs: hidden states only; its attention maps and embeddings are left out.

Losses: mse; cosine, 1 - cos, DistilBERT's with `layers: last` (Sanh et al. 2019, section 3); normalised, the squared
distance of states of length 1 (PKD, section 3.2), which is 2 · (1 - cos).
Of an encoder-decoder the mean of the losses of both rows of layers: Li et al. 2022 (DQ-BART), section 3.2.
Differs from all: a mean over layers, where most sum, so that `weight` means the same at any depth; real tokens only.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from pydantic import Field

from lissom.train.objectives.base import Answers, Objective, Read
from lissom.train.objectives.layers import Layer, drawn, groups, pairs, sides, states
from lissom.train.objectives.positions import At, fit, gather
from lissom.train.objectives.transport import moved, shares

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hidden(Objective):
    """Learns what the teacher's layers hand on."""

    name: ClassVar[str] = "hidden"
    two_stacks: ClassVar[bool] = True
    reads: ClassVar[frozenset[Read]] = frozenset({"hidden_states"})
    source: ClassVar[str] = (
        "Jiao et al. 2020 (TinyBERT), eq. 8; Sun et al. 2019 (PKD), section 3.2; attend: Passban et al. 2021 (ALP-KD); "
        "combine: Wu et al. 2020 (CKD); random: Haidar et al. 2022 (RAIL-KD); transport: Li et al. 2020 (BERT-EMD)"
    )

    layers: Annotated[
        Literal["uniform", "last", "skip", "attend", "combine", "random", "transport"]
        | tuple[tuple[Layer, Layer], ...],
        Field(
            description="uniform: all, embeddings too; last; skip: all between; or [student, teacher] pairs. "
            "attend, combine: mixtures of teacher layers; random: skip with layers drawn; transport: all with all."
        ),
    ] = "uniform"
    at: Annotated[
        At, Field(description="Compares every real token, the first of each text, or the mean of each text.")
    ] = "tokens"
    loss: Annotated[
        Literal["mse", "cosine", "normalised"],
        Field(
            description="mse; 1 - cosine, which ignores the states' size; or squared distance of states of length 1."
        ),
    ] = "mse"
    draws: Annotated[
        int, Field(ge=1, le=10000, description="How many times random draws its layers in a run, at equal distances.")
    ] = 10

    def begin(self, answers: Answers) -> nn.Module:
        """What is trained: the projection `width`, or the combinations; and what is remembered, as buffers.

        Raises LSM-319 when a layer does not exist or nothing is compared.
        """
        from torch import nn

        rows = [self._begin(side) for side in _rows(answers)]
        return rows[0] if len(rows) == 1 else nn.ModuleList(rows)

    def _begin(self, answers: Answers) -> nn.Module:
        from torch import nn

        student, teacher = states(answers.student, self.name), states(answers.taught, self.name)
        mine, wanted = student[-1].shape[-1], teacher[-1].shape[-1]
        depths = len(student) - 1, len(teacher) - 1
        beside = nn.Module()
        if self.layers == "combine":
            beside.combine = nn.ModuleList(nn.Linear(len(one) * wanted, mine, bias=False) for one in groups(*depths))
            return beside
        beside.width = fit(mine, wanted)
        if self.layers == "random":
            beside.register_buffer("drawn", drawn(*depths, self.draws, place=self.name))
        elif self.layers == "transport":
            beside.shares = shares(*depths)
        elif self.layers != "attend":
            pairs(self.layers, *depths, place=self.name)
        return beside

    def value(self, answers: Answers, beside: nn.Module) -> Tensor:
        """Mean over layers and rows; mse is a mean over the width as well."""
        import torch

        rows = _rows(answers)
        modules = [beside] if len(rows) == 1 else cast("nn.ModuleList", beside)
        return torch.stack([self._value(side, made) for side, made in zip(rows, modules, strict=True)]).mean()

    def _value(self, answers: Answers, beside: nn.Module) -> Tensor:
        import torch

        made: Any = beside
        mask = answers.mask
        student, teacher = states(answers.student, self.name), states(answers.taught, self.name)
        depths = len(student) - 1, len(teacher) - 1

        def mine(m: int) -> Tensor:
            rows = gather(student[m], mask, self.at)
            return rows if self.layers == "combine" else made.width(rows).float()

        def wanted(n: int) -> Tensor:
            return gather(teacher[n], mask, self.at)

        if self.layers == "combine":
            both = [
                (mine(m), combine(torch.cat([wanted(n) for n in group], dim=-1)).float())
                for m, (group, combine) in enumerate(zip(groups(*depths), made.combine, strict=True), 1)
            ]
        elif self.layers in ("attend", "transport"):
            ours = [mine(m) for m in range(1, depths[0] + 1)]
            every = torch.stack([wanted(n) for n in range(1, depths[1] + 1)])  # (teacher layers, rows, width)
            if self.layers == "transport":
                costs = torch.stack([torch.stack([self._gap(one, other) for other in every]) for one in ours])
                return moved(costs, made.shares)
            both = [(one, attended(one, every)) for one in ours]
        else:
            both = [(mine(m), wanted(n)) for m, n in self._pairs(depths, answers.progress, made)]
        return torch.stack([self._gap(one, other) for one, other in both]).mean()

    def _pairs(self, depths: tuple[int, int], progress: float, made: Any) -> list[tuple[int, int]]:
        if self.layers == "random":
            now = made.drawn[min(int(progress * self.draws), self.draws - 1)]
            return list(enumerate(now.tolist(), 1))
        return list(pairs(self.layers, *depths, place=self.name))

    def _gap(self, mine: Tensor, wanted: Tensor) -> Tensor:
        from torch.nn import functional

        if self.loss == "mse":
            return functional.mse_loss(mine, wanted)
        if self.loss == "cosine":
            return 1 - functional.cosine_similarity(mine, wanted, dim=-1).mean()
        unit = functional.normalize(mine, dim=-1) - functional.normalize(wanted, dim=-1)
        return unit.square().sum(dim=-1).mean()


def _rows(answers: Answers) -> tuple[Answers, ...]:
    """Those sides that have states."""
    found = sides(answers)
    return found if len(found) == 1 else found[:2]


def attended(mine: Tensor, every: Tensor) -> Tensor:
    """The mixture of teacher layers `every` (layers, rows, width) that each row of `mine` (rows, width) attends to."""
    import torch

    weights = torch.softmax((mine * every).sum(dim=-1), dim=0)  # a product, not a matmul: autocast leaves it in float32
    return (weights[..., None] * every).sum(dim=0)
