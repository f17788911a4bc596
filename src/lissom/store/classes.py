"""The model classes that a folder may name: those of transformers, and lissom's own."""

from __future__ import annotations

from typing import Any

OURS = frozenset({"BiLstmForSequenceClassification"})


def model_class(name: str) -> Any:
    """What transformers has under `name`, else our model class of that name; None where neither has one."""
    import transformers

    if name in OURS:
        from lissom.bilstm import model

        return getattr(model, name)
    return getattr(transformers, name, None)
