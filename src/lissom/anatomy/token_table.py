"""The table of tokens, where it is looked up and nothing else."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from torch.nn.utils import parametrize

from lissom.anatomy.dissect import dissect
from lissom.nn import KroneckerEmbedding, ThinEmbedding

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger("lissom")


def token_table(model: PreTrainedModel) -> str | None:
    """Path of the token table, or None where it cannot be stored alone in another form: the log says why.

    It can be where it is a plain nn.Embedding, transformed or not, that no output projection shares. Of a table in two
    factors it is the one with a row a token.
    """
    table: nn.Module = model.get_input_embeddings()
    if isinstance(table, ThinEmbedding | KroneckerEmbedding):
        table = table.table
    path = next((name for name, module in model.named_modules() if module is table), None)
    if path is None or parametrize.type_before_parametrizations(table) is not nn.Embedding:
        return None
    users = [name for name, module in model.named_modules() if _stored(module) is _stored(table)]
    if len(users) > 1:
        _log.warning("the token table is tied to %s and stays in floating point", ", ".join(users[1:]))
        return None
    answers_tokens = type(model).__name__.endswith(("LM", "LMHeadModel", "PreTraining"))
    if answers_tokens and not any(slot.out_features == table.num_embeddings for slot in dissect(model).head):
        _log.warning("the token table is also what the head multiplies by, and stays in floating point")
        return None
    return str(path)


def _stored(module: nn.Module) -> Any:
    """The weight of `module` before anything that transforms it; None where it has none."""
    if parametrize.is_parametrized(module, "weight"):
        return cast("Any", module).parametrizations.weight.original
    return getattr(module, "weight", None)
