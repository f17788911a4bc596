"""Models that give no answer but states: what makes of them the embedding of a text."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from lissom.files import Sentence

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def is_bare(model: PreTrainedModel) -> bool:
    """Whether `model` has no head and reads a text in one go: its answer are the states of the tokens."""
    name = type(model).__name__
    return not ("For" in name or model.can_generate() or model.config.is_encoder_decoder)


def sentence_of(model: PreTrainedModel) -> Sentence:
    """How the states of `model` become an embedding: as noted, else their mean over the tokens, scaled to length 1."""
    return Sentence(**getattr(model.config, "_sentence", {}))


def note_sentence(model: PreTrainedModel, sentence: Sentence) -> None:
    """Keep `sentence` with `model`, its copies, and students that are made from its config."""
    model.config._sentence = dataclasses.asdict(sentence)
