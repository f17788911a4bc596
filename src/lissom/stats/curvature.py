"""How sharply a loss, or the answers, bend along the weights: which parts bear few bits and which do not.

    omega     |mean(λ)| + std(λ) of each block, λ the largest eigenvalue of the Hessian of the task's loss by the
              weights of its linear maps, on ten slices of the texts, by power iteration: v <- Hv / |Hv|, λ = vᵀHv;
              approximated by 8 texts a slice, few rounds, and a change of λ below 1 % as the end
    rows      Σ_j F_ij of each output i of a map, F_ij = E (∂ L / ∂ w_ij)² over texts, L the loss of one text: the
              empirical Fisher information, summed by rows without holding the gradient of a text by a matrix:
              Σ_j (Σ_t g_ti x_tj)² = Σ_ts g_ti (x_t · x_s) g_si over tokens t and s
    answers   Σ_t (∂ log p(y) / ∂ output_r)² of each output r of a map, over tokens t, with y drawn from the model's own
              answers: the diagonal of their Fisher information, by which a small error e of an output moves them by
              ½ F e² nats of KL divergence

Sources: Shen et al. 2020, "Q-BERT", section 3.1 and equation 2 (omega); Hsu et al. 2022, "FWSVD", section 3 (rows);
Martens 2020, "New insights and perspectives on the natural gradient method", sections 6 and 9 (Fisher information
as the curvature of KL, labels from the model).
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lissom.anatomy import Anatomy, Slot
from lissom.errors import LissomError
from lissom.nn.shared import once
from lissom.stats.batches import cut
from lissom.stats.sensitivity import answers_of

SLICES = 10  # as published
_TEXTS = 8  # in a slice at most; the published tenth of the data takes hours on CPUs
_ROUNDS = 20  # of power iteration at most, on the first slice
_AGAIN = 2  # on the others, which begin with the vector of the one before
_CLOSE = 1e-2  # relative change of the eigenvalue at which it ends

Weights = Mapping[str, Sequence[nn.Parameter]]


def block_weights(anatomy: Anatomy) -> dict[str, list[nn.Parameter]]:
    """Path of each block -> the matrices of its linear maps, each once. Packed maps have none."""
    blocks = [block for stack in anatomy.stacks for block in stack.blocks]
    return {block.path: once(one for slot in block.slots() for one in _matrices(slot.module)) for block in blocks}


def _matrices(module: nn.Module) -> Iterator[nn.Parameter]:
    return (one for one in module.parameters() if one.dim() == 2 and one.is_floating_point())


def omegas(
    model: nn.Module,
    weights: Weights,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    seed: int = 0,
    report: Callable[[str, float], None] = lambda phrase, fraction: None,
) -> dict[str, float]:
    """Omega of each block, not negative. The model's own loss is used, without dropout; it is left as it was.

    weights: as `block_weights` gives them.  batches: with labels; their rows are cut into `SLICES` slices of at most 8,
    or as many as there are rows; what is left over is not looked at.
    Raises LissomError LSM-902 when the loss is NaN or infinite, 821 when the model gives none.
    """
    given = list(batches)
    rows = sum(len(batch["input_ids"]) for batch in given)
    pieces = list(itertools.islice(cut(given, min(max(1, rows // SLICES), _TEXTS)), SLICES))
    found: dict[str, list[float]] = {name: [] for name, one in weights.items() if one}
    generator = torch.Generator().manual_seed(seed)
    starts = {name: [torch.randn(one.shape, generator=generator) for one in weights[name]] for name in found}
    training = model.training
    model.train(False)
    try:
        with _trainable(one for each in weights.values() for one in each):
            for number, piece in enumerate(pieces):
                report("curvature of the loss", number / len(pieces))
                slopes = _slopes(model, {name: weights[name] for name in found}, piece)
                for name, values in found.items():
                    value, starts[name] = _largest(
                        slopes[name], weights[name], starts[name], _AGAIN if number else _ROUNDS
                    )
                    values.append(value)
    finally:
        model.train(training)
    return {name: _omega(values) for name, values in found.items()}


def _omega(values: Sequence[float]) -> float:
    spread = torch.tensor(values, dtype=torch.float64)
    return abs(float(spread.mean())) + float(spread.std(correction=0))


@contextlib.contextmanager
def _trainable(tensors: Iterable[Tensor]) -> Iterator[None]:
    frozen = [one for one in tensors if not one.requires_grad]
    for one in frozen:
        one.requires_grad = True
    try:
        yield
    finally:
        for one in frozen:
            one.requires_grad = False


def _slopes(model: nn.Module, weights: Weights, batch: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """The gradient of the loss by each matrix, which can be differentiated again."""
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fast kernels of attention have no second derivative
        loss = model(**batch).loss
        check_loss(loss)
        flat = [one for each in weights.values() for one in each]
        slopes = iter(torch.autograd.grad(loss, flat, create_graph=True, materialize_grads=True))
    return {name: [next(slopes) for _ in each] for name, each in weights.items()}


def _largest(
    slopes: Sequence[Tensor], weights: Sequence[nn.Parameter], start: Sequence[Tensor], rounds: int = _ROUNDS
) -> tuple[float, list[Tensor]]:
    """The eigenvalue of largest magnitude of the Hessian by `weights`, of whose loss `slopes` are the gradients.

    start: where the iteration begins; the vector of another slice is near. Returns the value, and its vector.
    """
    vector = [one.to(weight) for one, weight in zip(start, weights, strict=True)]
    bent = [one for one in slopes if one.requires_grad]
    value = 0.0
    for _ in range(rounds if bent else 0):
        size = _length(vector)
        vector = [one / size for one in vector]
        along = [one for one, slope in zip(vector, slopes, strict=True) if slope.requires_grad]
        turned = torch.autograd.grad(bent, weights, along, retain_graph=True, materialize_grads=True)
        before, value = value, sum(float((a * b).sum()) for a, b in zip(vector, turned, strict=True))
        if not 0 < _length(turned) < math.inf:
            break
        vector = list(turned)
        if abs(value - before) <= _CLOSE * abs(value):
            break
    return value, vector


def _length(vector: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(one.double().square().sum()) for one in vector))


def row_fisher(model: nn.Module, slots: Sequence[Slot], batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Path of each map -> `rows` (see the head) of its outputs, (out,) float32; zeros where no text reaches it.

    batches: with labels; the model's own loss is used, without dropout. Where that is a mean over tokens, a text counts
    by its share of the batch's tokens. What does not tell texts apart (a table of positions) counts a batch as one.
    Raises LissomError LSM-902 when the loss is NaN or infinite, 821 when the model gives none.
    """
    found = {slot.path: torch.zeros(slot.out_features, device=slot.weight.device) for slot in slots}
    texts = 0
    training = model.training
    model.train(False)
    try:
        for batch in batches:
            rows = len(batch["input_ids"])
            texts += rows
            used: dict[str, list[tuple[Tensor, Tensor]]] = {}
            with torch.enable_grad(), contextlib.ExitStack() as hooks:
                for slot in slots:
                    hooks.callback(slot.module.register_forward_hook(_note_both(used, slot.path)).remove)
                loss = model(**batch).loss
                check_loss(loss)
                flat = [y for uses in used.values() for _, y in uses]
                slopes = iter(torch.autograd.grad(loss, flat, allow_unused=True))
            for path, uses in used.items():
                pairs = [(x, slope) for (x, _), slope in zip(uses, slopes, strict=False) if slope is not None]
                if pairs:
                    found[path] += _by_row(pairs, rows)
    finally:
        model.train(training)
    return {path: one / max(texts, 1) for path, one in found.items()}


