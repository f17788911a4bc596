"""The edits that store linear maps in one bit a weight, and that let attention compute with few levels."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from lissom.anatomy import dissect
from lissom.edits.edit import EDIT_MISFIT, Edit
from lissom.edits.linear import store_linear
from lissom.errors import LissomError
from lissom.nn.binary import BinaryLinear
from lissom.nn.levels import ATTENTION, AttentionLevels, Levels, Rule, level_attention

_Bits = Annotated[int, Field(ge=1, le=8)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackBinary(Edit):
    """Store linear maps as sums of `planes` binary matrices, with one scale a row and matrix.

    linears: module paths. The numbers come as tensors `PATH.weight` (int8, the bytes of
        `lissom.nn.low_bit.pack_codes`) and `PATH.weight_scale` (float32), the rows of the first matrix first.
    rounds: whether the maps round their inputs to 8 bits while they run.
    bits: of the levels that inputs are put on instead; None for no levels. They come as `PATH.levels.scale` and
        `PATH.levels.shift` (float32, ()).
    positive: those of the maps whose inputs have levels from 0 on.
    """

    planes: Annotated[int, Field(ge=1, le=8)] = 1
    linears: tuple[str, ...] = ()
    rounds: bool = True
    bits: _Bits | None = None
    positive: tuple[str, ...] = ()

    def apply(self, model: nn.Module) -> None:
        """Replace the modules; codes, scales and levels are not filled in yet."""
        for path in self.linears:

            def make(columns: int, rows: int, *, path: str = path, **named: Any) -> BinaryLinear:
                levels = None if self.bits is None else Levels(self.bits, positive=path in self.positive)
                return BinaryLinear(columns, rows, planes=self.planes, levels=levels, rounds=self.rounds, **named)

            store_linear(model, path, make)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LevelAttention(Edit):
    """Let every attention layer of the model compute with levels of `bits` bits, by `rule`.

    The scales come as tensors `PATH.levels.q.scale`, `PATH.levels.q.shift` and so on (float32, ()), for q, k, v and,
    with a softmax, weights; PATH: the attention module.
    """

    bits: _Bits
    rule: Rule

    def apply(self, model: nn.Module) -> None:
        """Put the levels into the attention layers, not filled in yet, and choose the kind of attention."""
        device = next(model.parameters()).device
        for module in attention_layers(model):
            module.levels = AttentionLevels(self.bits, self.rule).to(device).train(module.training)
        attend_by_levels(model)


def attention_layers(model: nn.Module) -> list[nn.Module]:
    """The attention modules of `model`, those that attend to an encoder too.

    Raises LissomError LSM-451 where transformers does not let the attention of a family be replaced.
    """
    anatomy = dissect(model)
    if not getattr(model, "_supports_attention_backend", False) or not anatomy.stacks:
        cause = f"the attention of {anatomy.family} cannot be replaced by one that computes with few levels"
        raise LissomError(EDIT_MISFIT, cause)
    blocks = [block for stack in anatomy.stacks for block in stack.blocks]
    parts = [part for block in blocks for part in (block.attention, block.cross) if part is not None]
    return [model.get_submodule(path) for path in dict.fromkeys(part.path for part in parts)]


def attend_by_levels(model: nn.Module) -> None:
    """Make transformers call `level_attention` in `model`, for as long as its config is not told otherwise."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(ATTENTION, level_attention)
    AttentionMaskInterface.register(ATTENTION, eager_mask)
    model.config._attn_implementation = ATTENTION  # type: ignore[union-attr]
