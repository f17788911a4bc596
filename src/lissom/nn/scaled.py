"""A linear map whose inputs are multiplied by one factor a column: y = W (x · factor) + b.

Where nothing that feeds a map can take the factors (a norm that also feeds the residual), this is where they go: the
columns of W are divided by them, so the map computes the same from inputs whose columns are more alike. The map inside
may be packed later; it then rounds x · factor. Source: Xiao et al. 2023, "SmoothQuant", eq. 3.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from lissom.nn.computed import ComputedLinear, dense_of, dtype_of
from lissom.nn.keeps_dtype import KeepsDtype


class ScaledLinear(ComputedLinear, KeepsDtype):
    """The linear module `inner` behind one multiplication.

    State: buffer `input_factor` (in,), float32 whatever the model is converted to, 1 at first, and that of `inner`.
    Answers in the dtype of its input.
    """

    input_factor: Tensor

    def __init__(self, inner: nn.Module, in_features: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("input_factor", torch.ones(in_features, dtype=torch.float32, device=device))

    @property
    def in_features(self) -> int:
        """Number of inputs."""
        return len(self.input_factor)

    @property
    def out_features(self) -> int:
        """Number of outputs."""
        return int(cast("Any", getattr(self.inner, "nf", None) or self.inner.out_features))  # nf: GPT-2's Conv1D

    @property
    def bias(self) -> Tensor | None:
        """The bias, shape (out,), or None."""
        return cast("Tensor | None", self.inner.bias)

    def dense(self) -> Tensor:
        """The weight for inputs as they come, shape (out, in): that of `inner` with its columns times the factors."""
        inner = dense_of(self.inner)
        return (inner * self.input_factor).to(inner.dtype)

    def dense_dtype(self) -> torch.dtype:
        """The dtype of `dense`."""
        return dtype_of(self.inner)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) -> (..., out)."""
        y: Tensor = self.inner((x * self.input_factor).to(x.dtype))
        return y

    def keep(self, in_: Tensor) -> None:
        """Keep only the factors of these inputs, in this order, in place. in_: 1-D int64. `inner` stays as it is."""
        self.input_factor = self.input_factor[in_.to(self.input_factor.device)]
