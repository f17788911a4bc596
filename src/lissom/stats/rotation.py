"""Turn the residual stream of a model: x Q in the place of x, for an orthogonal Q, and the same answers.

Only where a norm stands before everything that reads the stream. Its scale and shift go into the maps that read it, the
mean that a layer norm subtracts is taken out of all that writes; what is left of the norm divides by the length of x,
which turning does not change. Then tables and maps that write are multiplied by Q, and so are those that read.
Source: Ashkboos et al. 2024, "SliceGPT", sections 3.1 to 3.3.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from lissom.anatomy import Residual, dissect, residual
from lissom.anatomy.slot import dense_weight, is_transposed
from lissom.errors import LissomError
from lissom.nn import LoraLinear, LowRankLinear, MappedNorm
from lissom.stats.batches import is_of_tokens
from lissom.stats.finite import check_finite_inputs
from lissom.stats.folding import read_norms

Readers = Mapping[str, tuple[str, ...]]
"""Path of each norm over the stream -> paths of the maps that read it."""


class Shift(NamedTuple):
    """What the shift of a norm adds to its maps where these have no bias to take it: `wanted`, their outputs joined."""

    norm: str
    maps: tuple[str, ...]
    wanted: Tensor


def norm_readers(model: nn.Module) -> Readers:
    """Which norm each map that reads the stream stands behind. Runs the model once, on four tokens.

    Raises LissomError LSM-715 for a model in which something else reads the stream, LSM-713 for a map or a table that
    is stored in a form which cannot be multiplied.
    """
    anatomy, stream = dissect(model), residual(model)
    blocks, heads = _blocks(model), _heads(model)
    outside = [norm for norm in stream.norms if not norm.startswith(blocks)]
    if not heads:
        raise _fixed(anatomy.family, "they are what it answers")
    maps = _maps(model)
    both = ({*heads} - {*maps}) & {slot.path for slot in stream.writes}
    if len(anatomy.stacks) > 1 or len(outside) != 1 or both:
        raise _fixed(anatomy.family, "not all that reads them stands behind one norm")
    inside = {norm: paths for norm, paths in read_norms(anatomy).items() if norm in stream.norms}
    behind = {path for paths in inside.values() for path in paths}
    if len(inside) + 1 < len(stream.norms) or behind != {slot.path for slot in stream.reads} - {*heads}:
        raise _fixed(anatomy.family, "not all that reads them stands behind one norm")
    for _ in _tensors(stream, reads=True):
        pass
    return {**inside, outside[0]: maps or heads}


def _blocks(model: nn.Module) -> tuple[str, ...]:
    return tuple(f"{block.path}." for stack in dissect(model).stacks for block in stack.blocks)


def _heads(model: nn.Module) -> tuple[str, ...]:
    """Paths of the maps outside of the blocks that read as many channels, a map after a norm among them."""
    blocks = _blocks(model)
    return tuple(dict.fromkeys(slot.path for slot in residual(model).reads if not slot.path.startswith(blocks)))


def _maps(model: nn.Module) -> tuple[str, ...]:
    """Paths of the maps after a norm; heads then read what these give."""
    return tuple(f"{name}.map" for name, one in model.named_modules() if isinstance(one, MappedNorm))


def _fixed(family: str, why: str) -> LissomError:
    cause = f"its hidden states cannot be turned: {why}"
    remedy = "Take a decoder with norms first and a head, or by: activations."
    return LissomError(715, cause, place=family, remedy=remedy)


def layer_norms(model: nn.Module, readers: Readers) -> tuple[str, ...]:
    """Paths of those norms that subtract a mean."""
    return tuple(path for path in readers if isinstance(model.get_submodule(path), nn.LayerNorm))


def center(model: nn.Module) -> None:
    """Take the mean over the channels out of all that writes into the stream, so that none is left to subtract."""
    width = residual(model).width
    _multiply(residual(model), torch.eye(width, dtype=torch.float64) - 1 / width, reads=False)


def fold_norms(model: nn.Module, readers: Readers) -> list[Shift]:
    """Put the scales and shifts of norms into the maps that read them; the norms are left with 1 and 0.

    Gives the shifts that found no bias: they are missing from the model until `put_shifts`.
    Raises LissomError LSM-715 where layers that share a map have norms of their own.
    """
    norms = {path: model.get_submodule(path) for path in readers}
    with torch.no_grad():
        left = _fold_shifts(model, readers)
        _fold_scales(model, readers)
        for norm in norms.values():
            cast("Tensor", norm.weight).fill_(1)
            if getattr(norm, "bias", None) is not None:
                cast("Tensor", norm.bias).zero_()
    return left


def _fold_shifts(model: nn.Module, readers: Readers) -> list[Shift]:
    left: list[Shift] = []
    done: set[int] = set()
    for path, maps in readers.items():
        shift = getattr(model.get_submodule(path), "bias", None)
        if not isinstance(shift, Tensor) or not bool(shift.any()):
            continue
        biases = [cast("Tensor | None", model.get_submodule(one).bias) for one in maps]
        adds = [dense_weight(model.get_submodule(one)).double() @ shift.double() for one in maps]
        if any(bias is None for bias in biases):
            left.append(Shift(path, maps, torch.cat(adds)))
            continue
        for bias, add in zip(biases, adds, strict=True):
            if bias is not None and id(bias) not in done:  # layers may share it, and the norm
                done.add(id(bias))
                bias.add_(add.to(bias))
    return left


def _fold_scales(model: nn.Module, readers: Readers) -> None:
    scales = {path: cast("Tensor", model.get_submodule(path).weight).to(torch.float64, copy=True) for path in readers}
    done: dict[int, Tensor] = {}
    for path, maps in readers.items():
        for name in maps:
            for end in _ends(model.get_submodule(name), name, reads=True):
                weight = cast("Tensor", end.weight)
                before = done.setdefault(id(weight), scales[path])
                if not torch.equal(before, scales[path]):
                    cause = "layers share this map and have norms of their own, which cannot go into it"
                    raise LissomError(715, cause, place=name, remedy="Cut the hidden width before layers are shared.")
                if before is scales[path]:
                    weight.mul_((before[:, None] if is_transposed(end) else before).to(weight))


def _joined(model: nn.Module, maps: Iterable[str]) -> Tensor:
    return torch.cat([dense_weight(model.get_submodule(one)).detach().double() for one in maps])


def put_shifts(model: nn.Module, shifts: Iterable[Shift]) -> None:
    """Give norms the shifts that change what their maps add least, by least squares; exactly while nothing is cut."""
    for shift in shifts:
        weight = _joined(model, shift.maps)
        found = torch.linalg.pinv(weight.t() @ weight, hermitian=True) @ (weight.t() @ shift.wanted)
        with torch.no_grad():
            bias = cast("Tensor", model.get_submodule(shift.norm).bias)
            bias.copy_(found)


def narrow_map(model: nn.Module, count: int) -> dict[str, Tensor]:
    """The map after the last norm once only the first `count` channels stay: name -> (count, count), float64.

    With E of the head and M of the map as they are, the M' of least ‖E' M' - E M'‖ over the columns that stay, E' the
    columns of E that stay.
    """
    found: dict[str, Tensor] = {}
    maps = _maps(model)
    for path in maps:
        weight = _joined(model, (one for one in _heads(model) if one not in maps))
        square = weight.t() @ weight
        wanted = square[:count] @ dense_weight(model.get_submodule(path)).detach().double()[:, :count]
        found[f"{path}.weight"] = torch.linalg.pinv(square[:count, :count], hermitian=True) @ wanted
    return found


def principal_axes(
    model: nn.Module, norms: Iterable[str], batches: Iterable[Mapping[str, Tensor]]
) -> tuple[Tensor, Tensor]:
    """The principal components of what norms give, over all of them and all tokens but padding.

    Returns the share of the sum of squares along each (width,), falling, and Q (width, width), float64, one component a
    column. Source: section 3.3, eq. 9, with one Q for all blocks.
    Raises LissomError LSM-901 for NaN and infinity.
    """
    width = residual(model).width
    total = torch.zeros(width, width, dtype=torch.float64)
    mask: Tensor | None = None

    def add(_module: nn.Module, _args: Any, out: Tensor) -> None:
        rows = out.detach().float()
        if mask is not None and is_of_tokens(rows, mask):
            rows = rows[mask.to(rows.device).bool()]
        rows = rows.reshape(-1, width)
        total.add_((rows.t() @ rows).cpu())

    with contextlib.ExitStack() as hooks, torch.no_grad():
        for path in norms:
            hooks.callback(model.get_submodule(path).register_forward_hook(add).remove)
        model.eval()
        for batch in batches:
            mask = batch.get("attention_mask")
            model(**batch)
    check_finite_inputs(total, "")
    squares, axes = torch.linalg.eigh(total)
    squares = squares.flip(0).clamp(min=0)
    return squares / squares.sum(), axes.flip(1)


def turn(model: nn.Module, axes: Tensor) -> None:
    """Multiply all that writes into the stream and all that reads it by `axes` (width, width), orthogonal, float64."""
    _multiply(residual(model), axes, reads=True)


def _multiply(stream: Residual, matrix: Tensor, *, reads: bool) -> None:
    with torch.no_grad():
        for tensor, axis in _tensors(stream, reads=reads):
            full = tensor.double()
            there = matrix.to(full.device)
            tensor.copy_(full @ there if axis else (full.t() @ there).t())


def _tensors(stream: Residual, *, reads: bool) -> Iterator[tuple[Tensor, int]]:
    """The tensors that have one value, row (0) or column (1) a channel, each once: what is shared stays so."""
    found: dict[tuple[int, int], tuple[Tensor, int]] = {}
    for slots, wanted, side in ((stream.reads, reads, True), (stream.writes, True, False)):
        for slot in slots if wanted else ():
            for end in _ends(slot.module, slot.path, reads=side):
                weight, bias = cast("Tensor", end.weight), cast("Tensor | None", end.bias)
                axis = int(side != is_transposed(end))
                found.setdefault((id(weight), axis), (weight, axis))
                if bias is not None and not side:
                    found.setdefault((id(bias), 0), (bias, 0))
    for path in stream.tables:
        table = stream.model.get_submodule(path)
        if type(getattr(table, "weight", None)) is not nn.Parameter:
            raise _stored(path)
        found.setdefault((id(table.weight), 1), (cast("Tensor", table.weight), 1))
    yield from found.values()


def _ends(module: nn.Module, path: str, *, reads: bool) -> list[nn.Module]:
    """The plain maps inside of one that meet the stream, the first of them with its bias if it writes."""
    if type(module) is nn.Linear or is_transposed(module):
        return [module]
    near = "down" if reads else "up"
    if isinstance(module, LowRankLinear):
        return _ends(getattr(module, near), path, reads=reads)
    if isinstance(module, LoraLinear):
        return [*_ends(module.inner, path, reads=reads), *_ends(getattr(module, near), path, reads=reads)]
    raise _stored(path)


def _stored(path: str) -> LissomError:
    cause = "the hidden states cannot be turned in the form in which this is stored"
    return LissomError(713, cause, place=path, remedy="Cut the hidden width first, then store it so.")
