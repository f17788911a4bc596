"""Add exits: heads that answer a text after earlier layers. They are drawn at random; `tune` trains them by `exits`.

Sources: Xin et al. 2020, "DeeBERT", section 3 (pooled heads of the first token after every layer); Zhou et al. 2020,
"PABEE", section 3.1 (linear ones); Schwartz et al. 2020, "The right tool for the job", section 3.1 (after some);
Xin et al. 2021, "BERxiT", section 4.2 (the judge).
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from lissom import edits
from lissom.anatomy import Anatomy
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Stage

_SPREAD = 0.02  # of the first weights, as BERT's


@dataclasses.dataclass(frozen=True, kw_only=True)
class AddExits(Method):
    """Put a head after some layers of an encoder that classifies texts. Nobody leaves until `set_exits` says when."""

    name: ClassVar[str] = "add_exits"
    stage: ClassVar[Stage] = Stage.DYNAMIC
    speed: ClassVar[str] = "no faster by itself: it makes room for `set_exits`, and a little slower until then"
    source: ClassVar[str] = "DeeBERT (2020), section 3; PABEE (2020), section 3.1; BERxiT (2021), section 4.2"

    layers: Annotated[
        Literal["every"] | tuple[Annotated[int, Field(ge=1)], ...],
        Field(description="after how many layers an exit stands, ascending; every: after each but the last"),
    ] = "every"
    head: Annotated[
        Literal["linear", "pooled"],
        Field(description="one linear map, or a dense layer with tanh before it, as the pooler of BERT"),
    ] = "pooled"
    reads: Annotated[
        Literal["first", "mean"], Field(description="the state of the first token, or the mean over all tokens")
    ] = "first"
    judge: Annotated[
        bool, Field(description="a map that all exits share and that learns whether an answer is right")
    ] = False

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-715 for a model that texts cannot leave early, LSM-318 for layers that it has not."""
        self._numbers(anatomy)

    def apply(self, editor: Editor, given: Given) -> None:
        """Add the heads, with random weights of the seed."""
        anatomy = editor.anatomy()
        layers = self._numbers(anatomy)
        edit = edits.AddExits(layers=layers, head=self.head, reads=self.reads, judge=self.judge)
        editor.apply(edit)
        generator = torch.Generator().manual_seed(given.seed)
        exits = edits.exits_of(editor.model)
        with torch.no_grad():
            for name, one in () if exits is None else exits.named_parameters():
                drawn = torch.randn(one.shape, generator=generator) * _SPREAD
                one.copy_(torch.zeros(one.shape) if name.endswith("bias") else drawn)

    def _numbers(self, anatomy: Anatomy) -> tuple[int, ...]:
        depth = len(edits.exit_stack(anatomy).order)
        found = tuple(range(1, depth)) if self.layers == "every" else self.layers
        if not found or list(found) != sorted(set(found)) or found[-1] >= depth:
            shown = ", ".join(map(str, found))
            raise LissomError(318, f"exits after layers [{shown}] are no ascending choice of 1 to {depth - 1}")
        return found
