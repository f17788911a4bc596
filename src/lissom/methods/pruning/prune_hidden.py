"""Make the residual stream of the whole model narrower: the channels that matter least go, everywhere at once.

Source: Muralidharan et al. 2024, "Compact language models via pruning and knowledge distillation" (Minitron), section
2.2, for the ranking by activations; the tables, all maps, norms and the head are cut alike. Norms then take their mean
and variance over fewer channels, which changes every answer: it needs `tune` afterwards.

by: components follows Ashkboos et al. 2024, "SliceGPT": the stream is first turned, without a change of the answers, so
that its channels are principal components of what norms give on texts, and the smallest go. One turn serves all blocks,
where the paper has one for each and a matrix in each residual connection: no product is added there, and the components
fit each block less. A head that shares the table of tokens goes on doing so, behind a map that takes the scale of the
last norm, or gets a weight of its own where norms subtract a mean; layer norms become norms by the root mean square.
Norms go on dividing by the length over as many channels as before.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from lissom import edits
from lissom.anatomy import Anatomy, residual
from lissom.anatomy.dissect import stack_record
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Stage, check_floating
from lissom.stats import rotation
from lissom.stats.importance import channel_activation, channel_magnitude


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneHidden(Method):
    """Remove the share `ratio` of the channels, rounded so that the attention heads divide those that are left."""

    name: ClassVar[str] = "prune_hidden"
    stage: ClassVar[Stage] = Stage.WIDTH
    speed: ClassVar[str] = "faster in every runtime, in proportion to the channels removed, and smaller in every part"
    source: ClassVar[str] = "Muralidharan et al. 2024, section 2.2; Ashkboos et al. 2024, section 3"

    ratio: Annotated[float, Field(ge=0, lt=1, description="share of the channels that is removed")] = 0.25
    by: Annotated[
        Literal["magnitude", "activations", "components"],
        Field(
            description="how channels are ranked: by their weights, by what goes through them on texts, or as the "
            "principal components of that, into which the hidden states are turned first"
        ),
    ] = "magnitude"
    samples: Annotated[int, Field(ge=1, description="texts that activations are looked at on")] = 256

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-317 when there are no texts to look at, LSM-713 for packed layers, LSM-715 without layers.

        by: components raises LSM-715 where something reads hidden states without a norm.
        """
        check_floating(anatomy)
        residual(anatomy.model)
        if self.by != "magnitude" and (given.data is None or given.tokenizer is None):
            raise LissomError(317, f"by: {self.by} looks at texts", remedy="Give --data, or choose by: magnitude.")
        if self.by == "components":
            rotation.norm_readers(anatomy.model)

    def apply(self, editor: Editor, given: Given) -> dict[str, Any]:
        """Choose on the model as it is, then cut."""
        width, count = residual(editor.model).width, self._count(editor)
        said: dict[str, Any] = {"channels_before": width, "channels_after": count}
        if count == width:
            return said
        if self.by == "components":
            return said | {"kept": self._slice(editor, given, count)}
        best = self._scores(editor, given).topk(count).indices
        editor.apply(edits.KeepHidden(channels=tuple(sorted(best.tolist()))))
        return said

    def preview(self, editor: Editor, given: Given) -> None:
        """No components are computed."""
        if self.by != "components":
            self.apply(editor, given)
        elif (count := self._count(editor)) < residual(editor.model).width:
            prepare(editor, rotation.norm_readers(editor.model))
            editor.apply(edits.KeepHidden(channels=tuple(range(count))))

    def _count(self, editor: Editor) -> int:
        anatomy, width = editor.anatomy(), residual(editor.model).width
        step = math.lcm(*(_heads(anatomy, stack.name) for stack in anatomy.stacks))
        return min(width, max(step, round((1 - self.ratio) * width / step) * step))

    def _scores(self, editor: Editor, given: Given) -> Tensor:
        if self.by == "magnitude":
            return channel_magnitude(residual(editor.model))
        batches = given.calibration(editor.model, self.samples)
        return channel_activation(editor.model, editor.anatomy().stacks, batches)

    def _slice(self, editor: Editor, given: Given, count: int) -> float:
        """Turn the stream into its components and keep the first. Gives their share of the sum of squares."""
        model, batches = editor.model, given.calibration(editor.model, self.samples)
        readers = rotation.norm_readers(model)
        centered = bool(rotation.layer_norms(model, readers))
        prepare(editor, readers)
        readers = rotation.norm_readers(model)
        if centered:
            rotation.center(model)
        shifts = rotation.fold_norms(model, readers)
        rotation.put_shifts(model, shifts)  # whole yet: the components see them
        shares, axes = rotation.principal_axes(model, readers, batches)
        rotation.turn(model, axes)
        maps = rotation.narrow_map(model, count)
        editor.apply(edits.KeepHidden(channels=tuple(range(count))), maps)
        with torch.no_grad():
            for path in readers:  # the root mean square over fewer channels is larger
                cast("Tensor", model.get_submodule(path).weight).fill_(math.sqrt(len(axes) / count))
        rotation.put_shifts(model, shifts)
        return round(float(shares[:count].sum()), 4)


def prepare(editor: Editor, readers: rotation.Readers) -> None:
    """The structure in which the stream can be turned: no mean that a norm subtracts, no scale between it and a head
    that is the table of tokens.

    Such a head goes on sharing it, behind a map that takes the scale; where means go, the table loses its own, which
    the head needs, and gets a copy.
    """
    model, stream = editor.model, residual(editor.model)
    tables = [model.get_submodule(path).weight for path in stream.tables]
    paths = list(dict.fromkeys(slot.path for slot in stream.reads))
    tied = [path for path in paths if any(getattr(model.get_submodule(path), "weight", None) is one for one in tables)]
    if means := rotation.layer_norms(model, readers):
        editor.apply(edits.DropMeans(norms=means))
        if tied:
            editor.apply(edits.Untie(heads=tuple(tied)))
        return
    for path in [path for path, maps in readers.items() if {*maps} & {*tied}]:
        editor.apply(edits.MapAfterNorm(norm=path))


def _heads(anatomy: Anatomy, stack: str) -> int:
    """Attention heads that the config tells of: their number has to divide the hidden width."""
    return int(getattr(anatomy.model.config, stack_record(anatomy.model, stack).heads_key, 1))
