"""A slot: one linear map of a model, whatever its layout (plain, transposed, a part of a fused projection)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lissom.errors import LissomError
from lissom.nn import Int8Linear, KroneckerLinear, LoraLinear, LowRankLinear, ScaledLinear
from lissom.nn.computed import ComputedLinear, dense_of

_STORED = nn.Linear | Int8Linear | ComputedLinear


def is_transposed(module: nn.Module) -> bool:
    """GPT-2's `Conv1D` stores its weight as (in, out)."""
    return hasattr(module, "nf") and hasattr(module, "nx")


def is_linear(module: nn.Module) -> bool:
    """Whether `module` is a linear map that a slot can stand for."""
    return isinstance(module, _STORED) or is_transposed(module)


def dense_weight(module: nn.Module) -> Tensor:
    """The weight of a linear module as (out, in), computed if the module stores it in another form."""
    return dense_of(module)


def _size(module: nn.Module, name: str, transposed_name: str) -> int:
    return int(getattr(module, transposed_name if is_transposed(module) else name))


def shrink(module: nn.Module, *, out: Tensor | None = None, in_: Tensor | None = None) -> None:
    """Keep only the outputs `out` and the inputs `in_` of a linear module, in place.

    out, in_: 1-D int64 row and column numbers of the dense (out, in) weight; None keeps all.
    """
    if isinstance(module, LoraLinear):
        shrink(module.inner, out=out, in_=in_)
    if isinstance(module, LowRankLinear | LoraLinear):
        shrink(module.up, out=out)
        shrink(module.down, in_=in_)
        return
    if isinstance(module, KroneckerLinear):
        _shrink_product(module, out, in_)
        return
    if isinstance(module, ScaledLinear):
        shrink(module.inner, out=out, in_=in_)
        if in_ is not None:
            module.keep(in_)
        return
    if isinstance(module, Int8Linear):
        module.keep(out=out, in_=in_)
        return
    transposed = is_transposed(module)
    out_dim, in_dim = (1, 0) if transposed else (0, 1)
    weight = cast("Tensor", module.weight)
    bias = cast("Tensor | None", module.bias)
    if out is not None:
        weight = weight.index_select(out_dim, out.to(weight.device))
        if bias is not None:
            module.bias = nn.Parameter(bias.detach().index_select(0, out.to(bias.device)), bias.requires_grad)
    if in_ is not None:
        weight = weight.index_select(in_dim, in_.to(weight.device))
    trainable = cast("Tensor", module.weight).requires_grad
    module.weight = nn.Parameter(weight.detach().contiguous(), trainable)
    sizes: dict[str, Any] = {"out_features": weight.shape[out_dim], "in_features": weight.shape[in_dim]}
    if transposed:
        sizes = {"nf": sizes["out_features"], "nx": sizes["in_features"]}
    for name, size in sizes.items():
        setattr(module, name, size)


def _shrink_product(module: KroneckerLinear, out: Tensor | None, in_: Tensor | None) -> None:
    """Raises ValueError before anything is cut where what is left would be no product."""
    outs = (None, None) if out is None else module.halves(out, outputs=True)
    ins = (None, None) if in_ is None else module.halves(in_, outputs=False)
    for part, kept, read in zip((module.left, module.right), outs, ins, strict=True):
        shrink(part, out=kept, in_=read)
    if out is not None and module.bias is not None:
        bias = module.bias
        module.bias = nn.Parameter(bias.detach().index_select(0, out.to(bias.device)), bias.requires_grad)


