"""What exits answer, and how sure they are, on texts that go through all layers: where thresholds can be judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lissom.edits import exits_of
from lissom.errors import LissomError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExitTable:
    """All exits on some texts.

    logits: (exits + 1, texts, classes) float32, the last layer's last.
    scores: (exits, texts) float32, of the rule in use, as if nobody left.
    layers: executed layers before each answer, exits + 1.
    """

    logits: Tensor
    scores: Tensor
    layers: tuple[int, ...]

    def leave(self, thresholds: Tensor) -> Tensor:
        """(texts,) which answer each text gets, 0 for that of the first exit. thresholds: (exits,)."""
        sure = self.scores >= thresholds[:, None]
        always = torch.ones_like(sure[:1])
        return torch.cat([sure, always]).int().argmax(0)

    def answers(self, left: Tensor) -> Tensor:
        """(texts, classes): the logits with which texts are answered. left: from `leave`."""
        return self.logits[left, torch.arange(len(left))]

    def mean_layers(self, left: Tensor) -> float:
        """Executed layers a text."""
        return float(torch.tensor(self.layers, dtype=torch.float64)[left].mean())


def exit_table(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> ExitTable:
    """Ask all exits of `model`, in eval mode, whose rule is set. batches: without labels.

    Raises LissomError LSM-715 for a model without exits.
    """
    exits = exits_of(model)
    if exits is None:
        raise LissomError(715, "the model has no exits", remedy="Put `add_exits` before this step.")
    logits, scores = [], []
    training, exits.collecting = model.training, True
    try:
        model.train(False)
        with torch.no_grad():
            for batch in batches:
                answered = model(**batch)
                states = answered["exit_states"]
                found = [exits.answer(number, state) for number, state in enumerate(states)]
                logits.append(torch.stack([*found, answered["logits"]]).float().cpu())
                scores.append(exits.scores(states).float().cpu())
    finally:
        exits.collecting = False
        model.train(training)
    return ExitTable(logits=torch.cat(logits, 1), scores=torch.cat(scores, 1), layers=(*exits.layers, exits.depth))
