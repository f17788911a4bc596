"""Training state on disk: tensors as safetensors, everything else as JSON; nothing is pickled.

A checkpoint is a folder `checkpoint-STEP`. It counts when its seal, written last, names every file in it with the right
digest: what a killed run or a bad disk left is not resumed from.
"""

from __future__ import annotations

import base64
import dataclasses
import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lissom.errors import LissomError
from lissom.files import digests, read_json, read_safetensors, write_json
from lissom.nn.shared import Place, place_of

SEAL = "sealed.json"
_NAME = re.compile(r"checkpoint-(\d{1,12})")


@dataclasses.dataclass(frozen=True)
class Kept:
    """Weights that are kept in memory: those of a step, with the score that they had."""

    step: int
    tensors: dict[str, Tensor]
    score: float


def seal(folder: Path) -> None:
    """Declare a checkpoint complete."""
    write_json(folder / SEAL, digests(folder))


def newest(work: Path) -> Path | None:
    """The checkpoint of the highest step whose seal holds. The others above it are removed."""
    for folder in _sorted(work):
        if _holds(folder):
            return folder
        shutil.rmtree(folder)
    return None


def step(folder: Path) -> int:
    """The step that a checkpoint is of."""
    return int(folder.name.rpartition("-")[2])


def keep(work: Path, count: int) -> None:
    """Remove all checkpoints but the newest `count`."""
    for folder in _sorted(work)[count:]:
        shutil.rmtree(folder)


def _sorted(work: Path) -> list[Path]:
    """The checkpoints in `work`, the highest step first."""
    found = [(int(name[1]), one) for one in work.glob("checkpoint-*") if (name := _NAME.fullmatch(one.name))]
    return [folder for _, folder in sorted(found, reverse=True)]


def _holds(folder: Path) -> bool:
    try:
        sealed: object = read_json(folder / SEAL)
        return sealed == digests(folder, but=[SEAL])
    except LissomError:
        return False


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the state of `model`, not copied; one that has several names under its first."""
    found: dict[str, Tensor] = {}
    seen: set[Place] = set()
    for name, tensor in model.state_dict().items():
        where = place_of(tensor)
        if tensor.numel() and where in seen:
            continue
        seen.add(where)
        found[name] = tensor
    return found


def copied(model: nn.Module) -> dict[str, Tensor]:
    """`weights`, copied to main memory."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights(model).items()}


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors` into the state of `model`, in place: what is shared stays shared.

    Raises LSM-908 when names or shapes differ from `weights(model)`.
    """
    own = weights(model)
    if {name: one.shape for name, one in own.items()} != {name: one.shape for name, one in tensors.items()}:
        raise LissomError(908, "the checkpoint is of another model", remedy="Remove the work folder.")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def write_optimizer(folder: Path, optimizer: Mapping[str, Any], scheduler: Mapping[str, Any]) -> None:
    """Write the state dicts of an optimizer, whose state is tensors, and of a schedule of plain numbers."""
    state = optimizer["state"]
    write(folder / "optimizer.safetensors", {f"{i}.{key}": one for i in state for key, one in state[i].items()})
    write_json(folder / "optimizer.json", {"groups": optimizer["param_groups"], "schedule": dict(scheduler)})


def read_optimizer(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `write_optimizer` was given."""
    plain = read_json(folder / "optimizer.json")
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in read_safetensors(folder / "optimizer.safetensors").items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    return {"state": state, "param_groups": plain["groups"]}, plain["schedule"]


def random_state() -> dict[str, Any]:
    """The state of the random numbers of Python, numpy and torch, as JSON values."""
    version, numbers, gauss = random.getstate()
    kind, keys, at, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 the state that Trainer seeds
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), at, has_gauss, cached],
        "torch": _text(torch.get_rng_state()),
        "cuda": [_text(one) for one in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Continue where `random_state` was taken."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, at, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), at, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(_bytes(state["torch"]))
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([_bytes(one) for one in state["cuda"]])


def _text(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
