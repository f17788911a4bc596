"""What an objective is: frozen options, and a loss over what student and teacher answered."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

from pydantic import Field

from lissom.data.encode import IGNORED
from lissom.errors import LissomError
from lissom.train.ramp import Weight

if TYPE_CHECKING:
    from pathlib import Path

    import datasets
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.utils.generic import ModelOutput

    from lissom.anatomy import Anatomy

Read = Literal["hidden_states", "attentions", "projections"]
"""Keys of a model's answer: (batch, seq, width) of the embeddings and each layer; (batch, heads, seq, seq) after the
softmax of each layer; `lissom.train.projections.Projections` of each layer of the first stack."""


PADDED = -1e4
"""The score of a position of padding, in question answering."""

Embed = Callable[["PreTrainedModel"], "Tensor"]


class Ask(Protocol):
    """Asks student and teachers about a batch."""

    def __call__(self, inputs: Mapping[str, Tensor], embed: Embed | None = None) -> Answers:
        """Their answers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """What the student, and the teacher if there is one, answered to one padded batch.

    inputs: `input_ids` and `attention_mask` (batch, seq), and the labels, if there are any.
    student, teacher: logits (batch, classes) or (batch, seq, classes), or start and end logits (batch, seq); with
        what objectives asked for in `reads`. The student's hold a `loss` when an objective asked for it.
    others: the answers of further teachers, in the same form.
    next_token: position i answers what stands at i + 1 (causal language models).
    regression: the logits are numbers, not scores of classes.
    progress: the share of the run that is done, 0 to 1.
    ask: asks student and teachers about another batch, for objectives that make their own; see `Objective.asks`.
        Nothing prepares it. With a function as its second argument, each model reads what that gives for it, (batch,
        seq, width), instead of the words of `input_ids`.
    keys: (batch, seq), True at the real tokens that attention looks at, where those are not the ones of `mask`.
    model: the student itself, for objectives that let it generate. None where nothing may be asked.
    """

    inputs: Mapping[str, Tensor]
    student: ModelOutput
    teacher: ModelOutput | None = None
    others: tuple[ModelOutput, ...] = ()
    next_token: bool = False
    regression: bool = False
    progress: float = 0.0
    ask: Ask | None = None
    model: PreTrainedModel | None = None
    keys: Tensor | None = None

    @property
    def taught(self) -> ModelOutput:
        """The teacher's answers. Raises LSM-317 when there is no teacher."""
        if self.teacher is None:
            raise LissomError(317, "there is no teacher to learn from", remedy="Give one, or learn only the task.")
        return self.teacher

    @property
    def teachers(self) -> tuple[ModelOutput, ...]:
        """The answers of all teachers, the first one's first. Raises LSM-317 when there is none."""
        return (self.taught, *self.others)

    @property
    def mask(self) -> Tensor:
        """(batch, seq), True at real tokens."""
        mask = self.inputs.get("attention_mask")
        return (self.inputs["input_ids"] >= 0) if mask is None else mask.bool()

    @property
    def labels(self) -> Tensor | None:
        """The labels of the rows of `scores`, (n,); None where the batch has none."""
        import torch

        if "start_positions" in self.inputs:
            return torch.cat([self.inputs["start_positions"], self.inputs["end_positions"]])
        labels = self.inputs.get("labels")
        if labels is None or labels.dim() == 1:
            return labels
        labels = labels[:, 1:] if self.next_token else labels
        return labels[labels != IGNORED]

    def scores(self, output: ModelOutput) -> Tensor:
        """The answers that count, as float32 rows (n, classes).

        A row stands for a text; in token tasks for a labelled token, or for a real one where nothing is labelled; in
        question answering for a side of the answer (first the starts of all texts), over positions,
        padding at `PADDED`.
        """
        import torch

        if "start_logits" in output:
            both = torch.cat([output["start_logits"], output["end_logits"]]).float()
            return both.masked_fill(~self.mask.repeat(2, 1), PADDED)
        logits: Tensor = output["logits"]
        if logits.dim() == 2:
            return logits.float()
        labels = self.inputs.get("labels")
        counted = self.mask if labels is None or labels.dim() == 1 else labels != IGNORED
        if self.next_token:
            logits, counted = logits[:, :-1], counted[:, 1:]
        return logits[counted].float()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Means:
    """What an objective may use that makes its own rows before training.

    work: a folder for what is computed once.  versions: what decides the result beside models and rows.
    bf16: whether models are asked in bf16 autocast.  report: hears phrases with the share of the run that is done.
    """

    teachers: Sequence[PreTrainedModel]
    work: Path
    device: torch.device
    bf16: bool
    versions: tuple[str, ...]
    report: Callable[[str, float], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """Something that a student learns from. Its fields are its options, as those of a method."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}

    name: ClassVar[str]  # as in `learn`; the module has the same name
    teacher: ClassVar[bool] = True  # learns from the teacher
    labels: ClassVar[bool] = False  # learns from labels, through the model's own loss
    asks: ClassVar[bool] = False  # asks about batches of its own making
    two_stacks: ClassVar[bool] = False  # compares the layers of an encoder and of a decoder, each by themselves
    answers: ClassVar[bool] = False  # trains the answers themselves, so that a validation score says how far it is
    source: ClassVar[str]

    weight: Annotated[
        Weight,
        Field(description="Factor of this loss in the sum, or a ramp: {start: 1.0, end: 0.0}."),
    ] = 1.0

    def check(
        self, anatomy: Anatomy, tokenizer: PreTrainedTokenizerBase | None, teachers: Sequence[PreTrainedModel]
    ) -> None:
        """Raise `LissomError` when this student cannot learn so, or options do not go together; computes nothing."""

    @property
    def reads(self) -> frozenset[Read]:
        """What it reads of both besides the logits; a class variable where no option decides it."""
        return frozenset()

    def rewrite(self, rows: datasets.Dataset, means: Means) -> datasets.Dataset:
        """The rows that all objectives are trained on, made once before training; by default those that there are."""
        return rows

    def prepare(self, inputs: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerBase | None) -> Mapping[str, Tensor]:
        """The batch as student and teachers shall see it (masked language modelling hides tokens); by default as it is.

        An objective that overrides this says so in `asks`: stored answers of the teacher are of no use to it.
        """
        return inputs

    def begin(self, answers: Answers) -> nn.Module:
        """Modules that are trained beside the student and thrown away afterwards; by default none.

        answers: to one row, from which widths and depths are read.
        Raises `LissomError` when this student cannot learn so from this teacher.
        """
        from torch import nn

        return nn.Module()

    @abstractmethod
    def value(self, answers: Answers, beside: nn.Module) -> Tensor:
        """The loss of the batch, a scalar mean, without `weight`. beside: what `begin` gave."""
