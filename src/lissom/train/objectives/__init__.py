"""What a student can learn from, by the name that `learn` uses. Adding an objective is a module and a line here."""

from __future__ import annotations

from lissom.train.objectives.attention import Attention
from lissom.train.objectives.base import Answers, Objective
from lissom.train.objectives.contextual import Contextual
from lissom.train.objectives.contrastive import Contrastive
from lissom.train.objectives.embedding import Embedding
from lissom.train.objectives.exits import ExitAnswers
from lissom.train.objectives.hidden import Hidden
from lissom.train.objectives.logits import Logits
from lissom.train.objectives.mixup import Mixup
from lissom.train.objectives.mlm import MaskedTokens
from lissom.train.objectives.on_policy import OnPolicy
from lissom.train.objectives.relations import Relations
from lissom.train.objectives.sequence import SequenceLevel
from lissom.train.objectives.task import Task
from lissom.train.objectives.universal import Universal

__all__ = ["OBJECTIVES", "Answers", "Objective"]

OBJECTIVES: dict[str, type[Objective]] = {
    "task": Task,
    "logits": Logits,
    "hidden": Hidden,
    "embedding": Embedding,
    "attention": Attention,
    "relations": Relations,
    "contextual": Contextual,
    "contrastive": Contrastive,
    "universal": Universal,
    "mixup": Mixup,
    "mlm": MaskedTokens,
    "sequence": SequenceLevel,
    "on_policy": OnPolicy,
    "exits": ExitAnswers,
}
