"""Which tensors are one: a tensor that stands in several places, or the same numbers under several names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor

Place = tuple[int, int, torch.Size, tuple[int, ...]]
_T = TypeVar("_T", bound=Tensor)


def once(tensors: Iterable[_T]) -> list[_T]:
    """Each of `tensors` once, where it is first met: parameters and buffers that several modules hold."""
    return list({id(one): one for one in tensors}.values())


def place_of(tensor: Tensor) -> Place:
    """Where its numbers lie in memory, and how they are read.

    Tensors of `state_dict` are new ones at each call; the names of a shared one are those whose tensors have one place.
    A tensor without numbers has no place of its own.
    """
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset()), tensor.shape, tensor.stride()
