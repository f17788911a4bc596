"""Keep some layers of a stack and drop the others: a shallower model that needs tuning, faster in every runtime.

Sources: Sajjad et al. 2020, "On the effect of dropping layers" (first, last and alternate layers); Sanh et al. 2019,
"DistilBERT", section 3 (one layer out of two); Men et al. 2024, "ShortGPT", eq. 1 (importance = block influence).
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, Literal, cast

from pydantic import Field

from lissom import edits
from lissom.anatomy import Anatomy, Stack
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeepLayers(Method):
    """Keep `keep` layers: a count or a share (rounded, at least one), chosen as `by` says, or their numbers."""

    name: ClassVar[str] = "keep_layers"
    stage: ClassVar[Stage] = Stage.DEPTH
    speed: ClassVar[str] = "faster in every runtime, in proportion to the layers dropped"
    source: ClassVar[str] = "Sajjad et al. 2020; Sanh et al. 2019, section 3; Men et al. 2024, eq. 1"

    keep: Annotated[
        Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] | tuple[Annotated[int, Field(ge=0)], ...],
        Field(description="how many layers stay, which share of them, or their numbers counted from 0"),
    ]
    by: Annotated[
        Literal["first", "last", "every-other", "importance"],
        Field(description="which layers stay when no numbers are given; importance needs data"),
    ] = "every-other"
    stack: Annotated[str, Field(description="encoder or decoder; may be left out where there is only one")] = ""
    samples: Annotated[int, Field(ge=1, description="texts that importance is measured on")] = 128

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-318 when these layers cannot be kept, LSM-317 when importance has no data."""
        stack = anatomy.stack(self.stack)
        layers = len(stack.order)
        if isinstance(self.keep, int) and self.keep > layers:
            raise LissomError(318, f"keep {self.keep} of {layers} layers")
        if (
            self.by == "importance"
            and not isinstance(self.keep, tuple)
            and (given.data is None or given.tokenizer is None)
        ):
            raise LissomError(317, "by: importance looks at texts", remedy="Give --data, or choose by: every-other.")
        try:
            edits.check_depth(anatomy.model, stack, self._fixed(layers) or tuple(range(1, layers)) or (0,))
        except LissomError as error:
            raise LissomError(318, error.cause, place=error.place, remedy=error.remedy) from error

    def apply(self, editor: Editor, given: Given) -> None:
        """Drop the layers that are not kept."""
        stack = editor.anatomy().stack(self.stack)
        keep = self._fixed(len(stack.order)) or self._most_important(editor, stack, given)
        if len(keep) < len(stack.order):
            editor.apply(edits.KeepLayers(stack=stack.name, keep=keep))

    def _fixed(self, layers: int) -> tuple[int, ...]:
        """The layers that stay; empty where texts decide."""
        if isinstance(self.keep, tuple):
            return self.keep
        count = edits.how_many(self.keep, layers)
        if self.by == "importance":
            return tuple(range(layers)) if count == layers else ()
        return edits.chosen(self.by, count, layers)

    def _most_important(self, editor: Editor, stack: Stack, given: Given) -> tuple[int, ...]:
        from lissom.stats.importance import block_influence

        if given.data is None or given.tokenizer is None:
            raise LissomError(317, "by: importance looks at texts", remedy="Give --data.")
        influence = block_influence(editor.model, stack, given.calibration(editor.model, self.samples))
        return tuple(sorted(influence.topk(edits.how_many(cast("float", self.keep), len(influence))).indices.tolist()))
