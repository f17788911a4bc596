"""Make a teacher: an encoder or decoder with a fresh head for a task, trained on labels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from lissom.anatomy import positions
from lissom.data import encode
from lissom.errors import LissomError
from lissom.train import checkpoint
from lissom.train.objectives import OBJECTIVES
from lissom.train.run import Trained, train
from lissom.train.score import Validation

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from lissom.data import Data, Task

_HEADS = {
    "classification": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "tagging": "AutoModelForTokenClassification",
    "question_answering": "AutoModelForQuestionAnswering",
    "language_modelling": "AutoModelForCausalLM",
    "text_to_text": "AutoModelForSeq2SeqLM",
}


def finetune(
    model: PreTrainedModel,
    data: Data,
    *,
    tokenizer: PreTrainedTokenizerBase,
    epochs: float = 2.0,
    learning_rate: float = 5e-5,
    batch_size: int = 32,
    batch_tokens: int | None = None,
    accumulate: int = 1,
    max_steps: int | None = None,
    patience: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    max_length: int = 128,
    work: Path,
    report: Callable[[str, float], None] = lambda phrase, fraction: None,
) -> tuple[PreTrainedModel, Trained]:
    """A model for the task of `data`, trained on its train split; and what the run did. `model` stays as it is.

    With a validation split the weights of the best epoch are kept. An interrupted run continues from `work`. The other
    options are those of `train`.
    Raises LissomError LSM-716 when there is no head of this kind for the model, 826 when it cannot go on with running
    text, and those of `train`.
    """
    made = with_head(model, data.task, seed=seed, pad_id=tokenizer.pad_token_id)
    max_length = min(max_length, positions(made) or max_length)
    pad_id = tokenizer.pad_token_id or 0
    validate = None
    if "validation" in data.splits:
        rows = encode(data.split("validation"), tokenizer, data.task, max_length)
        validate = Validation.of(data.task, rows, pad_id)
    done = train(
        made,
        encode(data.split("train"), tokenizer, data.task, max_length),
        {"task": OBJECTIVES["task"]()},
        validate=validate,
        epochs=epochs,
        max_steps=max_steps,
        learning_rate=learning_rate,
        batch_size=batch_size,
        batch_tokens=batch_tokens,
        accumulate=accumulate,
        patience=patience,
        seed=seed,
        device=device,
        pad_id=pad_id,
        work=work,
        report=report,
    )
    return made, done


def with_head(model: PreTrainedModel, task: Task, *, seed: int = 0, pad_id: int | None = None) -> PreTrainedModel:
    """A copy of `model` with a head for `task`: its own where that fits, else a fresh one drawn with `seed`.

    The config gets `num_labels`, `id2label` and `problem_type`; also `pad_token_id` if it has none (decoders find the
    last token of a text by it).
    Raises LSM-716 when transformers has no such head for the model's family, or the model was compressed; 826 for
    running text and a model that reads a text in one go.
    """
    config = copy.deepcopy(model.config)
    if task.kind == "language_modelling" and _sees_all(config):
        cause = f"{type(model).__name__} reads a text in one go, so texts without labels cannot teach it to go on"
        raise LissomError(826, cause, remedy="Give texts with labels; lissom compress takes a model without a head.")
    if task.kind in ("classification", "regression", "tagging"):
        names = task.labels or ("score",)
        config.id2label = dict(enumerate(names))
        config.label2id = {name: i for i, name in enumerate(names)}
    if task.kind in ("classification", "regression"):
        config.problem_type = "regression" if task.kind == "regression" else "single_label_classification"
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = pad_id
    numbers = checkpoint.random_state()
    try:
        torch.manual_seed(seed)
        auto = getattr(transformers, _HEADS[task.kind])
        made: PreTrainedModel = auto.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except ValueError as error:
        cause = f"there is no head for {task.kind.replace('_', ' ')} on {config.model_type}"
        raise LissomError(716, cause, remedy="Use a model of another family.") from error
    finally:
        checkpoint.set_random_state(numbers)
    _fill(made, model)
    return made


def _sees_all(config: PreTrainedConfig) -> bool:
    """Whether tokens see what stands behind them: with a head for the next token there is nothing to foresee."""
    masked = type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING
    return masked and not getattr(config, "is_decoder", False)


def _fill(made: PreTrainedModel, model: PreTrainedModel) -> None:
    """Copy the weights of `model` into `made`: everything where the head is the same, else all but the head."""
    whole = made.state_dict()
    given: dict[str, Any] = model.state_dict()
    same = type(made) is type(model) and all(
        name in given and given[name].shape == one.shape for name, one in whole.items()
    )
    target, source = (made, model) if same else (made.base_model, model.base_model)
    wanted, found = target.state_dict(), source.state_dict()
    odd = {name for name in wanted if name in found and not _alike(wanted[name], found[name])}
    missing = {name for name in wanted if name not in found and "pooler" not in name}
    if odd or missing:
        name = min(odd | missing)
        cause = "the model does not have the structure that its config says"
        raise LissomError(716, cause, place=name, remedy="Fine-tune the model before it is compressed.")
    target.load_state_dict(found, strict=False)


def _alike(wanted: Tensor, found: Tensor) -> bool:
    """Whether `found` can stand for `wanted`; the codes of a packed layer cannot, though they have its shape."""
    return wanted.shape == found.shape and wanted.is_floating_point() == found.is_floating_point()
