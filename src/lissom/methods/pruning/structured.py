"""What pruning heads and pruning neurons share: their options, and which units stay, given their scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lissom.anatomy import Anatomy, Slot
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Stage, check_gradients, check_labelled
from lissom.stats.importance import first_order, fisher, output_norms
from lissom.stats.refit import refit

NEEDS = "output, what they add, looks at texts, first-order and fisher at labels too"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StructuredPruning(Method):
    """Options of every method that removes the units which matter least."""

    stage: ClassVar[Stage] = Stage.WIDTH

    ratio: Annotated[float, Field(ge=0, lt=1, description="share of the units that is removed")] = 0.25
    by: Annotated[
        Literal["magnitude", "output", "first-order", "fisher", "attention"],
        Field(description=f"how units are ranked; {NEEDS}; attention: by how surely a head looks at one token"),
    ] = "magnitude"
    across: Annotated[
        Literal["layer", "model"], Field(description="rank within each layer, or over the whole stack")
    ] = "layer"
    samples: Annotated[int, Field(ge=1, description="texts to look at")] = 256
    reconstruct: Annotated[
        bool, Field(description="fit what read the units, by least squares, to what it gave before; needs texts")
    ] = False

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-317 when there is no data to rank or reconstruct on, LSM-713 for int8 layers, LSM-821 without the
        labels that `by` looks at."""
        by = self.by
        lacking = given.data is None or given.tokenizer is None
        if by in LABELLED:
            check_gradients(anatomy)
            check_labelled(given, "choose by: magnitude")
        elif by != "magnitude" and lacking:
            raise LissomError(317, f"by: {by} looks at texts", remedy="Give --data, or choose by: magnitude.")
        if self.reconstruct:
            check_gradients(anatomy)
            if lacking:
                raise LissomError(317, "reconstruct looks at texts", remedy="Give --data.")

    def fit(self, editor: Editor, given: Given, kept: Mapping[str, tuple[int, Sequence[int]]]) -> None:
        """Before the cut, where asked for: fit what reads the units that stay.

        kept: path of each reader (o or down) that loses units -> how many it has, and those that stay.
        """
        if not self.reconstruct or not kept:
            return
        masks = {path: torch.zeros(units, dtype=torch.bool) for path, (units, _) in kept.items()}
        for path, (_, numbers) in kept.items():
            masks[path][list(numbers)] = True
        texts = list(given.calibration(editor.model, self.samples))
        refit(editor.anatomy(), texts, masks, kind="weights", report=given.report)


LABELLED = ("first-order", "fisher")
"""Criteria that look at the loss of labels."""


def choose(scores: Sequence[Tensor], ratio: float, *, across: str) -> tuple[tuple[int, ...], ...]:
    """The units that stay in each layer: all but the `ratio` with the lowest scores.

    scores: (units,) a layer.  across: "layer" removes the same share of every layer; "model" ranks all layers
    together, each layer's scores divided by their norm first (Michel et al. 2019, section 2.3). One unit always stays.
    """
    if across == "layer":
        drops = [min(len(one) - 1, int(ratio * len(one) + 0.5)) for one in scores]
        return tuple(
            tuple(sorted(one.argsort(stable=True)[drop:].tolist())) for one, drop in zip(scores, drops, strict=True)
        )
    scaled = [one / one.norm().clamp_min(1e-12) for one in scores]
    safe = [int(one.argmax()) for one in scaled]
    for one, best in zip(scaled, safe, strict=True):
        one[best] = torch.inf
    flat = torch.cat(scaled)
    gone = torch.zeros(len(flat), dtype=torch.bool)
    spare = len(flat) - len(scaled)
    gone[flat.argsort(stable=True)[: min(spare, int(ratio * len(flat) + 0.5))]] = True
    return tuple(
        tuple((~part).nonzero().flatten().tolist()) for part in torch.split(gone, [len(one) for one in scores])
    )


def scores(
    by: str, editor: Editor, given: Given, slots: dict[str, tuple[Slot, int]], samples: int
) -> dict[str, Tensor]:
    """Importance by first-order, fisher or output of the units that go into `slots`, on training texts."""
    measure = {"first-order": first_order, "fisher": fisher, "output": output_norms}[by]
    return measure(editor.model, slots, given.calibration(editor.model, samples, labelled=by in LABELLED))
