"""When a text may leave a model before its last layer: one function a rule, in tensors alone, which graphs share.

A rule scores how sure the answer of an exit is; a text leaves where the score reaches the threshold of that exit. So a
higher threshold always means that fewer leave, `NOBODY` that none does, and `EVERYBODY` that all do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

NOBODY, EVERYBODY = 1e9, -1.0
Memory: TypeAlias = "tuple[Tensor, ...]"
"""What a rule keeps of the exits before: tensors with a row a text, () before the first exit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """What a rule sees at one exit.

    logits: (texts, classes); one class for regression.
    judged: (texts,), 0 to 1, how right the trained judge takes the answer to be; None in models that have no judge.
    number: of this exit, 1 for the first.
    constant: the rule's own number, see `Rule.constant`.
    """

    logits: Tensor
    judged: Tensor | None
    number: int
    constant: float


def confidence(seen: Seen, memory: Memory) -> tuple[Tensor, Memory]:
    """The highest probability, 0 to 1. Source: Kaya et al. 2019 (Shallow-deep networks), section 4."""
    return seen.logits.softmax(-1).amax(-1), memory


def entropy(seen: Seen, memory: Memory) -> tuple[Tensor, Memory]:
    """1 - H(p) / log(classes), 0 to 1.

    Source: Liu et al. 2020 (FastBERT), eq. 6, whose «speed» is 1 - the threshold. Xin et al. 2020 (DeeBERT), section 3,
    and Teerapittayanon et al. 2016 (BranchyNet) compare H itself with S: here 1 - S / log(classes).
    """
    logs = seen.logits.log_softmax(-1)
    spread = -(logs.exp() * logs).sum(-1) / torch.log(torch.full_like(logs[..., 0], seen.logits.shape[-1]))
    return 1 - spread, memory


def patience(seen: Seen, memory: Memory) -> tuple[Tensor, Memory]:
    """How many exits in a row have confirmed the answer of the one before: 0 at the first.

    A class is confirmed by the same class, a number by one less than `constant` away.
    Source: Zhou et al. 2020 (PABEE), section 3.2, eq. 2 and 3.
    """
    classes = seen.logits.shape[-1] > 1
    answer = seen.logits.argmax(-1) if classes else seen.logits[:, 0]
    if not memory:
        count = torch.zeros_like(seen.logits[:, 0])
    else:
        same = answer == memory[0] if classes else (answer - memory[0]).abs() < seen.constant
        count = torch.where(same, memory[1] + 1, 0.0)
    return count, (answer, count)


def patience_confidence(seen: Seen, memory: Memory) -> tuple[Tensor, Memory]:
    """How many exits in a row were sure, with a score by `entropy` of at least `constant`, whatever their answers.

    Source: Zhang et al. 2022 (PCEE-BERT), section 3.2.
    """
    sure = entropy(seen, ())[0] >= seen.constant
    before = memory[0] if memory else torch.zeros_like(seen.logits[:, 0])
    count = torch.where(sure, before + 1, 0.0)
    return count, (count,)


def vote(seen: Seen, memory: Memory) -> tuple[Tensor, Memory]:
    """max over classes of (exits so far that gave this class) / (exits so far) ^ constant.

    Source: Sun et al. 2021 (Early exiting with ensemble internal classifiers), section 3.3.
    """
    classes = torch.arange(seen.logits.shape[-1], device=seen.logits.device)
    given = (seen.logits.argmax(-1, keepdim=True) == classes).to(seen.logits.dtype)
    votes = memory[0] + given if memory else given
    return votes.amax(-1) / float(seen.number**seen.constant), (votes,)


def learned(seen: Seen, memory: Memory) -> tuple[Tensor, Memory]:
    """What the judge says, 0 to 1. Source: Xin et al. 2021 (BERxiT), section 4.2, eq. 4."""
    if seen.judged is None:
        raise ValueError("the model has no judge")
    return seen.judged, memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule and what may be done with it.

    constant: default of its own number; None where it has none.
    regression: whether it can judge a number.  judge: whether it asks the trained judge.
    whole: scores are whole numbers, so that 1, 2, ... are all the thresholds there are.
    """

    score: Callable[[Seen, Memory], tuple[Tensor, Memory]]
    constant: float | None = None
    regression: bool = False
    judge: bool = False
    whole: bool = False


RULES: dict[str, Rule] = {
    "confidence": Rule(score=confidence),
    "entropy": Rule(score=entropy),
    "patience": Rule(score=patience, constant=0.1, regression=True, whole=True),
    "patience_confidence": Rule(score=patience_confidence, constant=0.7, whole=True),
    "vote": Rule(score=vote, constant=0.5),
    "learned": Rule(score=learned, regression=True, judge=True),
}
"""Every rule, by name."""
