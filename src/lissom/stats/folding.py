"""What feeds a linear map and can take a factor a channel, so that the model computes the same as before.

Three places take one exactly: a norm whose output goes into linear maps and nowhere else (where blocks normalise
first; where they normalise last, the output goes into the residual as well, and nothing can be moved), the values of
an attention (the softmax averages them, channel by channel), and the half of a gated feed-forward layer that no
activation is applied to. Elsewhere the maps themselves can multiply what they read: `unfed`.
Source: Xiao et al. 2023, "SmoothQuant", section 4; Lin et al. 2024, "AWQ", section 3.2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from lissom.anatomy import Anatomy, Slot
from lissom.anatomy.parts import Attention
from lissom.anatomy.slot import is_transposed
from lissom.stats.ranges import same_inputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feed:
    """A place that takes a factor a channel.

    feeder: path of a norm module, or the slot whose outputs are the channels; None where the maps take the factors.
    slots: whole linear modules that read the channels.
    columns: for each input column of the slots the channel that it reads, int64 (in,). With grouped queries several
        columns read one channel.
    size: number of channels.
    """

    feeder: str | Slot | None
    slots: tuple[Slot, ...]
    columns: Tensor
    size: int


def feeders(anatomy: Anatomy) -> list[Feed]:
    """Every exact place of a model, in the order of its blocks. Runs the model once, on four tokens, to see its norms.

    Only maps that are stored as plain floating-point weights count, here as feeders and as readers.
    """
    model = anatomy.model
    readers = read_norms(anatomy)
    found: list[Feed] = []
    for stack in anatomy.stacks:
        for block in stack.blocks:
            own = {slot.path for slot in block.slots()}
            for norm in block.norms:
                paths = readers.get(norm, ())
                if paths and own.issuperset(paths):
                    slots = tuple(Slot(model, path) for path in paths)
                    size = slots[0].in_features
                    found.append(Feed(feeder=norm, slots=slots, columns=torch.arange(size), size=size))
            for attention in (block.attention, block.cross):
                if attention is not None:
                    found.append(_values(model, attention))
            if block.ffn.gate is not None:
                up, down = block.ffn.up, block.ffn.down
                columns = torch.arange(block.ffn.width)
                found.append(Feed(feeder=up, slots=(Slot(model, down.path),), columns=columns, size=len(columns)))
    return [feed for feed in found if _foldable(feed)]


def stream_readers(anatomy: Anatomy) -> set[str]:
    """Paths of the maps that read the residual stream, or a norm of it, or what an encoder gives."""
    paths: set[str] = set()
    for block in (block for stack in anatomy.stacks for block in stack.blocks):
        for attention in (block.attention, block.cross):
            if attention is not None:
                paths |= {attention.q.path, attention.k.path, attention.v.path}
        paths |= {slot.path for slot in (block.ffn.up, block.ffn.gate) if slot is not None}
    return paths


def unfed(anatomy: Anatomy, fed: Sequence[Feed], *, every: bool = False) -> list[Feed]:
    """The other maps that read the residual stream, those of one input together, as feeds without a feeder.

    fed: the places that have one.  every: also the maps that read something else.
    Runs the model once, on four tokens; maps that this does not reach are left out.
    """
    done = {slot.path for feed in fed for slot in feed.slots}
    readers = stream_readers(anatomy)
    slots = [slot for slot in anatomy.linears() if slot.path not in done and (every or slot.path in readers)]
    found = []
    for group in same_inputs(anatomy.model, slots, _four_tokens(anatomy.model)):
        size = group[0].in_features
        found.append(Feed(feeder=None, slots=tuple(group), columns=torch.arange(size), size=size))
    return [feed for feed in found if _foldable(feed)]


def norms_of(anatomy: Anatomy, feeds: Sequence[Feed]) -> list[str | None]:
    """The path of the norm with a weight whose output each feed reads; None where it reads something else.

    Runs the model once, on four tokens, for the feeds without a feeder.
    """
    model = anatomy.model
    given: dict[int, tuple[str, Tensor]] = {}  # the tensors are held, so that no id comes twice
    read: dict[str, str] = {}

    def note(path: str) -> Callable[..., None]:
        return lambda _module, _args, output: given.__setitem__(id(output), (path, output))

    def look(path: str) -> Callable[[Tensor, Tensor], None]:
        return lambda x, _: read.setdefault(path, given[id(x)][0]) if id(x) in given else None  # type: ignore[return-value]

    norms = [path for path, one in model.named_modules() if getattr(getattr(one, "weight", None), "ndim", 0) == 1]
    handles = [model.get_submodule(path).register_forward_hook(note(path)) for path in norms]
    handles += [feed.slots[0].watch(look(feed.slots[0].path)) for feed in feeds if feed.feeder is None]
    _run_once(model, handles)
    return [read.get(feed.slots[0].path) if feed.feeder is None else _norm_path(feed) for feed in feeds]


def _norm_path(feed: Feed) -> str | None:
    return feed.feeder if isinstance(feed.feeder, str) else None


def fold(feed: Feed, scale: Tensor) -> None:
    """Divide the channels by `scale`, in place, and multiply the columns that read them: the model computes the same.

    feed: one with a feeder.  scale: (feed.size,), not 0.
    """
    with torch.no_grad():
        if isinstance(feed.feeder, Slot):
            _divide(feed.feeder, scale)
        elif feed.feeder is not None:
            norm = feed.slots[0]._model.get_submodule(feed.feeder)
            for one in (norm.weight, getattr(norm, "bias", None)):
                if isinstance(one, Tensor):
                    one.div_(scale.to(one))
        for slot in feed.slots:
            weight = cast("Tensor", slot.module.weight)
            factor = scale.to(weight)[feed.columns.to(weight.device)]
            weight.mul_(factor[:, None] if is_transposed(slot.module) else factor)


def _divide(slot: Slot, scale: Tensor) -> None:
    weight, bias = cast("Tensor", slot.module.weight), cast("Tensor | None", slot.module.bias)
    out = weight.shape[1] if is_transposed(slot.module) else weight.shape[0]
    factor = torch.ones(out, dtype=weight.dtype, device=weight.device)
    rows = torch.arange(out) if slot.rows is None else slot.rows
    factor[rows.to(weight.device)] = scale.to(weight)
    weight.div_(factor if is_transposed(slot.module) else factor[:, None])
    if bias is not None:
        bias.div_(factor)


def _values(model: nn.Module, attention: Attention) -> Feed:
    """The values of an attention: each key/value head is read by `heads / kv_heads` query heads, one after another."""
    size = attention.kv_heads * attention.head_dim
    heads = torch.arange(size).view(attention.kv_heads, attention.head_dim)
    columns = heads.repeat_interleave(attention.heads // attention.kv_heads, dim=0).flatten()
    return Feed(feeder=attention.v, slots=(Slot(model, attention.o.path),), columns=columns, size=size)


def _foldable(feed: Feed) -> bool:
    slots = [*feed.slots, feed.feeder] if isinstance(feed.feeder, Slot) else list(feed.slots)
    return all(type(slot.module) is nn.Linear or is_transposed(slot.module) for slot in slots)


class _Uses(TorchFunctionMode):
    """Notes which norms' outputs are used outside of linear maps."""

    def __init__(self) -> None:
        super().__init__()
        self.norms: dict[int, tuple[str, Tensor]] = {}  # the tensors are held, so that no id comes twice
        self.elsewhere: set[str] = set()
        self.readers: dict[str, list[str]] = {}
        self.inside = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[Any], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        asked = getattr(func, "__name__", "") in {"__get__", "size", "dim"}  # its shape, dtype or device
        if not self.inside and not asked:
            for one in (*args, *(kwargs or {}).values()):
                for each in one if isinstance(one, list | tuple) else (one,):
                    if id(each) in self.norms:
                        self.elsewhere.add(self.norms[id(each)][0])
        return func(*args, **(kwargs or {}))

    def norm(self, path: str) -> Callable[..., None]:
        """A hook for the norm at `path`."""

        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            self.norms[id(output)] = (path, output)

        return hook

    def enter(self, path: str) -> Callable[..., None]:
        """A hook for before the linear map at `path`."""

        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.inside = True
            if id(args[0]) in self.norms:
                known = self.readers.setdefault(self.norms[id(args[0])][0], [])
                if path not in known:
                    known.append(path)

        return hook

    def leave(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        """A hook for after a linear map."""
        self.inside = False


def _four_tokens(model: nn.Module) -> dict[str, Tensor]:
    ids = torch.full((1, 4), 2, device=next(model.parameters()).device)
    both = cast("Any", model.config).is_encoder_decoder
    return {"input_ids": ids, "decoder_input_ids": ids} if both else {"input_ids": ids}


def _run_once(model: nn.Module, handles: Sequence[RemovableHandle]) -> None:
    """Run the model on four tokens, in eval mode; then take the hooks away."""
    was = model.training
    try:
        with torch.no_grad():
            model.eval()(**_four_tokens(model))
    finally:
        model.train(was)
        for handle in handles:
            handle.remove()


def read_norms(anatomy: Anatomy) -> dict[str, tuple[str, ...]]:
    """Path of a norm -> the linear maps that read its output, for the norms whose output goes nowhere else."""
    model, uses, handles = anatomy.model, _Uses(), []
    for path in [norm for stack in anatomy.stacks for block in stack.blocks for norm in block.norms]:
        if isinstance(getattr(model.get_submodule(path), "weight", None), Tensor):
            handles.append(model.get_submodule(path).register_forward_hook(uses.norm(path)))
    for slot in anatomy.linears():
        handles.append(slot.module.register_forward_pre_hook(uses.enter(slot.path)))
        handles.append(slot.module.register_forward_hook(uses.leave))
    with uses:
        _run_once(model, handles)
    return {path: tuple(slots) for path, slots in uses.readers.items() if path not in uses.elsewhere}
