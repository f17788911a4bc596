"""What exits answer, and how sure they are, on texts that go through all layers: where thresholds can be judged."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lissom.edits import exits_of
from lissom.errors import LissomError
from lissom.nn.exit_rules import EVERYBODY, NOBODY

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

    def agreeing(self, share: float) -> float:
        """One threshold for all exits, by which a new text gets the class of the last layer with probability `share`.

        Split conformal: of n texts, the highest score of an exit with another class than the last layer's, minus
        infinity for a text without one; of these the ceil((n + 1) · share)-th smallest, above which texts leave. NOBODY
        where n is smaller than that. It holds for texts from the same source as these, if these served for no choice
        before, on average over which texts these are.
        Source: Schuster et al. 2021 (CAT), section 4, with one score for both its versions of it.
        """
        other = self.logits[:-1].argmax(-1) != self.logits[-1].argmax(-1)
        worst = self.scores.masked_fill(~other, -math.inf).amax(0).sort().values
        rank = math.ceil((len(worst) + 1) * share)
        if rank > len(worst):
            return NOBODY
        limit = worst[rank - 1]
        return EVERYBODY if limit == -math.inf else float(torch.nextafter(limit, torch.tensor(math.inf)))

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
