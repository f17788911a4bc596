"""Arithmetic of whole numbers for a transformer: products, rescaling, softmax, GELU and layer norm without a float.

A tensor of whole numbers q stands for q · S. Scales S are known beforehand, so all constants below are whole as well:

    rescale     S1 / S2 ≈ b / 2^c           q2 = (q1 · b + 2^(c - 1)) >> c, then clamped
    polynomial  a (x + b)² + c              q' = (q + b/S)² + c/(a S²),  S' = a S²
    exp         x = -z ln 2 + p             exp(x) = 2^-z (0.3585 (p + 1.353)² + 0.344),  p in (-ln 2, 0]
    erf         L(x) = sgn(x) (a (min(|x|, -b) + b)² + 1),  a = -0.2888, b = -1.769;  GELU(x) = x/2 (1 + L(x / √2))
    root        x <- floor((x + floor(n / x)) / 2) from a power of two above √n

Source: Kim et al. 2021, "I-BERT", sections 3.2 to 3.6, algorithms 1 to 4; Jacob et al. 2018 for rescaling.
Differs: constants are rounded, not floored. Softmax has the codes 0 to 255 of 1/255, by one division each. Scores and
the inputs of GELU come in units of 2^-10, so that every value of these two fits 32 bits (`SUM_FITS`, `GELU_LARGEST`).
torch computes in int64 throughout. The hardware needs 64 bits in two places: the product with b, of which 32 bits are
left after the shift, and the layer norm, whose sum of squares takes up to 46 bits; I-BERT shifts it right instead.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

UNIT = 2.0**-10  # of scores and of inputs of GELU
GELU_LARGEST = 2**16 - 1  # in units: 64. What is larger counts as 64
SCORE_LARGEST = 2**21 - 1  # in units: 2,048
SUM_FITS = 733  # tokens of which the sum of exp still fits 32 bits; the sum here is in 64 and right for more
PROBABILITIES = 255  # the code of probability 1
_EXP = (0.35815147, 1.35366, 0.34372)  # a, b, c of I-BERT's code, which the paper prints in three or four digits
_ERF = (-0.2888, -1.769, 1.0)
_LOW_SCORE = 2**15  # exp(-32) is 0 in any code
_ERF_BITS = 14  # of 1 + erf
_MULTIPLIER_BITS = 30
_NORM_BITS = 10  # of the fraction of what a layer norm has divided
_NORM_OFFSET = 2**18  # more than the largest input of a layer norm, so that divisions are of positive numbers
_ROOT_STEPS = 6  # from at most twice the root: 1, 1/4, 1/40, 3e-4, 5e-8 of it too large, then exact
_ROOT_BITS = 25


@torch.library.custom_op("lissom::integer_product", mutates_args=(), schema="(Tensor a, Tensor b) -> Tensor")
def integer_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of 8-bit whole numbers as int64, exactly.

    a: (..., m, k) int8 or uint8.  b: (k, n) int8, or with the leading axes of `a` as well.
    float64 holds every sum: they are below 2^53. One node of a traced graph, for exporters.
    """
    return (a.double() @ b.double()).long()


@integer_product.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(*a.shape[:-2], a.shape[-2], b.shape[-1], dtype=torch.int64)


def dyadic(ratio: Tensor) -> tuple[Tensor, Tensor]:
    """b and c with `ratio` ≈ b / 2^c, one c for all. ratio: float64 of any shape, positive or not.

    Returns b, int32 of its shape and below 2^30, and c, int32 (), 1 to 60.
    Raises ValueError when a ratio is 2^29 or more, NaN or infinite.
    """
    largest = float(ratio.abs().max())
    if not largest < 2.0 ** (_MULTIPLIER_BITS - 1):
        raise ValueError(f"scales are {largest:.3g} apart, which no dyadic number of 30 bits is")
    shift = min(_MULTIPLIER_BITS - math.frexp(largest)[1], 60)
    # the mantissa is below 1, but may be rounded up to it
    b = (ratio.double() * 2.0**shift).round().clamp(1 - 2**_MULTIPLIER_BITS, 2**_MULTIPLIER_BITS - 1)
    return b.to(torch.int32), torch.tensor(shift, dtype=torch.int32)


def rescale(q: Tensor, multiplier: Tensor, shift: Tensor, largest: int) -> Tensor:
    """q · multiplier / 2^shift, rounded half up and clamped to ±`largest`. q: int64, below 2^31 in magnitude."""
    half = torch.bitwise_left_shift(torch.ones_like(shift, dtype=torch.int64), shift.long() - 1)
    return torch.bitwise_right_shift(q * multiplier.long() + half, shift.long()).clamp(-largest, largest)


