"""Take all weights of a student back to what they were early in the run, and the optimizer with them.

Sources: Frankle and Carbin 2019, "The lottery ticket hypothesis", section 1; Frankle et al. 2020, "Linear mode
connectivity and the lottery ticket hypothesis", section 3, for a step later than the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lissom.train.engine import Engine


class Rewind:
    """Remembers the parameters of `model` when the share `to` of the run is done."""

    def __init__(self, model: nn.Module, to: float) -> None:
        self._parameters, self._to = list(model.parameters()), to
        self._first: list[Tensor] = []
        self._fresh = False  # whether the optimizer is to forget

    def at(self, progress: float) -> None:
        """The share `progress` of the run is done."""
        if not self._first and progress >= self._to:
            self._first = [one.detach().clone() for one in self._parameters]

    @torch.no_grad()
    def back(self) -> None:
        """Put what was remembered into the parameters; before that moment, nothing."""
        for one, first in zip(self._parameters, self._first, strict=False):
            one.copy_(first)
            self._fresh = True

    def before(self, engine: Engine) -> None:
        """Let the optimizer begin anew, before the first batch after `back`."""
        if self._fresh and engine.optimizer is not None:
            engine.optimizer.state.clear()
            self._fresh = False

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold."""
        first = {f"first{number}": one for number, one in enumerate(self._first)}
        return {"fresh": torch.tensor(self._fresh), **first}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self._fresh = bool(state["fresh"])
        found = [state[f"first{number}"] for number in range(len(self._parameters)) if f"first{number}" in state]
        self._first = [one.to(old.device) for one, old in zip(found, self._parameters, strict=False)]
