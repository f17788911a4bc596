"""The parts of low-rank maps, a column of `up` with a row of `down`, as units that stay or go."""

from __future__ import annotations

from torch import Tensor, nn

from lissom import edits
from lissom.anatomy import Anatomy, Slot
from lissom.edits import Editor
from lissom.nn import LowRankLinear
from lissom.train.during.units import Part, tensor_id


def rank_parts(anatomy: Anatomy) -> list[Part]:
    """One part for each low-rank map of the blocks, or for all that share its tensors, read by `up`."""
    found: dict[int, Part] = {}
    for slot in _thin(anatomy):
        cost = slot.in_features + slot.out_features
        reader = Slot(anatomy.model, f"{slot.path}.up")
        part = Part(heads=False, tied=True, units=reader.in_features, size=1, cost=cost)
        found.setdefault(tensor_id(reader), part).readers.append(reader)
    return list(found.values())


def remove_empty_ranks(editor: Editor) -> None:
    """Cut, by one edit, low-rank maps down to the parts that `up` reads; one stays. The model answers as before."""
    ranks: dict[str, int] = {}
    tensors: dict[str, Tensor] = {}
    for slot in _thin(editor.anatomy()):
        up, down = (editor.model.get_parameter(f"{slot.path}.{name}.weight").detach() for name in ("up", "down"))
        alive = (up != 0).any(dim=0).nonzero().flatten()
        if len(alive) < len(down):
            alive = alive if len(alive) else alive.new_zeros(1)
            ranks[slot.path] = len(alive)
            tensors[f"{slot.path}.up.weight"], tensors[f"{slot.path}.down.weight"] = up[:, alive], down[alive]
    if ranks:
        editor.apply(edits.Factorize(ranks=ranks), tensors)


def _thin(anatomy: Anatomy) -> list[Slot]:
    return [
        slot
        for slot in anatomy.linears()
        if isinstance(slot.module, LowRankLinear)
        and type(slot.module.up) is nn.Linear
        and type(slot.module.down) is nn.Linear
    ]