def _polynomial(q: Tensor, scale: float, coefficients: tuple[float, float, float]) -> tuple[Tensor, float]:
    """a (x + b)² + c by algorithm 1: whole numbers and their scale, which has the sign of a."""
    a, b, c = coefficients
    out = a * scale**2
    moved = q + round(b / scale)
    return moved * moved + round(c / out), out


def i_exp(q: Tensor, scale: float) -> tuple[Tensor, float]:
    """exp(q · scale) by algorithm 2, and its scale. q: int64, not positive."""
    ln2 = round(math.log(2) / scale)
    z = -q // ln2
    value, out = _polynomial(q + z * ln2, scale, _EXP)
    return torch.bitwise_right_shift(value, z.clamp(max=62)), out


def i_softmax(q: Tensor, real: Tensor | None = None) -> Tensor:
    """softmax(q · 2^-10) over the last axis, in codes of 1/255: 0 to 255, int64. q: int64.

    real: bool, broadcast to `q`, False where a key is padding; its probability is 0 exactly, and 0 everywhere if all
    are padding.
    """
    if real is not None:
        q = q.where(real, -SCORE_LARGEST)
    value, _ = i_exp((q - q.amax(-1, keepdim=True)).clamp(min=-_LOW_SCORE), UNIT)
    if real is not None:
        value = value * real.long()
    total = value.sum(-1, keepdim=True).clamp(min=1)
    return (value * PROBABILITIES + torch.bitwise_right_shift(total, 1)) // total


def i_gelu(q: Tensor, scale: float) -> tuple[Tensor, float]:
    """GELU(q · scale) by algorithms 2 and 3 of the paper's section 3.4, and its scale. q: int64, below 2^17."""
    limit = round(_ERF[1] / (scale / math.sqrt(2)))
    value, out = _polynomial(q.abs().clamp(max=-limit), scale / math.sqrt(2), _ERF)
    # The leading coefficient is negative: so is its scale, and the values. Turn both, then leave 14 bits of them.
    spare = max(0, round(-1 / out).bit_length() - _ERF_BITS)
    erf = torch.bitwise_right_shift(q.sign() * -value, spare)
    unit = -out * 2.0**spare
    return q * (erf + round(1 / unit)), scale * unit / 2


def i_sqrt(n: Tensor) -> Tensor:
    """floor(√n) by Newton's method, algorithm 4. n: int64, 0 to 2^50 - 1."""
    powers = torch.tensor([4**k for k in range(_ROOT_BITS)], dtype=torch.int64, device=n.device)
    x = torch.bitwise_left_shift(
        torch.ones_like(n), (n.unsqueeze(-1) >= powers).long().sum(-1)
    )  # above the root, at most twice it
    for _ in range(_ROOT_STEPS):
        x = torch.minimum(x, torch.bitwise_right_shift(x + n // x.clamp(min=1), 1))
    return x


def i_layer_norm(q: Tensor, multiplier: Tensor, offset: Tensor, shift: Tensor, largest: int) -> Tensor:
    """Layer norm over the last axis, in codes. q: int64 (..., n), below 2^18 in magnitude, at any scale.

    y / √(Σy² / n) in units of 2^-10, with y = q - mean; then (that · multiplier + offset) >> shift, clamped to
    ±`largest`. multiplier: (n,) int32, γ.  offset: (n,) int64, β and the half to round by.  There is no epsilon.
    """
    n = q.shape[-1]
    mean = (2 * (q + _NORM_OFFSET).sum(-1, keepdim=True) + n) // (2 * n) - _NORM_OFFSET
    y = q - mean
    root = i_sqrt((y * y).sum(-1, keepdim=True)).clamp(min=1)
    one = round(math.sqrt(n) * 2**_NORM_BITS)  # |y| <= root, so a quotient is at most this
    normed = (y * one + root * one + torch.bitwise_right_shift(root, 1)) // root - one
    return torch.bitwise_right_shift(normed * multiplier.long() + offset, shift.long()).clamp(-largest, largest)


def norm_constants(weight: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Multiplier, offset and shift of `i_layer_norm` that answers codes of `scale`. weight, bias: (n,), γ and β.

    Raises ValueError as `dyadic`.
    """
    gain = weight.double() / scale
    largest = max(float((gain.abs() + bias.double().abs() / scale).max()), 1e-9)
    multiplier, shift = dyadic(torch.cat([gain, gain.new_tensor([largest])]) * 2.0**-_NORM_BITS)
    offset = (bias.double() / scale * 2.0 ** int(shift)).round().long() + 2 ** (int(shift) - 1)
    return multiplier[:-1], offset, shift
