"""The teacher's state of the same text or token is nearer than those of others.

    L = - log( exp( <s, t> / τ ) / ( exp( <s, t> / τ ) + sum over k of exp( <s, t_k> / τ ) ) )

with < , > the cosine, s the student's, t the teacher's, t_k the teacher's of others.
texts: s and t are the means over the real tokens of every layer, the embeddings' too, put one after another and mapped
    linearly to `size` numbers; others are the texts of the batch and of a queue of earlier ones, no copies of
    the text itself, and where texts have a class only those of another class. Sun et al. 2020 (CoDIR), section 3.
    Differs: the rest of the batch counts too.
tokens: s and t are the last states of a token, with a trained map where widths differ; others are the tokens of the
    same text. Tao et al. 2022 (QuantGPT), section 3.1. Differs: all other tokens count, and not the student's own
    earlier states, of which the paper keeps a slow average for every training text.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from lissom.train.objectives.base import Answers, Objective, Read
from lissom.train.objectives.layers import states
from lissom.train.objectives.positions import fit, gather

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers.utils.generic import ModelOutput

_NO_CLASS = -1
_HASH = 6364136223846793005  # Knuth's multiplier of a linear congruential generator


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrastive(Objective):
    """Learns to tell the teacher's state of a text or token from those of others."""

    name: ClassVar[str] = "contrastive"
    reads: ClassVar[frozenset[Read]] = frozenset({"hidden_states"})
    source: ClassVar[str] = "Sun et al. 2020 (CoDIR), section 3; tokens: Tao et al. 2022 (QuantGPT), section 3.1"

    of: Annotated[
        Literal["texts", "tokens"],
        Field(description="Texts against other texts, or tokens against those of their text."),
    ] = "texts"
    temperature: Annotated[
        float, Field(gt=0, le=100, description="Divides the cosines: lower looks harder at the nearest others.")
    ] = 0.1
    queue: Annotated[
        int, Field(ge=0, le=1_000_000, description="How many earlier texts are kept as others, for texts.")
    ] = 1024
    size: Annotated[int, Field(ge=1, le=65536, description="Numbers of a text's summary, for texts.")] = 128

    def begin(self, answers: Answers) -> nn.Module:
        """The maps, and for texts the queue, empty. Raises LSM-715 for a model without a single row of states."""
        import torch
        from torch import nn

        beside = nn.Module()
        student, teacher = states(answers.student, self.name), states(answers.taught, self.name)
        if self.of == "tokens":
            beside.width = fit(student[-1].shape[-1], teacher[-1].shape[-1])
            return beside
        for name, layers in (("student", student), ("teacher", teacher)):
            setattr(beside, name, nn.Linear(sum(one.shape[-1] for one in layers), self.size))
        beside.register_buffer("queue", torch.zeros(self.queue, self.size))
        beside.register_buffer("classes", torch.full((self.queue,), _NO_CLASS))
        beside.register_buffer("texts", torch.zeros(self.queue, dtype=torch.int64))
        beside.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        return beside

    def value(self, answers: Answers, beside: nn.Module) -> Tensor:
        """Mean over the texts, or over the real tokens."""
        return self._tokens(answers, beside) if self.of == "tokens" else self._texts(answers, beside)

    def _tokens(self, answers: Answers, beside: Any) -> Tensor:
        import torch
        from torch.nn import functional

        mask = answers.mask
        mine = functional.normalize(beside.width(states(answers.student, self.name)[-1]).float(), dim=-1)
        wanted = functional.normalize(states(answers.taught, self.name)[-1].float(), dim=-1)
        near = (mine @ wanted.transpose(1, 2)).float() / self.temperature  # (batch, seq, seq)
        near = near.masked_fill(~mask[:, None, :], -1e9)
        own = torch.arange(near.shape[1], device=near.device).expand(len(near), -1)
        return functional.cross_entropy(near[mask], own[mask])

    def _texts(self, answers: Answers, beside: Any) -> Tensor:
        import torch
        from torch.nn import functional

        mine = functional.normalize(beside.student(summary(answers.student, answers.mask)).float(), dim=-1)
        wanted = functional.normalize(beside.teacher(summary(answers.taught, answers.mask)).float(), dim=-1)
        classes, texts = _classes(answers, len(mine)), _texts(answers)
        filled = min(int(beside.seen), self.queue)
        others, theirs = torch.cat([wanted, beside.queue[:filled]]), torch.cat([classes, beside.classes[:filled]])
        alike = (classes[:, None] == theirs) & (classes[:, None] != _NO_CLASS)
        alike |= texts[:, None] == torch.cat([texts, beside.texts[:filled]])  # it is met again in every epoch
        own = torch.arange(len(mine), device=mine.device)
        alike[own, own] = False
        near = (mine @ others.T).float() / self.temperature
        loss = functional.cross_entropy(near.masked_fill(alike, -1e9), own)
        self._keep(beside, wanted.detach(), classes, texts)
        return loss

    def _keep(self, beside: Any, wanted: Tensor, classes: Tensor, texts: Tensor) -> None:
        """Put the newest summaries in the place of the oldest."""
        import torch

        if not self.queue:
            return
        wanted, classes, texts = (one[-self.queue :] for one in (wanted, classes, texts))
        places = (int(beside.seen) + torch.arange(len(wanted), device=wanted.device)) % self.queue
        beside.queue[places] = wanted
        beside.classes[places] = classes
        beside.texts[places] = texts
        beside.seen += len(wanted)


def summary(output: ModelOutput, mask: Tensor) -> Tensor:
    """(batch, sum of the widths): the mean over the real tokens of every layer's states, one after another."""
    import torch

    return torch.cat([gather(one, mask, "mean") for one in states(output, "contrastive")], dim=-1)


def _classes(answers: Answers, count: int) -> Tensor:
    """The class of each text, -1 where it has none."""
    import torch

    labels = answers.inputs.get("labels")
    if labels is None or labels.dim() != 1 or answers.regression or labels.is_floating_point():
        return torch.full((count,), _NO_CLASS, device=answers.mask.device)
    return labels


def _texts(answers: Answers) -> Tensor:
    """A number that names each text, (batch,) int64: a polynomial hash of its tokens, with overflow."""
    import torch

    mask = answers.mask.long()
    powers = torch.full((mask.shape[1] + 1,), _HASH, device=mask.device).cumprod(dim=0)
    return ((answers.inputs["input_ids"] + 1) * mask * powers[mask.cumsum(dim=1)]).sum(dim=1)
