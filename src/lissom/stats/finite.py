"""The one check for NaN and infinity before numbers are rounded: no scale holds them."""

from __future__ import annotations

import torch
from torch import Tensor

from lissom.errors import LissomError


def finite_weight(weight: Tensor, path: str) -> Tensor:
    """`weight` in float32, without its gradient. Raises LissomError LSM-901 when it holds NaN or infinity.

    path: of its module, which the error names.
    """
    full = weight.detach().float()
    if not bool(torch.isfinite(full).all()):
        raise LissomError(901, "the weight holds NaN or infinity and cannot be quantized", place=path)
    return full


def check_finite_inputs(seen: Tensor, path: str) -> None:
    """Raise LissomError LSM-901 when what was seen of the inputs of the map at `path` holds NaN or infinity."""
    if not bool(torch.isfinite(seen).all()):
        raise LissomError(901, "an input holds NaN or infinity on a calibration text", place=path)
