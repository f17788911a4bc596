"""Move outliers from the inputs of linear maps into their weights, before both are rounded.

Channel j of an input is divided by `s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)` and the columns that read it are
multiplied by it, over all maps that read the input. The factors go into what feeds the maps, so no operation is added
and the model computes the same. Source: Xiao et al. 2023, "SmoothQuant", eq. 4.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lissom.edits import Editor
from lissom.methods.base import Given, Method, Need, Stage
from lissom.stats.folding import Feed, feeders, fold
from lissom.stats.ranges import largest_inputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Smooth(Method):
    """Even out the inputs of linear maps wherever that is exact; a step that packs the maps comes after it."""

    name: ClassVar[str] = "smooth"
    stage: ClassVar[Stage] = Stage.RESCALE
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    speed: ClassVar[str] = "not faster: the same model, whose inputs are rounded to int8 with less error afterwards"
    source: ClassVar[str] = "Xiao et al. 2023, eq. 4"

    alpha: Annotated[
        float, Field(ge=0, le=1, description="how much of the outliers goes into the weights: 0 none, 1 all")
    ] = 0.5
    samples: Annotated[int, Field(ge=1, le=100_000, description="texts on which the inputs are measured")] = 128

    def apply(self, editor: Editor, given: Given) -> dict[str, Any]:
        """Measure the inputs of all places, then move the factors. Says how many places there were."""
        feeds = feeders(editor.anatomy())
        readers = [feed.slots[0] for feed in feeds]
        largest = largest_inputs(editor.model, readers, given.calibration(self.samples))
        done = 0
        for feed, top in zip(feeds, largest, strict=True):
            if top is not None:
                fold(feed, self._factors(feed, top))
                done += 1
        return {"places": done}

    def preview(self, editor: Editor, given: Given) -> None:
        """The structure stays as it is."""

    def _factors(self, feed: Feed, top: Tensor) -> Tensor:
        """Equation 4. top: largest magnitude of each input, (in,). Returns (feed.size,); 1 where nothing arrives."""
        weights = torch.stack([slot.weight.detach().float().abs().amax(0) for slot in feed.slots]).amax(0)
        x, w = _by_channel(feed, top), _by_channel(feed, weights)
        factors = x.pow(self.alpha) / w.clamp_min(1e-5).pow(1 - self.alpha)
        return torch.where((x > 0) & (w > 0), factors.clamp_min(1e-5), torch.ones_like(x))


def _by_channel(feed: Feed, values: Tensor) -> Tensor:
    """The largest of `values` (in,) over the columns that read each channel: (feed.size,)."""
    zeros = torch.zeros(feed.size, device=values.device)
    return zeros.scatter_reduce(0, feed.columns.to(values.device), values, "amax")
