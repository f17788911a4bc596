"""Where a model has one row, or one value, a token: what goes when tokens go."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from lissom.anatomy.positions import counts_from_padding
from lissom.errors import LissomError
from lissom.nn import Int8Embedding, KroneckerEmbedding, TensorTrainEmbedding, ThinEmbedding

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAMES = "_token_id"  # how configs end the entries that name a token


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Every place with one row a token, and the tokens that the model names.

    size: rows of the token table; a tokenizer may have fewer tokens.
    tables: paths of the token tables; an encoder-decoder has several, often one and the same tensor.
    outputs: paths of the linear maps that give one logit a token.
    values: full names of the biases and buffers beside them that have one value a token.
    named: the tokens that configs and tables name by number (padding, beginning, end, ...), ascending.
    first: how many of the first tokens must keep their number, because positions are counted from behind the padding
        token (RoBERTa); 0 where none must.
    """

    size: int
    tables: tuple[str, ...]
    outputs: tuple[str, ...]
    values: tuple[str, ...]
    named: tuple[int, ...]
    first: int


def vocabulary(model: PreTrainedModel) -> Vocabulary:
    """Find what counts tokens in `model`, edited or not, empty or full.

    Raises LissomError LSM-715 for a model without a token table.
    """
    paths = {id(module): name for name, module in model.named_modules()}
    tables = _asked(model, paths, "get_input_embeddings")
    if not tables or not isinstance(
        model.get_submodule(tables[0]), nn.Embedding | Int8Embedding | TensorTrainEmbedding
    ):
        raise LissomError(715, f"{type(model).__name__} has no table of tokens that can be cut")
    size = int(cast("nn.Embedding", model.get_submodule(tables[0])).num_embeddings)
    tables = tuple(one for one in tables if getattr(model.get_submodule(one), "num_embeddings", None) == size)
    outputs = _asked(model, paths, "get_output_embeddings")
    named = {cast("nn.Embedding", model.get_submodule(one)).padding_idx for one in tables}
    for config in configs(model):
        for value in named_tokens(config).values():
            named |= set(value) if isinstance(value, list) else {value}
    padding = counts_from_padding(model)
    return Vocabulary(
        size=size,
        tables=tables,
        outputs=outputs,
        values=tuple(dict.fromkeys(name for path in outputs for name in _beside(model, path, size))),
        named=tuple(sorted(one for one in named if one is not None and 0 <= one < size)),
        first=0 if padding is None else padding + 1,
    )


def configs(model: PreTrainedModel) -> list[Any]:
    """The config of `model`, those that its parts hold, and that of generation, each once."""
    held = [getattr(module, "config", None) for module in model.modules()]
    every = (*held, getattr(model, "generation_config", None))
    return list({id(one): one for one in every if one is not None}.values())


def named_tokens(config: Any) -> dict[str, int | list[int]]:
    """Entries of a config that name a token, or several, by number."""
    found = {key: value for key, value in config.to_dict().items() if key.endswith(_NAMES)}
    return {key: value for key, value in found.items() if isinstance(value, int | list)}


def _asked(model: PreTrainedModel, paths: dict[int, str], getter: str) -> tuple[str, ...]:
    """Paths of what the model and its parts answer when they are asked for their embeddings, each once."""
    found: dict[str, None] = {}
    for module in model.modules():
        ask = getattr(module, getter, None)
        try:
            answer = None if ask is None else ask()
        except NotImplementedError:  # a part without a table of its own
            answer = None
        if isinstance(answer, ThinEmbedding | KroneckerEmbedding):
            answer = answer.table  # the part with a row a token
        if id(answer) in paths:
            found[paths[id(answer)]] = None
    return tuple(found)


def _beside(model: nn.Module, path: str, size: int) -> list[str]:
    """Full names of the tensors with one value a token in the modules around `path`."""
    found = []
    while path:
        path = path.rpartition(".")[0]
        owner = model.get_submodule(path)
        for name, tensor in (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)):
            if tensor.shape[-1:] == (size,) and tensor.numel() == size:
                found.append(f"{path}.{name}" if path else name)
    return found
