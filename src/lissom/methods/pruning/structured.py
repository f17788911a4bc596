"""What pruning heads and pruning neurons share: their options, and which units stay, given their scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lissom.anatomy import Anatomy, Slot
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Stage, check_gradients
from lissom.stats.importance import first_order


@dataclasses.dataclass(frozen=True, kw_only=True)
class StructuredPruning(Method):
    """Options of every method that removes the units which matter least."""

    stage: ClassVar[Stage] = Stage.WIDTH

    ratio: Annotated[float, Field(ge=0, lt=1, description="share of the units that is removed")] = 0.25
    by: Annotated[
        Literal["magnitude", "first-order"], Field(description="how units are ranked; first-order needs labelled data")
    ] = "magnitude"
    across: Annotated[
        Literal["layer", "model"], Field(description="rank within each layer, or over the whole stack")
    ] = "layer"
    samples: Annotated[int, Field(ge=1, description="texts that first-order importance is measured on")] = 256

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-317 when first-order importance has no labelled data, LSM-713 for int8 layers."""
        if self.by == "first-order":
            check_labelled(given)
            check_gradients(anatomy)


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


def first_order_scores(
    editor: Editor, given: Given, slots: dict[str, tuple[Slot, int]], samples: int
) -> dict[str, Tensor]:
    """First-order importance of the units that go into `slots`, on training texts."""
    return first_order(editor.model, slots, given.calibration(editor.model, samples, labelled=True))


def check_labelled(given: Given) -> None:
    """Raise LSM-317 when the data or the tokenizer that first-order importance needs is missing."""
    if given.data is None or given.tokenizer is None:
        raise LissomError(317, "by: first-order needs labelled texts", remedy="Give --data, or choose by: magnitude.")
