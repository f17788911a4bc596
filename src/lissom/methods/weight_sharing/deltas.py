"""A low-rank delta for each use of a map that layers share.

    W_l ≈ W + U_l V_l,   U_l V_l = the truncated singular value decomposition of W_l - W

with W_l what layer l computed with before, W the shared weight. U = U_r S_r, V = V_r^T: where a layer gave the set its
values, U is zero and V is not, so that the delta can still be trained.
Source: Bae et al. 2024, "Relaxed Recursive Transformers", section 2.4. Differs: biases are those of the set.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lissom import edits
from lissom.anatomy import Slot, Stack
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.weight_sharing.start import groups
from lissom.nn import LoraLinear


def maps(model: nn.Module, stack: Stack, parts: edits.Parts, layer: int) -> list[Slot]:
    """The linear maps of a layer that are shared with these `parts`, fused ones once and whole."""
    block = stack.blocks[layer]
    inside = tuple(f"{path}." for path in edits.shared_paths(block, parts))
    slots = dict.fromkeys(slot.path for slot in block.slots() if f"{slot.path}.".startswith(inside))
    return [Slot(model, path) for path in slots]


def check(model: nn.Module, stack: Stack, parts: edits.Parts, rank: int) -> None:
    """Raise LSM-318 where a delta of this rank takes as much as a map, or a map has a delta already."""
    for slot in (slot for block in stack.blocks for slot in maps(model, stack, parts, block.index)):
        most = (slot.in_features * slot.out_features - 1) // (slot.in_features + slot.out_features)
        if rank > most:
            cause = f"a delta of rank {rank} takes as much as the map itself, or more"
            raise LissomError(318, cause, place=slot.path, remedy=f"Write lora: {most} or less.")
        if isinstance(slot.module, LoraLinear):
            raise LissomError(318, "this map has a delta already", place=slot.path, remedy="Share layers in one step.")


def own_weights(model: nn.Module, stack: Stack, edit: edits.ShareLayers) -> dict[str, Tensor]:
    """Path of each map that will be shared -> a copy of its weight, (out, in)."""
    layers = [layer for members in groups(edit.source).values() for layer in members]
    slots = [slot for layer in layers for slot in maps(model, stack, edit.parts, layer)]
    return {slot.path: slot.weight.detach().clone() for slot in slots}


def add(editor: Editor, own: dict[str, Tensor], rank: int) -> None:
    """Give each of the maps a delta that makes up for what sharing changed. own: as `own_weights` gave it before."""
    tensors: dict[str, Tensor] = {}
    for path, weight in own.items():
        lost = weight.float() - Slot(editor.model, path).weight.detach().float()
        u, s, vt = torch.linalg.svd(lost, full_matrices=False)
        tensors[f"{path}.up.weight"], tensors[f"{path}.down.weight"] = u[:, :rank] * s[:rank], vt[:rank]
    editor.apply(edits.AddLora(ranks=dict.fromkeys(own, rank)), tensors)
