"""What counts of a padded batch: states of real tokens, and means over what real tokens see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

At = Literal["tokens", "first", "mean"]


def gather(states: Tensor, mask: Tensor, at: At) -> Tensor:
    """Float32 rows (n, width) of `states` (batch, seq, width).

    mask: (batch, seq), True at real tokens.
    at: a row for every real token; for the first one of each text; or for the mean of the real ones of each text.
    """
    import torch

    if at == "tokens":
        return states[mask].float()
    if at == "first":
        return states[torch.arange(len(states), device=states.device), mask.int().argmax(dim=1)].float()
    return states.float().masked_fill(~mask[..., None], 0.0).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def fit(student: int, teacher: int) -> nn.Module:
    """What brings states of the student's width to the teacher's: a trained projection, nothing where they agree."""
    from torch import nn

    return nn.Identity() if student == teacher else nn.Linear(student, teacher, bias=False)


def by_head(x: Tensor, heads: int) -> Tensor:
    """`x` (batch, seq, width), its width split into `heads`: (batch, heads, seq, width / heads) float32."""
    batch, seq, width = x.shape
    return x.float().reshape(batch, seq, heads, width // heads).transpose(1, 2)


def squares(mine: Tensor, wanted: Tensor, seen: Tensor) -> Tensor:
    """Mean of (mine - wanted)², both (batch, heads, seq, seq), over the entries `seen` (broadcast to them)."""
    seen = seen.expand_as(mine)
    return (mine - wanted).masked_fill(~seen, 0.0).square().sum() / seen.sum().clamp_min(1)


def kl(mine: Tensor, wanted: Tensor, seen: Tensor) -> Tensor:
    """KL( softmax(wanted) ‖ softmax(mine) ) over the last axis, mean over heads and over rows that see something.

    mine, wanted: (batch, heads, seq, seq) before the softmax; log-probabilities are as good.
    seen: which keys a query sees, broadcast to them; what is not seen has no part in either distribution.
    """
    from torch.nn import functional

    seen = seen.expand_as(mine)
    mine, wanted = (
        functional.log_softmax(one.float().masked_fill(~seen, -1e9), dim=-1).masked_fill(~seen, 0.0)
        for one in (mine, wanted)
    )
    rows = seen.any(dim=-1).sum().clamp_min(1)
    return (wanted.exp() * (wanted - mine)).masked_fill(~seen, 0.0).sum() / rows
