"""The teacher's own texts: what it writes for the training texts, the student learns to write.

    L = cross-entropy of the student with the tokens that the teacher wrote

Source: Kim and Rush 2016 (sequence-level distillation), section 3.2: the likeliest text of the teacher, found by beam
search, stands for its distribution over texts.
A teacher with an encoder and a decoder reads the source, as there, and its text stands for the target of the data.
Differs: a decoder goes on with the text's beginning.
The texts are made once, before training, and stored in the work folder; from then on nothing is asked of the teacher.
They take the place of the training texts for all objectives of the step: with logits beside it, its distributions over
its own texts are learnt as well (their section 3.3, without the choice by BLEU).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, cast

from pydantic import Field

from lissom.errors import LissomError
from lissom.train.objectives.base import Answers, Means, Objective

if TYPE_CHECKING:
    import datasets
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lissom.anatomy import Anatomy

_ROWS = 32  # that are continued at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceLevel(Objective):
    """Learns, by cross-entropy, what the teacher writes; for causal models, or those with an encoder and a decoder."""

    name: ClassVar[str] = "sequence"
    teacher: ClassVar[bool] = False  # it is asked before training, not in it
    labels: ClassVar[bool] = True
    answers: ClassVar[bool] = True
    source: ClassVar[str] = "Kim and Rush 2016, section 3.2"

    prompt: Annotated[int, Field(ge=1, description="Tokens of each text that a causal teacher begins with.")] = 32
    new_tokens: Annotated[int, Field(ge=1, description="Tokens that it adds at most.")] = 64
    beams: Annotated[int, Field(ge=1, le=64, description="Texts that it compares; 1 takes the likeliest token.")] = 1

    def check(
        self, anatomy: Anatomy, tokenizer: PreTrainedTokenizerBase | None, teachers: Sequence[PreTrainedModel]
    ) -> None:
        """Raises LSM-317 without a teacher, 319 for models that do not write in the same way, or too many tokens."""
        from lissom.train.continuation import check_decoder, check_length

        _first(teachers)
        models = (cast("PreTrainedModel", anatomy.model), *teachers[:1])
        if all(map(_answers, models)):
            check_length(models, self.new_tokens, self.name, "new_tokens are")
        else:
            check_decoder(models, self.prompt + self.new_tokens, self.name)

    def rewrite(self, rows: datasets.Dataset, means: Means) -> datasets.Dataset:
        """Each row's beginning with the first teacher's continuation, which alone is labelled; or each source with the
        teacher's text as labels."""
        import datasets as hub

        from lissom.train.cache import digest, kept
        from lissom.train.continuation import answered, row

        teacher = _first(means.teachers)
        plan = [rows["input_ids"][:], self.prompt, self.new_tokens, self.beams, means.versions]
        path = means.work / f"texts-{digest(plan, teacher)}.safetensors"
        stored = kept(path, lambda found: len(found["ends"]) == len(rows), lambda: self._texts(rows, means))
        said = [one.tolist() for one in stored["tokens"].tensor_split(stored["ends"][:-1])]
        make = answered if _answers(teacher) else row
        made = [make(self._prompt(one, teacher), new) for one, new in zip(rows["input_ids"], said, strict=True)]
        return hub.Dataset.from_list(made)

    def value(self, answers: Answers, beside: nn.Module) -> Tensor:
        """The student's own loss, a mean over the tokens of the continuations."""
        loss: Tensor = answers.student["loss"]
        return loss.float()

    def _prompt(self, row: list[int], teacher: PreTrainedModel) -> list[int]:
        from lissom.train.continuation import beginning

        return row if _answers(teacher) else beginning(row, self.prompt)

    def _texts(self, rows: datasets.Dataset, means: Means) -> dict[str, Tensor]:
        """All continuations in one row, and where each of them ends."""
        import torch

        from lissom.train.answers import autocast
        from lissom.train.continuation import continued

        teacher = _first(means.teachers)
        torch.nn.Module.to(teacher, means.device)
        prompts = [self._prompt(one, teacher) for one in rows["input_ids"]]
        order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
        said: list[list[int]] = [[]] * len(prompts)
        for start in range(0, len(order), _ROWS):
            means.report("texts of the teacher", 0.0)
            some = order[start : start + _ROWS]
            with autocast(means.device, means.bf16):
                new = continued(
                    teacher, [prompts[at] for at in some], new_tokens=self.new_tokens, sample=False, beams=self.beams
                )
            for at, one in zip(some, new, strict=True):
                said[at] = one
        ends = torch.tensor([len(one) for one in said]).cumsum(0)
        return {"tokens": torch.tensor([token for one in said for token in one]), "ends": ends}


def _answers(model: PreTrainedModel) -> bool:
    """Whether `model` writes an answer to what it has read, and does not go on with it."""
    return bool(model.can_generate() and model.config.is_encoder_decoder)


def _first(teachers: Sequence[PreTrainedModel]) -> PreTrainedModel:
    if not teachers:
        cause = "sequence learns from the texts of a teacher, and there is none"
        raise LissomError(317, cause, place="sequence", remedy="Give one, or learn only the task.")
    return teachers[0]
