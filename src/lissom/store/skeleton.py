"""Empty models: parameters on meta, the structure that a config and a record give, and which tensors are one."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lissom.edits import Editor, Record
from lissom.errors import LissomError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedConfig, PreTrainedModel


def put_back(config: PreTrainedConfig, restore: dict[str, Any]) -> None:
    """Set the entries of `config` to what they were before the first edit.

    Raises LissomError LSM-433 for an entry that such a config has not got.
    """
    known = config.to_dict()
    for key, value in restore.items():
        if key not in known:
            raise LissomError(433, f'the config has no entry "{key[:80]}" to restore', place="lissom.json")
        setattr(config, key, copy.deepcopy(value))


def skeleton(model: PreTrainedModel, record: Record) -> PreTrainedModel:
    """An empty model of the class, final config and dtype of `model`, built as a loader builds it from `record`."""
    config = copy.deepcopy(model.config)
    put_back(config, record.restore)
    with torch.device("meta"):
        empty: PreTrainedModel = type(model)._from_config(config, dtype=model.dtype)  # type: ignore[no-untyped-call]
        replay(empty, record)
    return empty


def replay(empty: PreTrainedModel, record: Record) -> None:
    """Apply the edits of a record, in the shortest form that gives the shapes, to a model with the base config."""
    short = dataclasses.replace(record, edits=tuple(edit.shape() for edit in record.edits))
    with torch.device("cpu"):  # loaders make everything on meta, but the edits compute with numbers of rows
        Editor(empty).replay(short)


def check_implied(empty: nn.Module, given: int, place: str) -> None:
    """Refuse an empty model that is far larger than its files, which hold `given` values. Raises LissomError LSM-432.

    A new head, and a table that is not stored because it is tied, at most double a model that is worth loading.
    """
    implied = sum(parameter.numel() for parameter in empty.parameters())
    if implied > 2 * given + 10_000_000:
        cause = f"the config describes {implied} parameters, the files hold {given} values"
        raise LissomError(432, cause, place=place, remedy="The files are incomplete or hostile.")


def shapes(model: nn.Module) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> (shape, kind) of every stored tensor; kind is "float" or an exact integer dtype."""
    return {
        name: (tuple(tensor.shape), "float" if tensor.is_floating_point() else str(tensor.dtype))
        for name, tensor in model.state_dict().items()
    }


def declared_ties(model: PreTrainedModel) -> dict[str, str]:
    """Name -> name of the tensor it is tied to, as transformers ties this model, where both still are alike."""
    alike = {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
    return {
        name: source
        for name, source in model.all_tied_weights_keys.items()
        if name in alike and alike.get(source) == alike[name]
    }


def edited_ties(empty: PreTrainedModel) -> dict[str, str]:
    """Name -> name of the tensor that the edits put in its place. Gives `empty` new tensors.

    Every place gets a tensor of its own, the edits share them again, and it shows which ones are left.
    """
    homes: dict[int, str] = {}
    for tensors, key, name, tensor in _places(empty):
        tensors[key] = _like(tensor)
        homes[id(tensors[key])] = name
    Editor(empty).settle()
    return {name: homes[id(tensor)] for _, _, name, tensor in _places(empty) if homes[id(tensor)] != name}


def own_memory(model: nn.Module) -> None:
    """Give every tensor memory of its own, aligned as torch aligns it, in the place of a mapped part of a file.

    The model then no longer depends on the file, and computes to the last bit what it computed before it was saved:
    matrix kernels sum in another order when their data starts elsewhere.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()


def _like(tensor: Tensor) -> Tensor:
    new = torch.empty_like(tensor)
    return nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new


def _places(model: nn.Module) -> Iterator[tuple[dict[str, Any], str, str, Tensor]]:
    """Each place of a tensor in a model: the dict that holds it, its key there, its full name, the tensor."""
    for path, module in model.named_modules():
        for tensors in (module._parameters, module._buffers):
            for key, tensor in list(tensors.items()):
                if tensor is not None:
                    yield tensors, key, f"{path}.{key}" if path else key, tensor