class Slot:
    """One linear map y = W x + b inside a model.

    path: name of the module in the model. Two slots of a fused projection have the same path and different rows.
    rows: the rows of the module's dense weight that belong to this slot, or None for all of them.
    """

    def __init__(self, model: nn.Module, path: str, *, rows: Tensor | None = None) -> None:
        self._model = model
        self.path = path
        self.rows = rows

    def __repr__(self) -> str:
        return f"Slot({self.path!r}, {self.out_features}x{self.in_features})"

    @property
    def module(self) -> nn.Module:
        """The module that computes this map (and, if fused, others)."""
        return self._model.get_submodule(self.path)

    @property
    def fused(self) -> bool:
        """Whether the module computes other slots as well."""
        return self.rows is not None

    @property
    def weight(self) -> Tensor:
        """The weight, shape (out, in). Shares memory with the model unless the slot is fused or stored otherwise."""
        weight = dense_weight(self.module)
        return weight if self.rows is None else weight.index_select(0, self.rows.to(weight.device))

    @property
    def bias(self) -> Tensor | None:
        """The bias, shape (out,), or None."""
        bias = cast("Tensor | None", self.module.bias)
        return bias if bias is None or self.rows is None else bias.index_select(0, self.rows.to(bias.device))

    @property
    def out_features(self) -> int:
        """Number of outputs."""
        return _size(self.module, "out_features", "nf") if self.rows is None else len(self.rows)

    @property
    def in_features(self) -> int:
        """Number of inputs."""
        return _size(self.module, "in_features", "nx")

    def keep(self, *, out: Sequence[int] | None = None, in_: Sequence[int] | None = None) -> None:
        """Keep only these outputs and inputs, in place; shapes shrink for good. See `keep_together` for fused slots."""
        keep_together([(self, out, in_)])

    def swap(self, module: nn.Module) -> None:
        """Put another module in the place of this slot's one.

        Raises LissomError LSM-711 if the slot is only a part of a fused projection.
        """
        if self.fused:
            raise LissomError(
                711,
                "this slot is a part of a fused projection and cannot be replaced alone",
                place=self.path,
                remedy="Replace the whole projection (Anatomy.linears lists them).",
            )
        self._model.set_submodule(self.path, module)

    def watch(self, fn: Callable[[Tensor, Tensor], None]) -> RemovableHandle:
        """Call `fn(x, y)` at each use: x (..., in) goes in, y (..., out) comes out. Returns the handle to remove it."""

        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            fn(args[0], output if self.rows is None else output.index_select(-1, self.rows.to(output.device)))

        return self.module.register_forward_hook(hook)


def stored_maps(slot: Slot) -> list[Slot]:
    """The maps with a weight of their own that a whole slot is stored as: two thin ones, two of a product, one behind
    factors, one and the two thin ones beside it, or itself.

    They stand at `PATH.down` and `PATH.up`, at `PATH.left` and `PATH.right`, at `PATH.inner`, at the first three, or at
    `PATH`.
    """
    names = ["down", "up"] if isinstance(slot.module, LowRankLinear) else []
    names = ["left", "right"] if isinstance(slot.module, KroneckerLinear) else names
    names = ["inner"] if isinstance(slot.module, ScaledLinear) else names
    names = ["inner", "down", "up"] if isinstance(slot.module, LoraLinear) else names
    inside = [Slot(slot._model, f"{slot.path}.{name}") for name in names]
    return [one for each in inside for one in stored_maps(each)] or [slot]


def keep_together(cuts: Iterable[tuple[Slot, Sequence[int] | None, Sequence[int] | None]]) -> None:
    """Cut several slots at once: (slot, outputs to keep, inputs to keep), None for all.

    Slots of one fused projection must be cut in one call, so that the projection's layout stays whole.
    Raises LissomError LSM-451 for columns that a packed layer holds together.
    """
    outs: dict[str, Tensor] = {}
    ins: dict[str, Tensor] = {}
    slots: dict[str, Slot] = {}
    for slot, out, in_ in cuts:
        slots[slot.path] = slot
        if out is not None:
            rows = slot.rows if slot.rows is not None else torch.arange(slot.out_features)
            size = _size(slot.module, "out_features", "nf")
            kept = outs.setdefault(slot.path, torch.ones(size, dtype=torch.bool))
            kept[rows] = False
            kept[rows[torch.as_tensor(list(out), dtype=torch.int64)]] = True
        if in_ is not None:
            ins[slot.path] = torch.as_tensor(list(in_), dtype=torch.int64)
    for path, slot in slots.items():
        mask = outs.get(path)
        try:
            shrink(slot.module, out=None if mask is None else mask.nonzero().flatten(), in_=ins.get(path))
        except ValueError as error:  # it is stored in a form that these columns cannot be cut out of
            raise LissomError(451, str(error), place=path, remedy="Cut the model first, then store it so.") from error
