"""What is computed once and read again: names for files that say everything that decides them, and such files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from lissom.errors import LissomError
from lissom.files import read_safetensors
from lissom.train import checkpoint

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def digest(plan: Sequence[Any], *models: PreTrainedModel) -> str:
    """16 hexadecimal digits of everything that decides a result: plain values, and the weights of `models`."""
    found = hashlib.sha256(json.dumps(plan, sort_keys=True).encode())
    for model in models:
        for name, tensor in checkpoint.weights(model).items():
            found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def kept(
    path: Path, fits: Callable[[dict[str, Tensor]], bool], make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The tensors in the safetensors file `path`; made, and written there, when it is missing, torn or does not fit."""
    try:
        stored = read_safetensors(path) if path.is_file() else None
        if stored is not None and fits(stored):
            return stored
    except (LissomError, KeyError):
        pass
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}.partial")  # several processes may write the same file
    save_file(made, beside)
    beside.replace(path)
    return made
