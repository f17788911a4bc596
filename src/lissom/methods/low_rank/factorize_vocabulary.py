"""Replace the table of tokens, or the map to the scores of tokens, by two thin factors: E ≈ A B, A (tokens, r).

    weights   ‖E - A B‖_F
    tokens    ‖D (E - A B)‖_F, D² = how often each token stands in texts, plus one

A head that shares the table multiplies by the same pair, transposed. Started from a trained table by its truncated SVD.
Sources: Lan et al. 2020, "ALBERT", section 3.1 (input); Sainath et al. 2013, "Low-rank matrix factorization for deep
neural network training with high-dimensional output targets", section 3 (output), and Reid et al. 2021, "Subformer",
section 3.2 (mixes: SAFE), all trained so from the start; Chen et al. 2021, "DRONE", section 3.3 (tokens: there only
those that texts hold count).
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lissom import edits
from lissom.anatomy import Anatomy, Slot, dissect
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Stage
from lissom.methods.low_rank.metrics import Metric
from lissom.methods.low_rank.ranks import Size, uniform

_log = logging.getLogger("lissom")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactorizeVocabulary(Method):
    """Factorize the table of tokens, or the map to their scores; where both are one, both at once."""

    name: ClassVar[str] = "factorize_vocabulary"
    stage: ClassVar[Stage] = Stage.RANK
    speed: ClassVar[str] = "smaller; faster only where a language model scores many tokens of its vocabulary"
    source: ClassVar[str] = "Lan et al. 2020, section 3.1; Sainath et al. 2013; Chen et al. 2021, section 3.3"

    ratio: Annotated[float, Field(gt=0, le=1, description="share of the parameters of the table that is kept")] = 0.25
    of: Annotated[
        Literal["input", "output"], Field(description="the table of tokens, or the map to the scores of tokens")
    ] = "input"
    by: Annotated[
        Literal["weights", "tokens"], Field(description="what an error costs; tokens counts them in texts")
    ] = "weights"
    samples: Annotated[int, Field(ge=1, le=100_000, description="texts in which tokens are counted")] = 1024
    mixes: Annotated[
        bool,
        Field(description="let the narrow rows of a text look at each other, which is learnt by tune; encoders only"),
    ] = False

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-317 when there are no texts to count tokens in, LSM-715 when the model has no such map or no whole
        text to mix."""
        if self.by == "tokens" and (given.data is None or given.tokenizer is None):
            raise LissomError(317, "by: tokens looks at texts", remedy="Give --data, or choose by: weights.")
        if self.mixes and (self.of == "output" or any(stack.name == "decoder" for stack in anatomy.stacks)):
            cause = "rows that look at each other need the whole text, which only the input of an encoder has"
            raise LissomError(715, cause, remedy="Leave mixes out.")
        if self.of == "output" and not _heads(anatomy):
            cause = f"{type(anatomy.model).__name__} has no map to the scores of tokens"
            raise LissomError(715, cause, remedy="Choose of: input.")

    def apply(self, editor: Editor, given: Given) -> None:
        """Factorize, and fill in the factors; what cannot be replaced alone, or saves nothing, stays, and is named."""
        anatomy = editor.anatomy()
        table = _plain_table(anatomy)
        tied = _tied(anatomy, table)
        if self.of == "output" and all(_alone(anatomy.model, slot) for slot in _heads(anatomy)):
            for slot in _heads(anatomy):
                rank, metric = self._rank(slot.out_features, slot.in_features), self._metric(editor, given)
                if rank:
                    up, down = metric.factors(slot.weight, rank)
                    factors = {f"{slot.path}.up.weight": up, f"{slot.path}.down.weight": down}
                    editor.apply(edits.Factorize(ranks={slot.path: rank}), factors)
            return
        if table is None or tied is None:
            _log.warning("the token table is not a plain one of its own, and stays as it is")
            return
        weight = editor.model.get_parameter(f"{table}.weight")
        rank = self._rank(*weight.shape)
        if rank:
            narrow, widen = self._metric(editor, given).factors(weight, rank)
            factors = {f"{table}.table.weight": narrow, f"{table}.widen": widen}
            editor.apply(edits.FactorizeTable(path=table, rank=rank, heads=tied, mixes=self.mixes), factors)

    def _rank(self, rows: int, columns: int) -> int:
        return uniform({"": Size(rows=rows, columns=columns, held=rows * columns)}, self.ratio)[""]

    def _metric(self, editor: Editor, given: Given) -> Metric:
        if self.by == "weights":
            return Metric()
        table = editor.model.get_input_embeddings()
        counts = torch.ones(int(table.num_embeddings))  # type: ignore[arg-type]
        for batch in given.calibration(editor.model, self.samples):
            ids = batch["input_ids"][batch["attention_mask"] == 1].cpu()
            counts += torch.bincount(ids, minlength=len(counts))
        return Metric(rows=counts.sqrt().to(next(editor.model.parameters()).device))


def _plain_table(anatomy: Anatomy) -> str | None:
    table = anatomy.model.get_input_embeddings()  # type: ignore[operator]
    path = next((name for name, module in anatomy.model.named_modules() if module is table), None)
    return path if type(table) is nn.Embedding else None


def _heads(anatomy: Anatomy) -> list[Slot]:
    """The maps to the scores of tokens."""
    rows = anatomy.model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    answers = ("LM", "LMHeadModel", "PreTraining", "Generation")
    if not type(anatomy.model).__name__.endswith(answers):
        return []
    return [slot for slot in anatomy.head if slot.out_features == rows]


def _alone(model: nn.Module, slot: Slot) -> bool:
    """Whether no other module holds the weight of this map."""
    weight = slot.module._parameters.get("weight")
    return weight is None or sum(one._parameters.get("weight") is weight for one in model.modules()) == 1


def _tied(anatomy: Anatomy, table: str | None) -> tuple[str, ...] | None:
    """Paths of the heads that share the table; None where something else does, or where a head stands for no map."""
    if table is None:
        return None
    weight: Tensor = anatomy.model.get_parameter(f"{table}.weight")
    users = [
        name for name, one in anatomy.model.named_modules() if name != table and getattr(one, "weight", None) is weight
    ]
    heads = {slot.path for slot in dissect(anatomy.model).head}
    return tuple(users) if all(name in heads for name in users) else None