def _by_row(pairs: Sequence[tuple[Tensor, Tensor]], rows: int) -> Tensor:
    """Σ over texts and inputs of the squared gradient of a map, (out,): of all its uses (x, slope) in a batch."""

    def apart(one: Tensor) -> Tensor:
        return one.detach().float().reshape(rows if len(one) == rows else 1, -1, one.shape[-1])

    x, slope = (torch.cat([apart(one) for one in each], dim=1) for each in zip(*pairs, strict=True))
    slope = rows * slope  # the loss is a mean over texts
    return (slope * (x @ x.transpose(1, 2) @ slope)).sum((0, 1)).clamp_min(0)


def _note_both(used: dict[str, list[tuple[Tensor, Tensor]]], path: str) -> Callable[..., Tensor]:
    def hook(_module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        y = y if y.requires_grad else y.detach().requires_grad_()
        used.setdefault(path, []).append((args[0].detach(), y))
        return y

    return hook


def check_loss(loss: Tensor | None) -> None:
    """Raise LissomError LSM-821 where there is no loss, 902 where it is NaN or infinite."""
    if loss is None:
        raise LissomError(821, "the curvature of a loss needs labelled texts, and these have none")
    if not bool(torch.isfinite(loss)):
        raise LissomError(902, f"the loss is {loss.item()} on calibration texts")


def answer_weights(
    model: nn.Module, slots: Sequence[Slot], batches: Iterable[Mapping[str, Tensor]], *, seed: int = 0
) -> dict[str, Tensor]:
    """Path of each map -> `answers` (see the head) of its outputs, (out,) float32, the sum over all tokens.

    One pass forward and back a batch; labels are not read. A value, or the hidden states of a bare encoder, count as
    Gaussian with variance 1. Maps that no text reaches get zeros. Raises LissomError LSM-715 as `answers_of`.
    """
    found = {slot.path: torch.zeros(slot.out_features, device=slot.weight.device) for slot in slots}
    generator = torch.Generator().manual_seed(seed)
    training = model.training
    model.train(False)
    try:
        for batch in batches:
            seen: list[tuple[str, Tensor]] = []
            with torch.enable_grad(), contextlib.ExitStack() as hooks:
                for slot in slots:
                    hooks.callback(slot.module.register_forward_hook(_note(seen, slot.path)).remove)
                said = drawn_likelihood(answers_of(model, dict(batch)), batch["attention_mask"], generator)
                slopes = torch.autograd.grad(said, [y for _, y in seen], allow_unused=True)
            for (path, y), slope in zip(seen, slopes, strict=True):
                if slope is not None and y.numel():
                    found[path] += slope.float().square().reshape(-1, y.shape[-1]).sum(0)
    finally:
        model.train(training)
    return found


def _note(seen: list[tuple[str, Tensor]], path: str) -> Callable[[nn.Module, object, Tensor], Tensor]:
    def hook(_module: nn.Module, _args: object, y: Tensor) -> Tensor:
        y = y if y.requires_grad else y.detach().requires_grad_()
        seen.append((path, y))
        return y

    return hook


def drawn_likelihood(answers: dict[str, Tensor], mask: Tensor, generator: torch.Generator) -> Tensor:
    """The log-likelihood of answers that are drawn from the model itself, summed, up to a constant.

    answers: as `answers_of` gives them, with gradients.  mask: (rows, length), 1 for a real token.
    """
    total = torch.zeros((), device=mask.device)
    for name, one in answers.items():
        if name in ("start_logits", "end_logits"):
            total = total + _drawn(one.masked_fill(mask == 0, -1e4), generator)
            continue
        real = one[mask == 1] if one.shape[:-1] == mask.shape else one.reshape(-1, one.shape[-1])
        if name == "last_hidden_state" or one.shape[-1] == 1:
            noise = torch.randn(real.shape, generator=generator).to(real)
            total = total + (real * noise).sum()
        else:
            total = total + _drawn(real, generator)
    return total


def _drawn(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Σ log p(y) with y drawn from softmax of each row of (n, classes)."""
    chosen = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator).to(logits.device)
    return F.log_softmax(logits, dim=-1).gather(1, chosen).sum()
