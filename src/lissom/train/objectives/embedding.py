"""The output of the teacher's embeddings.

    L = MSE( E^S · W, E^T )

with E (tokens, width) and a trained W where the widths differ.
Source: Jiao et al. 2020 (TinyBERT), eq. 9. Differs: real tokens only.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

from lissom.train.objectives.base import Answers, Objective, Read
from lissom.train.objectives.layers import states
from lissom.train.objectives.positions import fit, gather

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedding(Objective):
    """Learns what the teacher's first layer is given: token and position together, after any norm."""

    name: ClassVar[str] = "embedding"
    reads: ClassVar[frozenset[Read]] = frozenset({"hidden_states"})
    source: ClassVar[str] = "Jiao et al. 2020 (TinyBERT), eq. 9"

    def begin(self, answers: Answers) -> nn.Module:
        """The projection `width`. Raises LSM-715 for a model that gives no single row of hidden states."""
        from torch import nn

        beside = nn.Module()
        student, teacher = (states(one, self.name)[0] for one in (answers.student, answers.taught))
        beside.width = fit(student.shape[-1], teacher.shape[-1])
        return beside

    def value(self, answers: Answers, beside: nn.Module) -> Tensor:
        """Mean over the real tokens and the width."""
        from torch.nn import functional

        made: Any = beside
        student, teacher = (
            gather(states(one, self.name)[0], answers.mask, "tokens") for one in (answers.student, answers.taught)
        )
        return functional.mse_loss(made.width(student).float(), teacher)
