"""An int8 linear layer that rounds its inputs with one scale and zero point found beforehand.

    code = clamp(round(x / input_scale) + input_zero, 0, 255)                  (rounding is half to even)
    y = (code - input_zero) · codes of the weight · input_scale · weight_scale + bias

It is ONNX `QuantizeLinear` to uint8, so that torch and the exported graph compute the same numbers. Nothing is searched
for while it runs, and the answer to a text does not depend on its batch. An input out of the range is clipped.
Source: Jacob et al. 2018, section 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lissom.nn.int8 import Int8Linear, Rounded, exact


def codes_of(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """ONNX QuantizeLinear to uint8. x: float32 of any shape.  scale: () float32.  zero: (), whole."""
    return (x / scale).round_().add_(zero.float()).clamp_(0, 255).to(torch.uint8)


@torch.library.custom_op(
    "lissom::static_int8_linear",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, Tensor input_scale, Tensor input_zero)"
    " -> Tensor",
)
def static_int8_linear(  # noqa: PLR0917 - exporters give the parts of an operator by position
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, input_scale: Tensor, input_zero: Tensor
) -> Tensor:
    """A whole layer as one node of a traced graph, for exporters. x: (..., in). Returns (..., out)."""
    codes = codes_of(x.reshape(-1, weight.shape[1]).float(), input_scale, input_zero)
    y = exact((codes, input_scale, input_zero.float()), weight, weight_scale, bias)
    return y.to(x.dtype).reshape(*x.shape[:-1], weight.shape[0])


@static_int8_linear.register_fake
def _(  # noqa: PLR0917
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, input_scale: Tensor, input_zero: Tensor
) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


class StaticInt8Linear(Int8Linear):
    """A linear layer whose weight is int8 and whose inputs are rounded to uint8 with a fixed scale and zero point.

    State: as `Int8Linear`, and buffers `input_scale` () float32 and `input_zero` () uint8, 1 and 0 at first.
    """

    input_scale: Tensor
    input_zero: Tensor

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, device: torch.device | str | None = None
    ) -> None:
        super().__init__(in_features, out_features, bias, device)
        self.register_buffer("input_scale", torch.ones((), dtype=torch.float32, device=device))
        self.register_buffer("input_zero", torch.zeros((), dtype=torch.uint8, device=device))

    def _rounded(self, x: Tensor) -> Rounded:
        return codes_of(x, self.input_scale, self.input_zero), self.input_scale, self.input_zero.float()

    def _traced(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.lissom.static_int8_linear(
            x, self.weight, self.weight_scale, self.bias, self.input_scale, self.input_zero
        )
        return y
