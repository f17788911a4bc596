"""Linear maps and tables with many zeros in a file: the zeros are left out, and put back while it loads.

Which ones are stored so, with how many numbers each, stands in `config.json` beside the record; in memory the model has
whole weights before and after, so that whatever a model can do (train, be cut, be packed) it can do with zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from lissom.anatomy import dissect, is_transposed, stored_maps
from lissom.errors import LissomError, UnsupportedFamily
from lissom.nn.shared import Place, place_of
from lissom.nn.sparse import StoredSparse, pack_zeros

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEAST = 0.1  # share of the bytes of one that has to be saved: plain transformers reads a folder without any such map


def sparse_maps(model: nn.Module) -> dict[str, int]:
    """Path -> how many weights are not zero, of the maps of the blocks and the tables that are stored without zeros.

    A table that an output projection shares is stored whole. Of a model without weights (on meta), and of one that has
    no anatomy, none.
    """
    try:
        anatomy = dissect(model)
        paths = [*(part.path for slot in anatomy.linears() for part in stored_maps(slot)), *anatomy.embeddings]
    except UnsupportedFamily:
        return {}
    found: dict[str, int] = {}
    for path in paths:
        module = model.get_submodule(path)
        if _plain(module) and not (weight := _weight(model, path)).is_meta:
            kept = int(weight.count_nonzero())
            if _bytes(weight, kept) <= (1 - LEAST) * weight.numel() * weight.element_size():
                found[path] = kept
    own = {id(_weight(model, path)) for path in found}
    elsewhere = {
        id(one)
        for name, one in model.named_parameters(remove_duplicate=False)
        if name.rpartition(".")[0] not in found and id(one) in own
    }
    return {path: kept for path, kept in found.items() if id(_weight(model, path)) not in elsewhere}


def spared(model: nn.Module) -> int:
    """Bytes that a file is smaller by, because zeros are left out."""
    weights = {id(one): (one, kept) for path, kept in sparse_maps(model).items() for one in [_weight(model, path)]}
    return sum(one.numel() * one.element_size() - _bytes(one, kept) for one, kept in weights.values())


def without_zeros(
    state: Mapping[str, Tensor], ties: Mapping[str, str], maps: Mapping[str, int]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and ties of a file. maps: from `sparse_maps`, whose weights `state` holds."""
    packed, tied, made = dict(state), dict(ties), dict[Place, tuple[Tensor, Tensor]]()
    for path in maps:
        name, mask = f"{path}.weight", f"{path}.weight_mask"
        key = place_of(state[name])
        if key not in made:
            made[key] = pack_zeros(state[name])
        packed[mask], packed[name] = made[key]
        if name in ties:
            tied[mask] = f"{ties[name]}_mask"
    return packed, tied


def maps_from_json(value: Any) -> dict[str, int]:
    """`zeros` of a config. Reads untrusted files. Raises LissomError LSM-452."""
    whole = isinstance(value, dict) and all(type(kept) is int and 0 <= kept < 2**31 for kept in value.values())
    if not whole:
        raise LissomError(452, "zeros is not a map of paths to numbers of weights", place="config.json")
    return dict(value)


def open_maps(model: PreTrainedModel, maps: Mapping[str, int]) -> list[str]:
    """Make room in an empty model for maps without their zeros. Returns where they are in this model.

    Another head may have other names before those of the layers.  Raises LissomError LSM-452.
    """
    places: list[str] = []
    prefix = f"{model.base_model_prefix}."
    modules = dict(model.named_modules())
    for path, kept in maps.items():
        place = next((one for one in (path, path.removeprefix(prefix), prefix + path) if one in modules), path)
        module = modules.get(place)
        if module is None or not _plain(module):
            raise LissomError(452, "no linear map or table with zeros can stand here", place=path[:200])
        if kept > (size := _weight(model, place).numel()):
            raise LissomError(452, f"{kept} of {size} weights are not zero", place=path[:200])
        model.set_submodule(place, StoredSparse(module, kept))
        places.append(place)
    return places


def close_maps(model: PreTrainedModel, places: list[str], tied: Mapping[str, str]) -> None:
    """Put whole weights in the place of what was read. tied: names that the file leaves out.

    Raises LissomError LSM-445 for a mask that does not go with its numbers.
    """
    for place in places:
        stored = cast("StoredSparse", model.get_submodule(place))
        try:
            model.set_submodule(place, stored.whole(filled=f"{place}.weight" not in tied))
        except ValueError as error:
            raise LissomError(445, str(error), place=f"{place}.weight_mask", remedy="Save the model again.") from error


def _plain(module: nn.Module) -> bool:
    """Whether a module is nothing but a weight, and a bias if any, that can be stored so."""
    return type(module) in (nn.Linear, nn.Embedding) or is_transposed(module)


def _weight(model: nn.Module, path: str) -> Tensor:
    found: Tensor = model.get_parameter(f"{path}.weight")
    return found


def _bytes(weight: Tensor, kept: int) -> int:
    return -(-weight.numel() // 8) + kept * weight.element_size()
