"""Linear maps whose weight is computed from parts and stored nowhere."""

from __future__ import annotations

from abc import abstractmethod
from typing import cast

import torch
from torch import Tensor, nn

from lissom.nn.int8 import Int8Linear


class ComputedLinear(nn.Module):
    """y = W x + b, where W comes of other modules. Those may be packed later.

    `weight` is asked for at every forward of T5, which compares dtypes. So it has a shape and a dtype, and no numbers.
    """

    @property
    @abstractmethod
    def in_features(self) -> int:
        """Number of inputs."""

    @property
    @abstractmethod
    def out_features(self) -> int:
        """Number of outputs."""

    @abstractmethod
    def dense(self) -> Tensor:
        """W, shape (out, in); computed at each call."""

    @abstractmethod
    def dense_dtype(self) -> torch.dtype:
        """The dtype of `dense`."""

    @property
    def weight(self) -> Tensor:
        """Shape (out, in) and dtype of W, on `meta`: it costs nothing, and fails where someone computes with it."""
        return torch.empty(self.out_features, self.in_features, dtype=self.dense_dtype(), device="meta")


def dense_of(linear: nn.Module) -> Tensor:
    """The weight (out, in) of a plain, transposed (GPT-2's Conv1D), computed or packed map."""
    if isinstance(linear, ComputedLinear | Int8Linear):
        return linear.dense()
    weight = cast("Tensor", linear.weight)
    return weight.t() if hasattr(linear, "nf") else weight


def dtype_of(linear: nn.Module) -> torch.dtype:
    """The dtype of `dense_of`."""
    if isinstance(linear, ComputedLinear):
        return linear.dense_dtype()
    return torch.float32 if isinstance(linear, Int8Linear) else cast("Tensor", linear.weight).dtype
