"""How far a student's distribution is from its teacher's, row by row.

With p = softmax(t / T) of the teacher and q = softmax(s / T) of the student, each times T², because the gradients of
softened scores shrink as 1 / T² (Hinton et al. 2015, section 2):

    kl            KL(p ‖ q)                                        Hinton et al. 2015
    reverse       KL(q ‖ p)                                        Gu et al. 2024 (MiniLLM), section 2
    js            b · KL(p ‖ m) + (1 - b) · KL(q ‖ m), m = b · p + (1 - b) · q     Agarwal et al. 2024 (GKD), section 2
    skew          KL(p ‖ a · p + (1 - a) · q)                      Ko et al. 2024 (DistiLLM), section 3.1
    skew_reverse  KL(q ‖ (1 - a) · p + a · q)                      Ko et al. 2024 (DistiLLM), section 3.1

The factor T² is Hinton's for kl; the other papers have T = 1, where it is 1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Divergence = Literal["kl", "reverse", "js", "skew", "skew_reverse"]
MIXING = {"js": 0.5, "skew": 0.1, "skew_reverse": 0.1}
"""The divergences that mix both distributions, with the share that is usual: b = 0.5 and DistiLLM's a = 0.1."""


def divergence(student: Tensor, teacher: Tensor, kind: Divergence, temperature: float, mix: float | None) -> Tensor:
    """The divergence of each row, (n,), from logits (n, classes). mix: b or a; None takes the usual one."""
    from torch.nn import functional

    p = functional.log_softmax(teacher / temperature, dim=-1)
    q = functional.log_softmax(student / temperature, dim=-1)
    share = MIXING.get(kind, 0.5) if mix is None else mix
    if kind == "kl":
        found = _kl(p, q)
    elif kind == "reverse":
        found = _kl(q, p)
    elif kind == "js":
        both = _mixed(p, q, share)
        found = share * _kl(p, both) + (1 - share) * _kl(q, both)
    elif kind == "skew":
        found = _kl(p, _mixed(p, q, share))
    else:
        found = _kl(q, _mixed(q, p, share))
    return found * temperature**2


def blended(teachers: list[Tensor], temperature: float) -> Tensor:
    """Logits whose softmax at `temperature` is the mean of the teachers' softmax at `temperature`."""
    import torch
    from torch.nn import functional

    if len(teachers) == 1:
        return teachers[0]
    each = torch.stack([functional.log_softmax(one / temperature, dim=-1) for one in teachers])
    return temperature * (torch.logsumexp(each, dim=0) - math.log(len(teachers)))


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of rows of log-probabilities."""
    return (p.exp() * (p - q)).sum(dim=-1)


def _mixed(p: Tensor, q: Tensor, share: float) -> Tensor:
    """Logarithm of share · p + (1 - share) · q."""
    import torch

    return torch.logaddexp(p + math.log(share), q + math.log(1 - share))
