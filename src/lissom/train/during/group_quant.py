"""Q-BERT: layers get 2 or 3 bits by the curvature of the loss, and are trained with their weights rounded to groups.

At the first step the curvature Ω of the task's loss by the weights of each block is measured on training rows
(`lissom.stats.curvature`), and blocks get the widths of the least Σ Ω · |w - w'|² within the average of `bits`. From
then on every linear map in the blocks computes with its weight as it will be stored, in groups with a range each
(`lissom.nn.fake_groups`), and with its input rounded to 8 bits by the range of the batch; the token table is rounded to
8 bits, a row. At the end the codes that were trained are packed.
Source: Shen et al. 2020, "Q-BERT", sections 3.1 and 3.2.
Differs: widths are the best ones by Ω · |w - w'|² (Dong et al. 2020, HAWQ-V2), where the paper ranks layers by Ω and
sets them by hand; a group is `group` columns of a row, where it is a bundle of rows of a head; maps of groups compute
in float, so that once packed their inputs are no longer rounded; Ω is of matrices, without biases and norms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field

from lissom import edits
from lissom.anatomy import Slot, is_transposed, token_table
from lissom.errors import LissomError
from lissom.nn.fake_groups import FakeGroups
from lissom.nn.fake_quant import FakeWeight, quantize, rounded_input
from lissom.nn.grouped import grid, groups_of, round_to
from lissom.nn.palette import pack_indices
from lissom.stats.curvature import block_weights, omegas
from lissom.stats.finite import finite_weight
from lissom.stats.widths import choose_widths
from lissom.train.during.base import Acting, During
from lissom.train.during.weights import original, trained, transform, untransform

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from lissom.anatomy import Anatomy
    from lissom.edits import Editor
    from lissom.train.engine import Engine

Width = Literal[2, 3, 4, 8]
_ROWS = 16  # in a batch that curvature is measured on


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupQuant(During):
    """Gives each block a width by the curvature of the loss, rounds weights to groups meanwhile, and packs them."""

    name: ClassVar[str] = "group_quant"
    source: ClassVar[str] = "Shen et al. 2020 (Q-BERT), sections 3.1 and 3.2; Dong et al. 2020 (HAWQ-V2), section 3"
    speed: ClassVar[str] = "not faster: weights are decoded to float before use, so it only saves space"
    order: ClassVar[int] = 80
    labels: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False

    bits: Annotated[float, Field(ge=2, le=8, description="bits a weight on average, without scales and zeros.")] = 2.5
    choices: Annotated[tuple[Width, ...], Field(min_length=1, description="widths that a block can get.")] = (2, 3)
    group: Annotated[int, Field(ge=8, le=4096, description="columns that share a scale and a zero point.")] = 64
    activations: Annotated[
        Literal["int8", "none"], Field(description="inputs are rounded to 8 bits while it trains, or not.")
    ] = "int8"
    embeddings: Annotated[bool, Field(description="also the token table, in 8 bits.")] = True
    samples: Annotated[int, Field(ge=1, le=80, description="rows that curvature is measured on.")] = 80

    @property
    def packs(self) -> bool:
        """Always: nothing can be trained afterwards."""
        return True

    def check(self, anatomy: Anatomy, teacher: PreTrainedModel | None) -> None:
        """Raises LSM-318 for an average below the smallest width."""
        if self.bits < min(self.choices):
            cause = f"an average of {self.bits:g} bits, and the smallest of the choices is {min(self.choices)}"
            raise LissomError(318, cause, place="group_quant.bits", remedy="Allow fewer bits in choices.")

    def begin(self, editor: Editor, teacher: PreTrainedModel | None) -> Acting:
        """Put a quantizer on each weight and on each input; nothing is rounded before widths are known."""
        return _Grouping(editor, self)


class _Grouping(Acting):
    """quantizers: of each linear map; shared weights have one.

    kept: module -> scale and zero point of its weight when it was baked, with its bits. Edits between that and packing
    may cut a module: then they are found anew.
    """

    def __init__(self, editor: Editor, options: GroupQuant) -> None:
        self.options, self.model, self.anatomy = options, editor.model, editor.anatomy()
        linears = [slot.module for slot in trained(self.anatomy)]
        path = token_table(editor.model) if options.embeddings else None
        self.tables = [] if path is None else [editor.model.get_submodule(path)]

        def make(module: nn.Module, _weight: Tensor) -> FakeGroups:
            return FakeGroups(group=options.group, transposed=is_transposed(module))

        self.made: list[nn.Module] = transform(linears, make)
        self.rounders = transform(self.tables, lambda _module, _weight: FakeWeight("int8"))
        ours = {id(one) for one in self.made}
        chains = {one: list(cast("Any", one).parametrizations.weight) for one in linears}
        self.quantizers: dict[nn.Module, FakeGroups] = {
            one: next(it for it in chain if id(it) in ours) for one, chain in chains.items()
        }
        self.kept: dict[nn.Module, tuple[Tensor, Tensor, Width]] = {}
        rounded = linears if options.activations == "int8" else []
        self.handles = [one.register_forward_pre_hook(self._round) for one in rounded]
        self._rounds(tables=False)

    def _round(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return (rounded_input(args[0]), *args[1:]) if int(self.quantizers[module].bits) else None

    def _rounds(self, *, tables: bool) -> None:
        for one in self.rounders:
            cast("FakeWeight", one).on = tables

    @property
    def chosen(self) -> bool:
        """Whether widths are known."""
        return all(int(one.bits) for one in self.quantizers.values())

    def at(self, progress: float) -> None:
        self._rounds(tables=self.chosen)  # a checkpoint may have brought the widths

    def before(self, engine: Engine, inputs: Mapping[str, Tensor]) -> None:
        if self.chosen:
            return
        rows = cast("Any", engine.train_dataset)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(engine.args.seed))
        picked = rows.select(order[: self.options.samples].tolist()).to_list()
        batches = [engine.data_collator(picked[at : at + _ROWS]) for at in range(0, len(picked), _ROWS)]
        device = engine.args.device
        moved = [{name: one.to(device) for name, one in batch.items() if name != "row"} for batch in batches]
        with torch.autocast(device.type, enabled=False):
            try:
                found = omegas(self.model, block_weights(self.anatomy), moved, seed=engine.args.seed)
            except LissomError as error:
                if error.code != "LSM-821":
                    raise
                raise LissomError(317, error.cause, place="group_quant", remedy="Give labels.") from error
        self.choose(found)

    def choose(self, curvatures: Mapping[str, float]) -> None:
        """Give each block its width. curvatures: Ω by the path of a block."""
        blocks: dict[str, list[nn.Module]] = {}
        own = {id(quantizer): module for module, quantizer in reversed(self.quantizers.items())}
        for slot in trained(self.anatomy):
            if own[id(self.quantizers[slot.module])] is slot.module:  # shared weights count once
                name = next(path for path in curvatures if slot.path.startswith(f"{path}."))
                blocks.setdefault(name, []).append(slot.module)
        weights = [sum(original(one).numel() for one in modules) for modules in blocks.values()]
        damages = [
            [curvatures[name] * sum(self._lost(one, bits) for one in modules) for bits in self.options.choices]
            for name, modules in blocks.items()
        ]
        costs = [[bits * count for bits in self.options.choices] for count in weights]
        budget = int(self.options.bits * sum(weights) + 1e-6)
        for modules, number in zip(blocks.values(), choose_widths(costs, damages, budget), strict=True):
            for one in modules:
                self.quantizers[one].bits.fill_(self.options.choices[number])
        self._rounds(tables=True)

    def _lost(self, module: nn.Module, bits: int) -> float:
        quantizer, weight = self.quantizers[module], finite_weight(original(module), "group_quant")
        return float((quantizer.rounded(weight, bits) - quantizer.rows(weight)).square().sum())

    def bake(self) -> None:
        if not self.chosen:  # a preview: no row was seen
            self.choose(dict.fromkeys(block_weights(self.anatomy), 1.0))
        for module, quantizer in self.quantizers.items():
            bits = cast("Width", int(quantizer.bits))
            rows = quantizer.rows(original(module).detach())
            if bool(torch.isfinite(rows).all()):
                self.kept[module] = (*grid(rows, bits=bits, group=self.options.group), bits)
        self._take_out(bake=bool(len(self.kept) == len(self.quantizers)))

    def remove(self) -> None:
        self._take_out(bake=False)

    def _take_out(self, *, bake: bool) -> None:
        for handle in self.handles:
            handle.remove()
        untransform(self.model, [*self.made, *self.rounders], bake=bake)

    def end(self, editor: Editor) -> None:
        """Pack the maps, a width at a time, and the table."""
        places: dict[Width, dict[str, Tensor]] = {}
        for slot in trained(editor.anatomy()):
            bits, numbers = self._numbers(slot)
            places.setdefault(bits, {}).update({f"{slot.path}.{name}": one for name, one in numbers.items()})
        for bits, tensors in sorted(places.items()):
            linears = tuple(name.removesuffix(".weight") for name in tensors if name.endswith(".weight"))
            editor.apply(edits.PackGroups(bits=bits, group=self.options.group, linears=linears), tensors)
        for name, module in list(editor.model.named_modules()):
            if module in self.tables:
                codes, scale = quantize(cast("Tensor", module.weight).detach().float(), "int8")
                tensors = {f"{name}.weight": codes.to(torch.int8), f"{name}.weight_scale": scale}
                editor.apply(edits.Pack(embeddings=(name,)), tensors)

    def _numbers(self, slot: Slot) -> tuple[Width, dict[str, Tensor]]:
        """Bits, codes, scales and zero points of a map; those that it was trained with where it was not cut since."""
        weight, group = finite_weight(slot.weight, slot.path), self.options.group
        scale, zero, bits = self.kept.get(slot.module, (None, None, max(self.options.choices)))
        if scale is None or zero is None or scale.shape != (len(weight), groups_of(weight.shape[1], group)):
            scale, zero = grid(weight, bits=bits, group=group)
        codes = pack_indices(round_to(weight, scale, zero, bits=bits, group=group), bits)
        return bits, {"weight": codes, "weight_scale": scale.half(), "weight_zero": zero.half()}
