"""A BiLSTM in the place of a transformer: an untrained student of another kind, for `tune` to teach.

Source: Tang et al. 2019, "Distilling task-specific knowledge from BERT into simple neural networks", section 3.1; what
differs from it stands at the head of `lissom.bilstm.model`.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field

from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Stage

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lissom.anatomy import Anatomy
    from lissom.edits import Editor

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BilstmStudent(Method):
    """Go on with a one-layer BiLSTM text classifier that knows nothing yet but, by default, the token table.

    Where the data has pairs and the tokenizer puts a separator between their texts, it reads each text by itself and
    compares what it read.
    """

    name: ClassVar[str] = "bilstm_student"
    stage: ClassVar[Stage] = Stage.STUDENT
    speed: ClassVar[str] = "faster in every runtime: one recurrent layer; on long texts less so, token after token"
    source: ClassVar[str] = "Tang et al. 2019, section 3.1"

    embedding: Annotated[
        Literal["teacher"] | Annotated[int, Field(ge=1, le=65536)],
        Field(description="a copy of the original's token table, or the width of a new one"),
    ] = "teacher"
    units: Annotated[int, Field(ge=1, le=65536, description="of the LSTM in each direction")] = 150
    hidden: Annotated[int, Field(ge=1, le=65536, description="units of the layer before the classifier")] = 200

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-715 for a model that does not classify texts."""
        kind = type(anatomy.model).__name__
        if not kind.endswith("ForSequenceClassification"):
            cause = f"the BiLSTM answers whole texts, and {kind} does not"
            raise LissomError(715, cause, remedy="Begin with a classifier or a regression model, or use fresh_student.")

    def apply(self, editor: Editor, given: Given) -> None:
        """Replace the model."""
        from lissom.bilstm.config import BiLstmConfig
        from lissom.bilstm.model import BiLstmForSequenceClassification

        original = editor.model
        table = _table(original)
        own = original.config
        text = own.get_text_config()
        config = BiLstmConfig(
            vocab_size=table.shape[0],
            embedding_size=table.shape[1] if self.embedding == "teacher" else self.embedding,
            units=self.units,
            hidden_size=self.hidden,
            separator_id=_separator(given),
            pad_token_id=text.pad_token_id,
            eos_token_id=getattr(text, "eos_token_id", None),
            id2label=dict(own.id2label or {}),
            label2id=dict(own.label2id or {}),
            problem_type=own.problem_type,
        )
        with torch.random.fork_rng():
            torch.manual_seed(given.seed)
            student = BiLstmForSequenceClassification(config)
        if self.embedding == "teacher":
            student.embeddings.weight.data.copy_(table)
        editor.replace(torch.nn.Module.to(student, original.device).train(False))


def _table(model: PreTrainedModel) -> Tensor:
    """The token table, (tokens, width) float32, on the CPU."""
    table = model.get_input_embeddings()
    rows = int(model.config.get_text_config().vocab_size)
    rows = getattr(table, "num_embeddings", rows)
    with torch.no_grad():
        found: Tensor = table(torch.arange(rows, device=model.device))
    return found.float().cpu()


def _separator(given: Given) -> int | None:
    """The token that stands between the texts of a pair; None without pairs, or where there is no such token."""
    paired = given.data is not None and any("text_b" in rows.column_names for rows in given.data.splits.values())
    if not paired or given.tokenizer is None:
        return None
    found = between(given.tokenizer)
    if found is None:
        log.info("The tokenizer puts nothing between the texts of a pair: the BiLSTM reads both as one.")
    return found


def between(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The first token that `tokenizer` puts between the texts of a pair; None where it puts none there."""
    if not tokenizer.is_fast:
        separator: int | None = tokenizer.sep_token_id
        return separator
    pair = tokenizer("a", "a")
    sides = pair.sequence_ids()  # of each token: 0 or 1 for the text that it is of, else None
    end, start = len(sides) - sides[::-1].index(0), sides.index(1)
    return None if end == start else int(pair["input_ids"][end])
