"""The torch engine: any transformers model that is in memory."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, ClassVar

import torch

from lissom.anatomy import is_bare, positions, sentence_of
from lissom.edits import exits_of
from lissom.errors import LissomError
from lissom.runtime.runner import Arrays, Runner, embed, usable_length

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ANSWERS = ("logits", "start_logits", "end_logits")


class TorchRunner(Runner):
    """Runs a transformers model with torch, without gradients and in eval mode; the model's own mode is put back.

    model: used as it is, not copied.  tokenizer: one with a `tokenizers` backend, or None.
    device: where to move the model; None leaves it where it is.  max_length: tokens; None takes the model's.
    tokens_per_batch: MiniLM-L6, short news texts, 2 cores, best of 8 runs: 178 texts a second with 512 tokens, 184 with
        1,024, 174 with 2,048, 141 with 4,096. A GPU wants more.
    threads: CPU threads of a pass; None leaves torch's setting alone.  folder: where the model was loaded from.
    Raises LissomError LSM-734 for a tokenizer without a `tokenizers` backend.
    """

    name: ClassVar[str] = "torch"
    tokens_per_batch: ClassVar[int] = 1024

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        device: str | None = None,
        max_length: int | None = None,
        threads: int | None = None,
        folder: Path | None = None,
    ) -> None:
        self.model: PreTrainedModel = model if device is None else torch.nn.Module.to(model, device)
        self.threads = threads
        config = model.config.get_text_config()
        limit = None if tokenizer is None or tokenizer.model_max_length > 10**6 else tokenizer.model_max_length
        sentence = sentence_of(model) if is_bare(model) else None
        if sentence is not None and sentence.max_length is not None:
            limit = min(limit or sentence.max_length, sentence.max_length)
        exits = exits_of(model)
        asked = set(inspect.signature(model.forward).parameters)
        given = {"input_ids", "attention_mask"} if tokenizer is None else set(tokenizer.model_input_names)
        # The embedding skips, and the classifier of a decoder looks for, the *model's* pad token, so it goes first.
        pads = [config.pad_token_id, None if tokenizer is None else tokenizer.pad_token_id, 0]
        super().__init__(
            tokenizer=None if tokenizer is None else _backend(tokenizer),
            max_length=usable_length(max_length, limit, positions(model)),
            inputs=frozenset(asked & given),
            pad_id=next(pad for pad in pads if pad is not None),
            labels=_labels(model),
            folder=folder,
            files=() if folder is None else tuple(sorted(folder.glob("*.safetensors"))),
            truncation_side="right" if tokenizer is None else tokenizer.truncation_side,
            sentence=sentence,
            exits=() if exits is None or exits.rule is None else (*exits.layers, exits.depth),
        )

    def forward(self, batch: Arrays) -> Arrays:
        """See `Runner.forward`."""
        if self.threads is not None and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)  # one setting for the whole process: another runner may have changed it
        tensors = {name: torch.from_numpy(array).to(self.model.device) for name, array in batch.items()}
        if "decoder_input_ids" not in tensors and self.model.config.is_encoder_decoder and self.model.can_generate():
            first = self.model.config.decoder_start_token_id  # what it would write first is all that is asked for
            tensors["decoder_input_ids"] = torch.full_like(tensors["input_ids"][:, :1], first)
        training = self.model.training
        if training:
            self.model.train(False)
        try:
            with torch.inference_mode():
                outputs = self.model(**tensors)
        finally:
            if training:
                self.model.train()
        found = {name: outputs[name].float().cpu().numpy() for name in ANSWERS if name in outputs}
        if not found:
            hidden = outputs["last_hidden_state"].float().cpu().numpy()
            return {"embeddings": embed(hidden, batch["attention_mask"], sentence_of(self.model))}
        if "exit_layer" in outputs:
            found["exit_layer"] = outputs["exit_layer"].float().cpu().numpy()
        return found


def _backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A private copy, so that truncation set here never changes what the caller's tokenizer does."""
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise LissomError(
            734,
            f"{type(tokenizer).__name__} has no fast version, and every engine here reads texts with one",
            remedy="Load the tokenizer from a folder with a tokenizer.json.",
        )
    return Tokenizer.from_str(backend.to_str())


def _labels(model: PreTrainedModel) -> tuple[str, ...]:
    """Class names of a classifier. Other models carry two meaningless default labels in their config."""
    if "Classification" not in type(model).__name__:
        return ()
    names = model.config.id2label or {}
    return tuple(str(name) for _, name in sorted(names.items()))
