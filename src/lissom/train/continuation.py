"""What a model writes: prompts in, continuations out; or, where it has an encoder, sources in and answers out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from lissom.anatomy import positions
from lissom.data.encode import IGNORED
from lissom.errors import LissomError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from lissom.data.batches import Row

Tokens = list[int]


def check_decoder(models: Sequence[PreTrainedModel], length: int, place: str) -> None:
    """Raise LSM-319 unless all `models` are decoders that read texts of `length` tokens."""
    for model in models:
        if not model.can_generate() or model.config.is_encoder_decoder:
            cause = f"{type(model).__name__} does not go on with a text"
            raise LissomError(319, cause, place=place, remedy="Use causal language models.")
    check_length(models, length, place, "prompt and new_tokens are")


def check_length(models: Sequence[PreTrainedModel], length: int, place: str, what: str) -> None:
    """Raise LSM-319 unless all `models` have positions for `length` tokens. what: begins the sentence."""
    for model in models:
        limit = positions(model)
        if limit is not None and length > limit:
            cause = f"{what} {length} tokens, {type(model).__name__} reads {limit}"
            raise LissomError(319, cause, place=place, remedy="Lower one of them.")


def beginning(row: Tokens, prompt: int) -> Tokens:
    """The first `prompt` tokens of a text, or all but the last one of a shorter text."""
    return row[: min(prompt, max(1, len(row) - 1))]


def continued(
    model: PreTrainedModel, prompts: Sequence[Tokens], *, new_tokens: int, sample: bool, beams: int = 1
) -> list[Tokens]:
    """What `model`, in eval mode, says after each of `prompts`, or answers to it where it has an encoder: up to
    `new_tokens` tokens, with the one that ends it.

    sample: draw each token from the model's own distribution with torch's generator; else the likeliest one, or the
    likeliest of `beams` texts. Options that the model's own generation config holds are not used,
    but for tokens that it forces, as BART does the end of a text that is cut.
    """
    from transformers import GenerationConfig

    end = model.generation_config.eos_token_id
    if end is None:
        end = model.config.eos_token_id
    ends = set(end) if isinstance(end, list) else {end}
    filler = next(iter(ends - {None}), 0)
    longest = max(map(len, prompts))
    start = model.config.decoder_start_token_id if model.config.is_encoder_decoder else None
    side = slice(None, None, -1 if start is None else 1)  # padding stands before a beginning, and behind a source

    def filled(rows: Sequence[Tokens], with_: int) -> torch.Tensor:
        padded = [[*one[side], *[with_] * (longest - len(one))][side] for one in rows]
        return torch.tensor(padded, device=model.device)

    ids, mask = filled(prompts, filler), filled([[1] * len(one) for one in prompts], 0)
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=new_tokens,
        min_new_tokens=0,
        do_sample=sample,
        num_beams=beams,
        temperature=1.0,
        top_k=0 if sample else 50,  # 50 is the default, of which transformers does not say that it has no effect
        top_p=1.0,
        repetition_penalty=1.0,
        eos_token_id=end,
        pad_token_id=filler,
        decoder_start_token_id=start,
        use_cache=True,
    )
    with torch.no_grad(), _evaluated(model):
        found = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)  # type: ignore[operator]
    return [_ended(one, ends) for one in found[:, longest if start is None else 1 :].tolist()]


def _ended(tokens: Tokens, ends: set[int | None]) -> Tokens:
    """`tokens` up to the first that ends a text, with it."""
    last = next((at for at, token in enumerate(tokens) if token in ends), len(tokens) - 1)
    return tokens[: last + 1]


def row(prompt: Tokens, continuation: Tokens) -> Row:
    """A row of which the continuation alone is labelled."""
    ids = [*prompt, *continuation]
    labels = [IGNORED] * len(prompt) + list(continuation)
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def answered(source: Tokens, answer: Tokens) -> Row:
    """A row of which the answer is what a decoder shall write."""
    return {"input_ids": source, "attention_mask": [1] * len(source), "labels": answer}


@contextlib.contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    """`model` in eval mode; every module gets back the mode that it had."""
    modes = [(one, one.training) for one in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for one, training in modes:
            one.training = training
