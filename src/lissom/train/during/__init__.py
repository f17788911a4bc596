"""What can act while a model is trained, by the name that `while` uses. Adding one is a module and a line here."""

from __future__ import annotations

from lissom.train.during.base import Acting, During
from lissom.train.during.binarize import Binarize
from lissom.train.during.fake_quant import FakeQuant
from lissom.train.during.group_quant import GroupQuant
from lissom.train.during.l0 import L0
from lissom.train.during.layer_drop import LayerDrop
from lissom.train.during.magnitude import Magnitude
from lissom.train.during.meta import Meta
from lissom.train.during.movement import Movement
from lissom.train.during.product_quant import ProductQuant
from lissom.train.during.proximal import Proximal
from lissom.train.during.replace_modules import ReplaceModules
from lissom.train.during.search_bits import SearchBits
from lissom.train.during.split_binary import SplitBinary
from lissom.train.during.sub_networks import SubNetworks

__all__ = ["DURING", "Acting", "During"]

DURING: dict[str, type[During]] = {
    "binarize": Binarize,
    "fake_quant": FakeQuant,
    "group_quant": GroupQuant,
    "l0": L0,
    "layer_drop": LayerDrop,
    "magnitude": Magnitude,
    "meta": Meta,
    "movement": Movement,
    "product_quant": ProductQuant,
    "proximal": Proximal,
    "replace_modules": ReplaceModules,
    "search_bits": SearchBits,
    "split_binary": SplitBinary,
    "sub_networks": SubNetworks,
}
