"""Which maps hold the same tensors: what is made of one of them is made of all."""

from __future__ import annotations

from lissom.anatomy import Anatomy, stored_maps


def owners(anatomy: Anatomy) -> dict[str, str]:
    """Path of each map -> the first one that holds the same tensors."""
    first: dict[tuple[int, ...], str] = {}
    return {
        slot.path: first.setdefault(tuple(id(part.module.weight) for part in stored_maps(slot)), slot.path)
        for slot in anatomy.linears()
    }
