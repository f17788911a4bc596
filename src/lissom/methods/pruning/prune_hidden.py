"""Make the residual stream of the whole model narrower: the channels that matter least go, everywhere at once.

Source: Muralidharan et al. 2024, "Compact language models via pruning and knowledge distillation" (Minitron), section
2.2, for the ranking by activations; the tables, all maps, norms and the head are cut alike. Norms then take their mean
and variance over fewer channels, which changes every answer: it needs `tune` afterwards.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from lissom import edits
from lissom.anatomy import Anatomy, residual
from lissom.anatomy.dissect import stack_record
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Stage
from lissom.stats.importance import channel_activation, channel_magnitude


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneHidden(Method):
    """Remove the share `ratio` of the channels, rounded so that the attention heads divide those that are left."""

    name: ClassVar[str] = "prune_hidden"
    stage: ClassVar[Stage] = Stage.WIDTH
    speed: ClassVar[str] = "faster in every runtime, in proportion to the channels removed, and smaller in every part"
    source: ClassVar[str] = "Muralidharan et al. 2024, section 2.2"

    ratio: Annotated[float, Field(ge=0, lt=1, description="share of the channels that is removed")] = 0.25
    by: Annotated[
        Literal["magnitude", "activations"],
        Field(description="how channels are ranked: by their weights, or by what goes through them on texts"),
    ] = "magnitude"
    samples: Annotated[int, Field(ge=1, description="texts that activations are looked at on")] = 256

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-317 when activations have no texts, LSM-715 for a model without layers."""
        residual(anatomy.model)
        if self.by == "activations" and (given.data is None or given.tokenizer is None):
            raise LissomError(317, "by: activations looks at texts", remedy="Give --data, or choose by: magnitude.")

    def apply(self, editor: Editor, given: Given) -> dict[str, Any]:
        """Choose on the model as it is, then cut."""
        anatomy, stream = editor.anatomy(), residual(editor.model)
        step = math.lcm(*(_heads(anatomy, stack.name) for stack in anatomy.stacks))
        count = max(step, round((1 - self.ratio) * stream.width / step) * step)
        if count < stream.width:
            best = self._scores(editor, given).topk(count).indices
            editor.apply(edits.KeepHidden(channels=tuple(sorted(best.tolist()))))
        return {"channels_before": stream.width, "channels_after": min(count, stream.width)}

    def _scores(self, editor: Editor, given: Given) -> Tensor:
        if self.by == "magnitude":
            return channel_magnitude(residual(editor.model))
        batches = given.calibration(editor.model, self.samples)
        return channel_activation(editor.model, editor.anatomy().stacks, batches)


def _heads(anatomy: Anatomy, stack: str) -> int:
    """Attention heads that the config tells of: their number has to divide the hidden width."""
    return int(getattr(anatomy.model.config, stack_record(anatomy.model, stack).heads_key, 1))
