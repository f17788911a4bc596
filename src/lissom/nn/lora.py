"""A linear map with a low-rank delta: y = W x + b + U (V x).

For maps whose W several layers share: each use has a delta of its own.
Source: Hu et al. 2021, "LoRA", eq. 3; Bae et al. 2024, "Relaxed Recursive Transformers", section 2.4 (one a depth).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from lissom.nn.int8 import Int8Linear


def _dense(linear: nn.Module) -> Tensor:
    """The weight (out, in) of a plain, transposed (GPT-2's Conv1D) or otherwise stored map."""
    if hasattr(linear, "dense"):
        return cast("Callable[[], Tensor]", linear.dense)()
    weight = cast("Tensor", linear.weight)
    return weight.t() if hasattr(linear, "nf") else weight


class LoraLinear(nn.Module):
    """The linear module `inner`, and beside it `down` (rank, in) and `up` (out, rank), both without bias.

    Each of the three may be packed later. It computes rank * (in + out) products more than `inner` alone.
    """

    def __init__(
        self,
        inner: nn.Module,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.inner = inner
        self.down: nn.Linear | Int8Linear = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.up: nn.Linear | Int8Linear = nn.Linear(rank, out_features, bias=False, device=device, dtype=dtype)

    @property
    def in_features(self) -> int:
        """Number of inputs."""
        return self.down.in_features

    @property
    def out_features(self) -> int:
        """Number of outputs."""
        return self.up.out_features

    @property
    def rank(self) -> int:
        """Rank of the delta."""
        return self.down.out_features

    @property
    def bias(self) -> Tensor | None:
        """The bias, shape (out,), or None."""
        return cast("Any", self.inner).bias  # type: ignore[no-any-return]

    @property
    def weight(self) -> Tensor:
        """W + U V, shape (out, in); computed at each call, not stored."""
        return self.dense()

    def dense(self) -> Tensor:
        """W + U V, shape (out, in)."""
        return _dense(self.inner) + _dense(self.up) @ _dense(self.down)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) -> (..., out)."""
        y: Tensor = self.inner(x) + self.up(self.down(x))
        return y
