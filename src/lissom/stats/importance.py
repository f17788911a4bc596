"""Importance of attention heads, intermediate neurons and layers.

Magnitude needs the weights only. First order asks how much the loss would change if a part answered zero:
I = E | sum (x * dL/dx) | over the part's values x, estimated from gradients on labelled texts. Fisher information is
the mean of its square. What a part adds to the residual, and where a head looks, need texts without labels.
Sources: Michel et al. 2019, eq. 3 (heads); Molchanov et al. 2017, eq. 8 (neurons); Men et al. 2024, eq. 1 (layers);
Kwon et al. 2022, eq. 8 (Fisher); Sun et al. 2024, eq. 1, for whole units (output); Voita et al. 2019, section 5.1
(attention).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from lissom.anatomy import Attention, Ffn, Residual, Slot, Stack
from lissom.errors import LissomError
from lissom.stats.curvature import drawn_likelihood
from lissom.stats.sensitivity import answers_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Batches = Iterable[dict[str, Tensor]]


def head_magnitude(attention: Attention) -> Tensor:
    """L2 norm of all weights of each key/value head with its query heads. Returns (kv_heads,)."""
    units = attention.kv_heads
    into = (attention.q, attention.k, attention.v, *attention.extra)
    rows = [slot.weight.detach().float().reshape(units, -1) for slot in into]
    columns = attention.o.weight.detach().float().t().reshape(units, -1)
    return _norms([*rows, columns])


def neuron_magnitude(ffn: Ffn) -> Tensor:
    """L2 norm of all weights of each intermediate neuron. Returns (width,)."""
    into = (ffn.up,) if ffn.gate is None else (ffn.up, ffn.gate)
    rows = [slot.weight.detach().float() for slot in into]
    columns = ffn.down.weight.detach().float().t()
    return _norms([*rows, columns])


def channel_magnitude(stream: Residual) -> Tensor:
    """L2 norm of all that reads and writes each channel of the residual stream. Returns (width,)."""
    tables = [stream.model.get_submodule(path).weight for path in stream.tables]
    reads, writes = ([slot.weight for slot in slots] for slots in (stream.reads, stream.writes))
    rows = [cast("Tensor", one).t() for one in (*tables, *reads)]
    return _norms([one.detach().float() for one in (*rows, *writes)])


def channel_activation(model: nn.Module, stacks: tuple[Stack, ...], batches: Batches) -> Tensor:
    """Root of the mean square of each channel of what goes into attention, over all tokens, padding too, and layers.

    Returns (width,). Source: Muralidharan et al. 2024, "Compact language models via pruning and knowledge
    distillation" (Minitron), section 2.2, with the L2 norm over texts as well.
    """
    slots = [block.attention.q for stack in stacks for block in stack.blocks]
    sums, seen = torch.zeros(slots[0].in_features, dtype=torch.float64), 0

    def add(x: Tensor, _y: Tensor) -> None:
        nonlocal seen
        sums.add_(x.detach().double().flatten(0, -2).square().sum(dim=0).cpu())
        seen += x.shape[:-1].numel()

    with contextlib.ExitStack() as hooks, torch.no_grad():
        for slot in slots:
            hooks.callback(slot.watch(add).remove)
        model.eval()
        for batch in batches:
            model(**batch)
    return (sums / max(seen, 1)).sqrt().float()


def branch_norms(model: nn.Module, stacks: tuple[Stack, ...], batches: Batches) -> dict[str, float]:
    """How much attention and feed-forward layers add: the largest ‖F(x)‖ / ‖x‖ over all tokens but padding.

    x: what goes into the block.  Returns path of o or down -> that share.
    Source: Lin et al. 2020, "Pruning redundant mappings" (SNIP), eq. 3, relative to x.
    """
    most: dict[str, float] = {}
    mask: Tensor | None = None
    lengths: dict[str, Tensor] = {}

    def enter(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            lengths[path] = (args[0] if args else kwargs["hidden_states"]).detach().float().norm(dim=-1)

        return hook

    def add(block: str, path: str) -> Callable[[Tensor, Tensor], None]:
        def look(_x: Tensor, y: Tensor) -> None:
            share = y.detach().float().norm(dim=-1).view(lengths[block].shape) / lengths[block].clamp_min(1e-12)
            if mask is not None and share.shape == mask.shape:
                share = share[mask.to(share.device).bool()]
            most[path] = max(most.get(path, 0.0), float(share.max()))

        return look

    with contextlib.ExitStack() as hooks, torch.no_grad():
        for block in (block for stack in stacks for block in stack.blocks):
            module = model.get_submodule(block.path)
            hooks.callback(module.register_forward_pre_hook(enter(block.path), with_kwargs=True).remove)
            for one in (block.attention, block.cross, block.ffn):
                if one is not None:
                    slot = one.down if isinstance(one, Ffn) else one.o
                    hooks.callback(slot.watch(add(block.path, slot.path)).remove)
        model.eval()
        for batch in batches:
            mask = batch.get("attention_mask")
            model(**batch)
    return most


def _norms(parts: list[Tensor]) -> Tensor:
    """L2 norm of each row over all parts."""
    squares: Tensor = torch.cat(parts, dim=1).square().sum(dim=1)
    return squares.sqrt()


def first_order(model: nn.Module, slots: dict[str, tuple[Slot, int]], batches: Batches) -> dict[str, Tensor]:
    """First-order importance of what goes into each of `slots`, in units of equal size.

    slots, batches: as `gate_slopes` takes them; the model's own loss is used.
    Returns name -> (units,), mean over texts. Raises LissomError LSM-902 when the loss is NaN or infinite.
    """
    sums = {name: torch.zeros(units) for name, (_, units) in slots.items()}
    texts = 0
    for slopes in gate_slopes(model, slots, batches):
        for name, slope in slopes.items():
            sums[name] += slope.abs().sum(dim=0)
        texts += len(next(iter(slopes.values()), ()))
    return {name: total / max(texts, 1) for name, total in sums.items()}


def fisher(model: nn.Module, slots: dict[str, tuple[Slot, int]], batches: Batches) -> dict[str, Tensor]:
    """The diagonal of the Fisher information of gates before units: as `first_order`, but the mean of squares."""
    sums = {name: torch.zeros(units) for name, (_, units) in slots.items()}
    texts = 0
    for slopes in gate_slopes(model, slots, batches):
        for name, slope in slopes.items():
            sums[name] += slope.square().sum(dim=0)
        texts += len(next(iter(slopes.values()), ()))
    return {name: total / max(texts, 1) for name, total in sums.items()}


def output_norms(model: nn.Module, slots: dict[str, tuple[Slot, int]], batches: Batches) -> dict[str, Tensor]:
    """Root of the mean square of what each unit adds, |W_u x_u|, over real tokens; of a neuron |w| * |x|.

    slots: as `first_order` takes them. Returns name -> (units,).
    """
    sums = {name: torch.zeros(units) for name, (_, units) in slots.items()}
    tokens = dict.fromkeys(slots, 0)
    weights = {name: slot.weight.detach().float() for name, (slot, _) in slots.items()}
    seen: list[tuple[str, Tensor]] = []
    model.eval()
    for batch in batches:
        seen.clear()
        with torch.no_grad(), contextlib.ExitStack() as hooks:
            for name, (slot, _) in slots.items():
                hooks.callback(slot.watch(lambda x, _, name=name: seen.append((name, x))).remove)  # type: ignore[misc]
            model(**batch)
        mask = batch["attention_mask"].bool()
        for name, x in seen:
            units, size = len(sums[name]), x.shape[-1] // len(sums[name])
            parts = x.float().reshape(*mask.shape, units, size)[mask]
            columns = weights[name].t().reshape(units, size, -1)
            sums[name] += torch.einsum("nui,uij,nuj->u", parts, columns @ columns.transpose(1, 2), parts).cpu()
            tokens[name] += len(parts)
    return {name: (total / max(tokens[name], 1)).sqrt() for name, total in sums.items()}


def attention_mass(model: PreTrainedModel, stacks: tuple[Stack, ...], batches: Batches) -> dict[str, Tensor]:
    """How surely a head looks somewhere: its largest attention weight, mean over real tokens, of Voita et al. 2019.

    Returns path of each attention layer -> (kv_heads,), the mean over the query heads of each.
    Raises LissomError LSM-715 when the model gives no attention weights.
    """
    maps: dict[str, list[Attention]] = {}
    for stack in stacks:
        blocks = [stack.blocks[one] for one in stack.order]
        name = "attentions" if len(stacks) == 1 else f"{stack.name}_attentions"
        maps[name] = [block.attention for block in blocks]
        if cross := [block.cross for block in blocks if block.cross is not None]:
            maps["cross_attentions"] = cross
    found = {one.path: torch.zeros(one.kv_heads) for each in maps.values() for one in each}
    tokens, kind = 0, model.config._attn_implementation
    model.train(False)
    model.set_attn_implementation("eager")  # the faster kinds give no weights
    try:
        for batch in batches:
            with torch.no_grad():
                said = model(**batch, output_attentions=True)
            mask = batch["attention_mask"].bool()
            for name, each in maps.items():
                given = said.get(name)
                if given is None or len(given) != len(each):
                    raise LissomError(715, f"{type(model).__name__} gives no attention weights")
                for one, weights in zip(each, given, strict=True):
                    largest = weights.float().amax(dim=-1).transpose(1, 2)[mask].sum(dim=0)
                    found[one.path] += largest.reshape(one.kv_heads, -1).mean(dim=1).cpu()
            tokens += int(mask.sum())
    finally:
        model.set_attn_implementation(kind)
    return {path: total / max(tokens, 1) for path, total in found.items()}


def gate_slopes(
    model: nn.Module,
    slots: dict[str, tuple[Slot, int]],
    batches: Batches,
    *,
    answers: bool = False,
    seed: int = 0,
) -> Iterator[dict[str, Tensor]]:
    """For each batch the slope of each text's loss by a gate m = 1 before each unit: sum (x * dL/dx) over its values.

    slots: name -> (slot, number of units its inputs are cut into, side by side).
    batches: with labels, whose loss is the model's own.  answers: instead, labels are not read: the loss is the
        negative log-likelihood of answers that are drawn from the model itself with `seed`, summed over a text.
    Yields name -> (rows, units) on the CPU. Dropout is off; the weights are left as they were.
    Raises LissomError LSM-902 when the loss is NaN or infinite, LSM-821 when there is none, LSM-715 as `answers_of`.
    """
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    for number, batch in enumerate(batches):
        seen: list[tuple[str, Tensor]] = []  # a layer that runs several times stands here as often
        with torch.enable_grad(), contextlib.ExitStack() as hooks:
            for name, (slot, _) in slots.items():
                hooks.callback(slot.module.register_forward_pre_hook(_note(seen, name)).remove)
            rows = batch["input_ids"].shape[0]
            if answers:
                loss: Any = -drawn_likelihood(answers_of(model, dict(batch)), batch["attention_mask"], generator)
            else:
                loss = model(**batch).loss
            if loss is None:
                raise LissomError(821, "this step needs labelled texts, and these have no labels")
            loss = loss if answers else loss * rows  # the model's own is a mean over rows
        if not torch.isfinite(loss):
            raise LissomError(902, f"the loss is {loss.item()} on calibration batch {number + 1}")
        gradients = torch.autograd.grad(loss, [x for _, x in seen], materialize_grads=True)
        slopes = {name: torch.zeros(rows, units) for name, (_, units) in slots.items()}
        for (name, x), gradient in zip(seen, gradients, strict=True):
            units = slots[name][1]
            slope = (x.detach() * gradient).float().reshape(rows, -1, units, x.shape[-1] // units)
            slopes[name] += slope.sum(dim=(1, 3)).cpu()  # a unit is removed from all passes at once
        yield slopes


def block_influence(model: nn.Module, stack: Stack, batches: Batches) -> Tensor:
    """1 - cosine between what goes into a layer and what comes out, mean over real tokens. Returns (layers,)."""
    total, tokens = torch.zeros(len(stack.order)), 0
    model.eval()
    for batch in batches:
        states: list[tuple[Tensor, Tensor]] = []
        with torch.no_grad(), contextlib.ExitStack() as hooks:
            for block in stack.blocks:
                hooks.callback(model.get_submodule(block.path).register_forward_hook(_in_and_out(states)).remove)
            model(**batch)
        mask = batch["attention_mask"].bool()
        for layer, (before, after) in enumerate(states):
            cosine = nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
            total[layer] += (1 - cosine)[mask].sum().item()
        tokens += int(mask.sum())
    return total / max(tokens, 1)


def _in_and_out(states: list[tuple[Tensor, Tensor]]) -> Callable[..., None]:
    def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        states.append((args[0], output if isinstance(output, Tensor) else output[0]))

    return hook


def _note(seen: list[tuple[str, Tensor]], name: str) -> Callable[..., tuple[Tensor, ...]]:
    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0] if args[0].requires_grad else args[0].detach().requires_grad_()
        seen.append((name, x))
        return (x, *args[1:])

    return hook
