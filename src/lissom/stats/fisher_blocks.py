"""The empirical Fisher information of weights in small blocks, and what removing some of them costs by it.

    F = 1/m Σ g gᵀ + λ I        score_q = w_q² / (2 [F⁻¹]_qq)        w'_K = w_K + F_KK⁻¹ F_KQ w_Q

over the gradients g of the loss on m texts, each alone, for every `size` weights that follow each other in a matrix. Q
go, K stay: w'_K is where the loss, to second order and without slope, is least. λ is `damp` times the mean of F's
diagonal over the matrix.
Source: Kurtic et al. 2022, "The optimal BERT surgeon", section 3. Differs: blocks are inverted, not updated text by
text (the same numbers); what goes from a block goes at once, not one weight after the other; λ follows the gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lissom.anatomy import Slot, is_transposed
from lissom.stats.curvature import check_loss

_CHUNK = 16  # gradients that are held at once
_SOLVED = 8192  # blocks that are solved at once


def block_fisher(
    model: nn.Module, slots: Sequence[Slot], texts: Iterable[Mapping[str, Tensor]], *, size: int, damp: float
) -> dict[str, Tensor]:
    """Path of each map -> F of its blocks, (blocks, size, size) float32; zeros fill the last one.

    slots: with a parameter each, transposed or not.  texts: batches of one, with labels; the model's own loss is used,
    without dropout.  Raises LissomError LSM-902 when the loss is NaN or infinite, 821 when the model gives none.
    """
    weights = [slot.weight for slot in slots]
    sums = [one.new_zeros(-(-one.numel() // size), size, size, dtype=torch.float32) for one in weights]
    leaves = [slot.module.get_parameter("weight") for slot in slots]
    frozen = [one for one in leaves if not one.requires_grad]
    held: list[list[Tensor]] = [[] for _ in slots]
    count, training = 0, model.training
    model.train(False)

    def add() -> None:
        for total, found in zip(sums, held, strict=True):
            if found:
                blocks = torch.stack(found, dim=2)  # (blocks, size, texts)
                total.baddbmm_(blocks, blocks.transpose(1, 2))
                found.clear()

    try:
        for one in frozen:
            one.requires_grad = True
        for batch in texts:
            with torch.enable_grad():
                loss = model(**batch).loss
                check_loss(loss)
                slopes = torch.autograd.grad(loss, leaves, allow_unused=True)
            for found, slope, slot in zip(held, slopes, slots, strict=True):
                if slope is not None:
                    found.append(blocks_of(slope.t() if is_transposed(slot.module) else slope, size))
            count += 1
            if count % _CHUNK == 0:
                add()
        add()
    finally:
        model.train(training)
        for one in frozen:
            one.requires_grad = False
    return {slot.path: _damped(total / max(count, 1), damp) for slot, total in zip(slots, sums, strict=True)}


def _damped(fisher: Tensor, damp: float) -> Tensor:
    least = (damp * fisher.diagonal(dim1=1, dim2=2).mean()).clamp_min(1e-30)  # a map that no gradient reaches
    return fisher + least * torch.eye(fisher.shape[1], device=fisher.device)


def blocks_of(weight: Tensor, size: int) -> Tensor:
    """weight: (out, in), row after row. Returns (blocks, size) float32; zeros fill the last one."""
    flat = weight.detach().float().flatten()
    return F.pad(flat, (0, -len(flat) % size)).reshape(-1, size)


def saliency(weight: Tensor, fisher: Tensor) -> Tensor:
    """What each weight costs, (out, in) float32. weight: (out, in). fisher: (blocks, size, size)."""
    diagonal = torch.cat([torch.linalg.inv(part).diagonal(dim1=1, dim2=2) for part in torch.split(fisher, _SOLVED)])
    scores = blocks_of(weight, fisher.shape[1]).square() / (2 * diagonal)
    return scores.flatten()[: weight.numel()].reshape(weight.shape)


def removed(weight: Tensor, fisher: Tensor, gone: Tensor) -> Tensor:
    """The weight without what goes, (out, in) float32, the others having made up for it. gone: bool (out, in)."""
    size = fisher.shape[1]
    old, lost = blocks_of(weight, size), blocks_of(gone, size)
    made = []
    for f, w, q in zip(*(torch.split(one, _SOLVED) for one in (fisher, old, lost)), strict=True):
        kept = 1 - q
        both = kept[:, :, None] * f * kept[:, None, :] + torch.diag_embed(q)  # F among those that stay, else 1
        side = kept * (f @ (q * w)[:, :, None])[:, :, 0]
        made.append(kept * (w + torch.linalg.solve(both, side)))
    return torch.cat(made).flatten()[: weight.numel()].reshape(weight.shape)
