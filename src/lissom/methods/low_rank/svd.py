"""Replace linear maps by the best product of two thin ones, W ≈ A B, by one of four measures of what an error costs.

    weights      ‖W - A B‖_F                 the truncated SVD, which knows nothing of the data
    fisher       ‖D (W - A B)‖_F             D² = Σ_j F_ij of each row i, F = E (∂L/∂W)² on labelled texts
    input-size   ‖(W - A B) diag(s)‖_F       s_j = sqrt(rms x_j) over tokens
    inputs       ‖(W - A B) X‖_F             X the inputs of the map: what it answers changes least

Sources: Eckart and Young 1936 (weights); Hsu et al. 2022, "FWSVD", section 3 (fisher); Yuan et al. 2023, "ASVD",
section 3.2, with α = 1/2 (input-size: the paper takes the mean magnitude, ours the root mean square); Chen et al. 2021,
"DRONE", theorem 1, and Wang et al. 2025, "SVD-LLM", section 3.1, which solve one problem with different roots of XXᵀ
(inputs). Texts are looked at block by block, each block on the answers of the factorized ones before it, so that the
later update of A of SVD-LLM, no step of its own here, has less to win. Maps of a block are measured before any is
replaced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from lissom import edits
from lissom.anatomy import Anatomy, Slot, dense_weight, stored_maps
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Stage, check_floating, check_labelled
from lissom.methods.low_rank.by_loss import LossBudget
from lissom.methods.low_rank.metrics import Metric, root
from lissom.methods.low_rank.owners import owners
from lissom.methods.low_rank.ranks import Size, by_energy, put, uniform
from lissom.nn import LowRankLinear
from lissom.stats.batches import cut
from lissom.stats.blocks import walk
from lissom.stats.curvature import row_fisher
from lissom.stats.hessian import hessians_of

_ROWS = 8  # texts that run at once
_WATCHED = 64  # texts whose answers ranks: loss watches


@dataclasses.dataclass(frozen=True, kw_only=True)
class Svd(Method):
    """Factorize every linear map in the blocks to the share `ratio` of its parameters."""

    name: ClassVar[str] = "svd"
    stage: ClassVar[Stage] = Stage.RANK
    speed: ClassVar[str] = "faster for long or batched texts; two small products can be slower than one for one text"
    source: ClassVar[str] = (
        "Eckart and Young 1936; Hsu et al. 2022; Yuan et al. 2023; Chen et al. 2021, theorem 1; Wang et al. 2025"
    )

    ratio: Annotated[
        float, Field(gt=0, le=1, description="share of the parameters of the factorized slots that is kept")
    ] = 0.5
    by: Annotated[
        Literal["weights", "fisher", "input-size", "inputs"],
        Field(description="what an error costs; fisher needs labelled data, input-size and inputs need texts"),
    ] = "weights"
    ranks: Annotated[
        Literal["uniform", "energy", "loss"],
        Field(
            description="every map keeps this share of its parameters, or all the same share of their energy, or each "
            "the least above this share that `budget` bears"
        ),
    ] = "uniform"
    budget: Annotated[
        float, Field(gt=0, description="how far answers may move with ranks: loss, mean KL divergence in nats")
    ] = 0.02
    samples: Annotated[
        int, Field(ge=1, le=100_000, description="texts, or blocks of running text, that are looked at")
    ] = 256

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-317 when there are no texts to look at, LSM-713 for packed layers, LSM-821 when fisher
        has no labels."""
        check_floating(anatomy)
        looks = f"by: {self.by}" if self.by != "weights" else "ranks: loss" if self.ranks == "loss" else ""
        if looks and (given.data is None or given.tokenizer is None):
            remedy = "Give --data, or choose by: weights and ranks: uniform."
            raise LissomError(317, f"{looks} looks at texts", remedy=remedy)
        if self.by == "fisher":
            check_labelled(given, "choose by: inputs")

    def apply(self, editor: Editor, given: Given) -> None:
        """Factorize, and fill in the factors. Maps in which that saves nothing stay, or become dense again."""
        owner_of = owners(editor.anatomy())
        sizes = {path: _size(Slot(editor.model, path)) for path in dict.fromkeys(owner_of.values())}
        ranks = self._ranks(editor, sizes, given)
        found: dict[str, tuple[Tensor, Tensor]] = {}
        budget = self._budget(editor, sizes, given)
        for done, (slot, metric) in enumerate(self._weighed(editor, given) if budget or any(ranks.values()) else ()):
            path, owner = slot.path, owner_of[slot.path]
            if budget is not None and owner == path:
                ranks[path] = budget.rank(slot, metric, sizes[path])
            if ranks[owner]:
                found[path] = found.get(owner) or metric.factors(slot.weight, ranks[owner])
                put(editor.model, path, *found[path])  # what comes after sees what it will be
            given.report("factorizing", (done + 1) / len(owner_of))
        _record(editor, {path: ranks[owner] for path, owner in owner_of.items()}, found)

    def _budget(self, editor: Editor, sizes: Mapping[str, Size], given: Given) -> LossBudget | None:
        if self.ranks != "loss" or self.ratio == 1:
            return None
        batches = list(cut(given.calibration(editor.model, min(self.samples, _WATCHED)), _ROWS))
        return LossBudget(editor, batches, sizes, ratio=self.ratio, budget=self.budget)

    def preview(self, editor: Editor, given: Given) -> None:
        """The same structure; ranks by energy or by loss are taken for uniform ones."""
        owner_of = owners(editor.anatomy())
        sizes = {path: _size(Slot(editor.model, path)) for path in owner_of}
        ranks = uniform(sizes, self.ratio)
        _record(editor, {path: ranks[owner] for path, owner in owner_of.items()}, {})

    def _ranks(self, editor: Editor, sizes: Mapping[str, Size], given: Given) -> dict[str, int]:
        if self.ranks != "energy" or self.ratio == 1:
            return uniform(sizes, self.ratio)
        costs: dict[str, Tensor] = {}
        for done, (slot, metric) in enumerate(self._weighed(editor, given)):
            if slot.path in sizes:
                costs[slot.path] = metric.costs(slot.weight)
            given.report("measuring", done / len(sizes))
        return by_energy(sizes, costs, self.ratio)

    def _weighed(self, editor: Editor, given: Given) -> Iterator[tuple[Slot, Metric]]:
        """Every map with its metric; replace it before asking for the next. Maps that no text reaches count plainly."""
        slots = list(editor.anatomy().linears())
        if self.by == "weights":
            yield from ((slot, Metric()) for slot in slots)
            return
        batches = list(cut(given.calibration(editor.model, self.samples, labelled=self.by == "fisher"), _ROWS))
        if self.by == "fisher":
            rows = row_fisher(editor.model, slots, batches)
            yield from ((slot, Metric(rows=rows[slot.path].sqrt())) for slot in slots)
            return
        for step in walk(editor.anatomy(), batches):
            own = [slot for slot in slots if slot.path.startswith(f"{step.block.path}.")]
            hessians = hessians_of(step, own)
            seen = {id(one): self._of_inputs(one) for one in hessians.values()}  # some maps read the same
            for slot in own:
                yield slot, seen[id(hessians[slot.path])] if slot.path in hessians else Metric()

    def _of_inputs(self, hessian: Tensor) -> Metric:
        if self.by == "inputs":
            return Metric(inputs=root(hessian))
        return Metric(inputs=hessian.diagonal().pow(0.25).diag())


def _size(slot: Slot) -> Size:
    rows, columns = slot.out_features, slot.in_features
    stored = sum(part.out_features * part.in_features for part in stored_maps(slot))
    return Size(rows=rows, columns=columns, held=min(stored, rows * columns))


def _record(editor: Editor, ranks: Mapping[str, int], found: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Apply what was decided. A map of low rank that takes more numbers than a dense one becomes dense."""
    dense: dict[str, Tensor] = {}
    for slot in editor.anatomy().linears():
        if isinstance(slot.module, LowRankLinear) and not ranks[slot.path]:
            rows, columns = slot.out_features, slot.in_features
            if slot.module.rank * (rows + columns) >= rows * columns:
                dense[f"{slot.path}.weight"] = dense_weight(slot.module).detach()
    if dense:
        editor.apply(edits.MultiplyOut(linears=tuple(name.removesuffix(".weight") for name in dense)), dense)
    thin = {path: rank for path, rank in ranks.items() if rank}
    if thin:
        ups = {f"{path}.up.weight": up for path, (up, _) in found.items()}
        downs = {f"{path}.down.weight": down for path, (_, down) in found.items()}
        editor.apply(edits.Factorize(ranks=thin), ups | downs)
