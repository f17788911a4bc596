"""Layers of `lissom.nn.grouped` in a graph, with the same codes, scales and zero points.

Up to 4 bits in groups that are multiples of 16 stand as ONNX Runtime's MatMulNBits:

    b        (out, blocks, block / 2) uint8     codes of a block side by side in 4 bits, the first in the lowest
    scales   (out, blocks) float32
    zeros    (out, bytes) uint8 in 4 bits each, or (out, blocks) float32 where they are not whole

Blocks have 16, 32, 64 or 128 columns: a larger group is cut into such, and zeros fill the last one. Without
`accuracy_level` it multiplies in float32, as torch does. Codes of 2 and 3 bits are written in 4, for the operator has
no 3 bits, and decodes 2 (and 8) anew at each call: it took 17 ms for one token where 4 bits and float32 took 0.2 (2048
to 2048, one thread, ONNX Runtime 1.32, AVX-512). So the others stand as codes of 8 bits that standard operators decode;
ONNX Runtime does that once, when it reads the graph, and computes in float.
Source: github.com/microsoft/onnxruntime, docs/ContribOperators.md, com.microsoft.MatMulNBits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lissom.nn.grouped import GroupedLinear, groups_of, restore
from lissom.nn.palette import pack_indices, unpack_indices

_LARGEST, _SMALLEST = 128, 16  # columns of a block
_BITS = 4  # of a code in the graph


class BlockLinear(nn.Module):
    """A `GroupedLinear` as it stands in the graph. layer: one that `block_of` gives a block for."""

    blocks: Tensor
    scale: Tensor
    zero: Tensor
    bias: Tensor | None

    def __init__(self, layer: GroupedLinear) -> None:
        super().__init__()
        block, self.columns = block_of(layer), layer.columns
        parts = groups_of(layer.columns, block)
        codes = F.pad(layer.codes(), (0, parts * block - layer.columns))
        scale, zero = (
            one.float().repeat_interleave(layer.group // block, dim=1)[:, :parts].contiguous()
            for one in (layer.weight_scale, layer.weight_zero)
        )
        self.register_buffer("blocks", pack_indices(codes, _BITS).view(torch.uint8).reshape(len(codes), parts, -1))
        self.register_buffer("scale", scale)
        self.register_buffer("zero", pack_indices(zero, _BITS).view(torch.uint8) if _whole(layer) else zero)
        self.register_buffer("bias", layer.bias)

    def dense(self) -> Tensor:
        """The weights that the blocks stand for: (out, in) float32, a new tensor."""
        parts, block = self.blocks.shape[1], self.blocks.shape[2] * 8 // _BITS
        codes = unpack_indices(self.blocks.flatten(1), parts * block, _BITS)
        zero = self.zero if self.zero.is_floating_point() else unpack_indices(self.zero, parts, _BITS)
        return restore(codes, self.scale, zero, group=block)[:, : self.columns]

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) float32. Returns (..., out). Traced, it is one node of the graph."""
        if not torch.compiler.is_compiling():
            return F.linear(x, self.dense(), self.bias)
        rows, _, width = self.blocks.shape
        y: Tensor = torch.onnx.ops.symbolic(
            "com.microsoft::MatMulNBits",
            (x, self.blocks, self.scale, self.zero),
            {"K": self.columns, "N": rows, "bits": _BITS, "block_size": width * 8 // _BITS},
            dtype=torch.float32,
            shape=(*x.shape[:-1], rows),
            version=1,
        )
        return y if self.bias is None else y + self.bias


class DecodedLinear(nn.Module):
    """A `GroupedLinear` whose codes, one a byte, the graph itself decodes."""

    codes: Tensor
    scale: Tensor
    zero: Tensor
    bias: Tensor | None

    def __init__(self, layer: GroupedLinear) -> None:
        super().__init__()
        self.columns = layer.columns
        parts = groups_of(layer.columns, layer.group)
        codes = F.pad(layer.codes(), (0, parts * layer.group - layer.columns)).to(torch.uint8)
        self.register_buffer("codes", codes.reshape(len(codes), parts, layer.group))
        self.register_buffer("scale", layer.weight_scale.float()[..., None])
        self.register_buffer("zero", layer.weight_zero.float()[..., None])
        self.register_buffer("bias", layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) float32. Returns (..., out)."""
        weight = ((self.codes.float() - self.zero) * self.scale).flatten(1)
        return F.linear(x, weight[:, : self.columns], self.bias)


IN_GRAPHS = (BlockLinear, DecodedLinear)


def _whole(layer: GroupedLinear) -> bool:
    """Whether its zero points are codes."""
    zero = layer.weight_zero.float()
    return bool(((zero == zero.round()) & (zero >= 0) & (zero < 2**layer.bits)).all())


def block_of(layer: GroupedLinear) -> int:
    """Columns of a block that MatMulNBits can have for this layer, or 0."""
    block = min(layer.group & -layer.group, _LARGEST)  # the largest power of two that divides a group
    return block if block >= _SMALLEST and layer.bits <= _BITS else 0


def to_blocks(model: nn.Module) -> tuple[str, ...]:
    """Put what stands in a graph in the place of every grouped layer, in place.

    Returns what a person should know of those that take more bits there, or are not multiplied as they are.
    """
    made: dict[int, BlockLinear | DecodedLinear] = {}
    wider, decoded = set(), set()
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if not isinstance(module, GroupedLinear):
            continue
        if id(module) not in made:
            made[id(module)] = BlockLinear(module) if block_of(module) else DecodedLinear(module)
        model.set_submodule(path, made[id(module)])
        if not block_of(module):
            decoded.add(id(module))
        elif module.bits < _BITS:
            wider.add(id(module))
    notes = []
    if decoded:
        notes.append(
            f"{len(decoded)} linear maps have 8 bits a weight in the graph, and float32 while it runs: MatMulNBits is "
            "for up to 4 bits, in groups that are multiples of 16."
        )
    if wider:
        notes.append(f"{len(wider)} linear maps have 4 bits a weight in the graph: MatMulNBits is not fast with fewer.")
    return tuple(notes)
