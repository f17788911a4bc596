"""Layers of `lissom.nn.grouped` in a graph: ONNX Runtime's MatMulNBits, with the same codes, scales and zero points.

    b        (out, blocks, block · bits / 8) uint8     codes of a block side by side, the first in the lowest bits
    scales   (out, blocks) float32
    zeros    (out, bytes) uint8 in `bits` bits each, or (out, blocks) float32 where they are not whole

MatMulNBits has blocks of 16, 32, 64 or 128 columns and codes of 2, 4 or 8 bits; zeros fill the last block. A group of
another size is cut into such blocks where it can be, codes of 3 bits are written in 4, and what is left over becomes a
float32 weight: groups that are no multiple of 16, and 8 bits with zero points that are not whole. Without
`accuracy_level` it multiplies in float32, as torch does.
Source: github.com/microsoft/onnxruntime, docs/ContribOperators.md, com.microsoft.MatMulNBits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lissom.nn.grouped import GroupedLinear, groups_of, restore
from lissom.nn.palette import pack_indices, unpack_indices

_LARGEST, _SMALLEST = 128, 16  # columns of a block
_WRITTEN = {2: 2, 3: 4, 4: 4, 8: 8}  # bits of a code -> bits that it has in the graph


class BlockLinear(nn.Module):
    """A `GroupedLinear` as it stands in the graph. layer: one that `block_of` gives a block for."""

    blocks: Tensor
    scale: Tensor
    zero: Tensor
    bias: Tensor | None

    def __init__(self, layer: GroupedLinear) -> None:
        super().__init__()
        block, self.columns, self.bits = block_of(layer), layer.columns, _WRITTEN[layer.bits]
        parts = groups_of(layer.columns, block)
        codes = F.pad(layer.codes(), (0, parts * block - layer.columns))
        scale, zero = (
            one.float().repeat_interleave(layer.group // block, dim=1)[:, :parts].contiguous()
            for one in (layer.weight_scale, layer.weight_zero)
        )
        self.register_buffer("blocks", pack_indices(codes, self.bits).view(torch.uint8).reshape(len(codes), parts, -1))
        self.register_buffer("scale", scale)
        self.register_buffer("zero", pack_indices(zero, self.bits).view(torch.uint8) if _whole(layer) else zero)
        self.register_buffer("bias", layer.bias)

    def dense(self) -> Tensor:
        """The weights that the blocks stand for: (out, in) float32, a new tensor."""
        parts, block = self.blocks.shape[1], self.blocks.shape[2] * 8 // self.bits
        codes = unpack_indices(self.blocks.flatten(1), parts * block, self.bits)
        zero = self.zero if self.zero.is_floating_point() else unpack_indices(self.zero, parts, self.bits)
        return restore(codes, self.scale, zero, group=block)[:, : self.columns]

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) float32. Returns (..., out). Traced, it is one node of the graph."""
        if not torch.compiler.is_compiling():
            return F.linear(x, self.dense(), self.bias)
        rows, _, width = self.blocks.shape
        y: Tensor = torch.onnx.ops.symbolic(
            "com.microsoft::MatMulNBits",
            (x, self.blocks, self.scale, self.zero),
            {"K": self.columns, "N": rows, "bits": self.bits, "block_size": width * 8 // self.bits},
            dtype=torch.float32,
            shape=(*x.shape[:-1], rows),
            version=1,
        )
        return y if self.bias is None else y + self.bias


def _whole(layer: GroupedLinear) -> bool:
    """Whether its zero points are codes."""
    zero = layer.weight_zero.float()
    return bool(((zero == zero.round()) & (zero >= 0) & (zero < 2**layer.bits)).all())


def block_of(layer: GroupedLinear) -> int:
    """Columns of a block that MatMulNBits can have for this layer, or 0."""
    block = min(layer.group & -layer.group, _LARGEST)  # the largest power of two that divides a group
    exact = layer.bits != 8 or _whole(layer)
    return block if block >= _SMALLEST and exact else 0


def to_blocks(model: nn.Module) -> tuple[str, ...]:
    """Put a `BlockLinear` in the place of every grouped layer that can be one, in place.

    Returns what a person should know of those that are written otherwise.
    """
    made: dict[int, BlockLinear] = {}
    left, wider = set(), set()
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if not isinstance(module, GroupedLinear):
            continue
        if not block_of(module):
            left.add(id(module))
            continue
        if _WRITTEN[module.bits] != module.bits:
            wider.add(id(module))
        if id(module) not in made:
            made[id(module)] = BlockLinear(module)
        model.set_submodule(path, made[id(module)])
    notes = []
    if left:
        notes.append(
            f"{len(left)} linear maps are float32 in the graph: MatMulNBits takes groups that are multiples of 16, and "
            "whole zero points where codes have 8 bits."
        )
    if wider:
        notes.append(f"{len(wider)} linear maps have 3 bits a weight, and 4 in the graph: MatMulNBits has no 3.")
    return tuple(notes)
