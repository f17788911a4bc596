"""How long a text a model can read, and from where it counts positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def positions(model: PreTrainedModel) -> int | None:
    """The tokens that `model` has positions for; None when its config sets no limit.

    Families whose table of positions has a place for padding count from behind it (RoBERTa: 514 rows, 512 tokens).
    """
    limit: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    padding = counts_from_padding(model)
    return limit if limit is None or padding is None else limit - padding - 1


def counts_from_padding(model: PreTrainedModel) -> int | None:
    """The number of the padding token, in families that count positions from behind it; None in the others."""
    tables = (one for name, one in model.named_modules() if name.endswith("position_embeddings"))
    return next((found for one in tables if (found := getattr(one, "padding_idx", None)) is not None), None)
