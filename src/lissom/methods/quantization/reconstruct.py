"""Store weights in few bits, after blocks were trained one row after the other to give what they gave before.

Each row of blocks f has rounded weights and inputs, on a model whose blocks before it are rounded already:

    min  mean |f(x) - f'(x')|²        x' from the rounded blocks before,   x = x' (here) or as in the original model

over the weights, biases and norms of the row, and the steps of rounding where they are learned. Rounding is passed
straight through by gradients. No labels are read. A row that training leaves worse than rounding alone is put back.
Sources: Yao et al. 2022, "ZeroQuant", section 4.2 (a block at a time, x = x'); Bai et al. 2022, "Towards efficient
post-training quantization of pre-trained language models" (MREM), sections 3.1 and 3.3 (several blocks, x of the
original; at first x' is mixed with x by max(1 - t / T, 0), teacher forcing). Rows are trained one after the other, as
MREM-S does; MREM-P trains them at once on several devices. Differs: inputs are rounded by the range that they have, so
there is no clip to learn for them.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lissom import edits
from lissom.anatomy import Anatomy, Slot, is_transposed, token_table
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Need, Stage, check_gradients
from lissom.methods.quantization.maps import unpacked_maps
from lissom.nn.fake_quant import LARGEST, FakeWeight, LearnedFakeWeight, quantize, rounded_input
from lissom.nn.int8 import usable
from lissom.nn.low_bit import pack_codes
from lissom.nn.shared import once
from lissom.stats.finite import finite_weight
from lissom.stats.spans import Call, Span, calls, spans
from lissom.train.during.weights import original, transform, untransform

Weights = Literal["int8", "int4", "ternary"]
_BITS: dict[str, Literal[2, 4, 8]] = {"int8": 8, "int4": 4, "ternary": 2}
_FROM_ORIGINAL = "Write target: original."

Stored = tuple[Weights, Tensor, Tensor]
"""What a map is stored as, its codes (out, in) and its scales (out,)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruct(Method):
    """Pack linear maps and the token table, and train blocks on texts to make up for it."""

    name: ClassVar[str] = "reconstruct"
    stage: ClassVar[Stage] = Stage.BITS
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    speed: ClassVar[str] = (
        "faster on CPUs with AVX-512 VNNI, AMX or Arm dot products, as int8 is; "
        "fewer bits than 8 save space on disk, and run as int8"
    )
    source: ClassVar[str] = "Yao et al. 2022, section 4.2; Bai et al. 2022, sections 3.1 and 3.3"
    only_packs: ClassVar[bool] = True

    attention: Annotated[Weights, Field(description="what the maps of attention are stored as")] = "int8"
    feed_forward: Annotated[Weights, Field(description="what the maps of feed-forward layers are stored as")] = "int4"
    embeddings: Annotated[Weights | Literal["none"], Field(description="what the token table is stored as")] = "int8"
    activations: Annotated[
        Literal["token", "tensor"],
        Field(description="inputs of maps are rounded to 8 bits with one scale for each token, or one for all"),
    ] = "token"
    scales: Annotated[
        Literal["row", "learned"],
        Field(description="of weights: from each row; or one a matrix, trained with it"),
    ] = "row"
    blocks: Annotated[int, Field(ge=1, le=1000, description="how many are trained together")] = 1
    target: Annotated[
        Literal["here", "original"],
        Field(description="what they shall give: what they gave unrounded for the same inputs, or in the first model"),
    ] = "here"
    teacher_forcing: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="share of the steps in which inputs of the first model are mixed in, fewer and fewer",
        ),
    ] = 0.0
    steps: Annotated[
        int,
        Field(ge=0, le=1_000_000, description="of training for each row of blocks, on 32 texts each; 0: only round"),
    ] = 200
    learning_rate: Annotated[float, Field(gt=0, le=1, description="of Adam at first; it falls to zero")] = 3e-4
    samples: Annotated[int, Field(ge=1, le=100_000, description="texts, or blocks of running text")] = 512

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-713 for layers that are packed already, LSM-315 for options that do not go together."""
        check_gradients(anatomy)
        if self.teacher_forcing and self.target == "here":
            cause = "inputs of the first model are mixed in, and what it gives is not the target"
            raise LissomError(315, cause, place="reconstruct.teacher_forcing", remedy=_FROM_ORIGINAL)

    def packs_all(self) -> bool:
        """Always."""
        return True

    def apply(self, editor: Editor, given: Given) -> dict[str, Any] | None:
        """Round the token table, train row after row, then pack. Says the error of each row before and after."""
        maps = unpacked_maps(editor)
        if not maps:
            return None
        model, was, anatomy = editor.model, editor.model.training, editor.anatomy()
        dtypes = {name: one.dtype for name, one in model.named_parameters()}
        for one in model.train(False).parameters():
            one.data = one.data.float()
        first = copy.deepcopy(model) if self.target == "original" and self.steps else None
        table = self._table(editor)
        for path, (_, codes, scale) in table.items():
            model.get_submodule(path).weight.data = codes * scale[:, None]
        batches = list(given.calibration(model, self.samples)) if self.steps else []
        stored: dict[str, Stored] = {}
        places: dict[int, str] = {}  # of each weight that was trained; later blocks may share it
        errors, hooks = [], []
        rows = spans(anatomy, self.blocks)
        try:
            for number, span in enumerate(rows):
                given.report(f"row {number + 1} of {len(rows)}", number / len(rows))
                own = [slot for slot in maps if _inside(slot.path, span)]
                row = _Row(self, model, span, [slot for slot in own if id(slot.module.weight) not in places])
                before = calls(model, span, batches) if row.maps else []
                wanted = before if first is None or not before else calls(first, span, batches)
                hooks += row.round_(own, anatomy)
                if before:
                    errors.append(row.train(before, wanted, given.seed + number))
                stored |= row.settle()
                places |= {id(slot.module.weight): slot.path for slot in row.maps}
                stored |= {slot.path: stored[places[id(slot.module.weight)]] for slot in own}
        finally:
            for hook in hooks:
                hook.remove()
        for name, one in model.train(was).named_parameters():
            one.data = one.data.to(dtypes[name])
        self._pack(editor, stored, table)
        return {"errors": errors} if errors else None

    def preview(self, editor: Editor, given: Given) -> None:
        """The same structure, rounded to the nearest."""
        anatomy, stored = editor.anatomy(), {}
        for slot in unpacked_maps(editor):
            kind = self.kind(slot.path, anatomy)
            stored[slot.path] = _codes(kind, self.fake(kind, nn.Identity(), slot.weight), slot.weight, slot.path)
        self._pack(editor, stored, self._table(editor))

    def kind(self, path: str, anatomy: Anatomy) -> Weights:
        """What the map at `path` is stored as."""
        forward = [slot.path for stack in anatomy.stacks for block in stack.blocks for slot in block.ffn.slots()]
        return self.feed_forward if any(f"{path}.".startswith(f"{one}.") for one in forward) else self.attention

    def fake(self, kind: Weights, module: nn.Module, weight: Tensor) -> FakeWeight:
        """What stands between a stored weight and its use in `module`."""
        transposed = is_transposed(module)
        if self.scales == "learned":
            return LearnedFakeWeight(kind, weight, transposed=transposed)
        return FakeWeight(kind, transposed=transposed)

    def _table(self, editor: Editor) -> dict[str, Stored]:
        """The token table as it will be stored, by its path; empty where it stays."""
        path = None if self.embeddings == "none" else token_table(editor.model)
        if path is None or self.embeddings == "none":
            return {}
        weight = cast("Tensor", editor.model.get_submodule(path).weight)
        return {path: _codes(self.embeddings, FakeWeight(self.embeddings), weight, path)}

    def _pack(self, editor: Editor, maps: dict[str, Stored], tables: dict[str, Stored]) -> None:
        """Put packed layers in their place, those of one kind by one edit."""
        every = {**maps, **tables}
        for kind in dict.fromkeys(one for one, _, _ in every.values()):
            own = {path: one for path, one in every.items() if one[0] == kind}
            tensors = {f"{path}.weight_scale": scale for path, (_, _, scale) in own.items()}
            for path, (_, codes, _) in own.items():
                tensors[f"{path}.weight"] = codes.to(torch.int8) if kind == "int8" else pack_codes(codes, _BITS[kind])
            options: dict[str, Any] = {
                "linears": tuple(path for path in own if path in maps),
                "embeddings": tuple(path for path in own if path in tables),
                "per_token": self.activations == "token",
            }
            edit = edits.Pack(**options) if kind == "int8" else edits.PackBits(bits=_BITS[kind], **options)
            editor.apply(edit, tensors)


class _Row:
    """One row of blocks while it is trained. maps: those whose weights no row before it has trained."""

    def __init__(self, options: Reconstruct, model: Any, span: Span, maps: Sequence[Slot]) -> None:
        self.options, self.model, self.span, self.maps = options, model, span, maps
        self.fakes: list[nn.Module] = []

    def round_(self, own: Sequence[Slot], anatomy: Anatomy) -> list[RemovableHandle]:
        """Let weights, and the inputs of all of `own`, be used as they will be stored.

        Returns what rounds the inputs; it stays when the row is settled.
        """
        kinds = {slot.module: self.options.kind(slot.path, anatomy) for slot in self.maps}
        self.kinds = {slot.path: kinds[slot.module] for slot in self.maps}
        self.fakes = transform(kinds, lambda module, weight: self.options.fake(kinds[module], module, weight))
        per_token = self.options.activations == "token"

        def rounded(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (rounded_input(args[0], per_token=per_token), *args[1:])

        return [slot.module.register_forward_pre_hook(rounded) for slot in own]

    def train(self, here: Sequence[Call], wanted: Sequence[Call], seed: int) -> dict[str, float]:
        """Train what the row computes with. here: its calls on the rounded model; wanted: those that gave the targets.

        Returns the mean error over all calls before and after.
        """
        parameters = once(self._parameters())
        frozen = [one for one in parameters if not one.requires_grad]
        kept = [one.detach().clone() for one in parameters]
        before = self._error(here, wanted)
        adam = torch.optim.Adam(parameters, lr=self.options.learning_rate)
        generator = torch.Generator().manual_seed(seed)
        order: list[int] = []
        for one in frozen:
            one.requires_grad_(True)
        for step in range(self.options.steps):
            order = order or torch.randperm(len(here), generator=generator).tolist()
            at = order.pop()
            call, x = here[at], here[at].hidden
            if (share := self._forced(step)) > 0:
                x = share * wanted[at].hidden + (1 - share) * x
            with torch.enable_grad():
                loss = call.error(call.run(self.model, self.span, x), wanted[at].out)
                for one, slope in zip(
                    parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True
                ):
                    one.grad = slope
            adam.param_groups[0]["lr"] = self.options.learning_rate * (1 - step / self.options.steps)
            adam.step()
        for one in parameters:
            one.grad = None
        for one in frozen:
            one.requires_grad_(False)
        after = self._error(here, wanted)
        if not after < before:
            with torch.no_grad():
                for one, value in zip(parameters, kept, strict=True):
                    one.copy_(value)
            after = before
        return {"before": before, "after": after}

    def settle(self) -> dict[str, Stored]:
        """The codes that were trained; weights are what they stand for from now on."""
        found = {}
        for slot in self.maps:
            fake = next(one for one in slot.module.parametrizations.weight if one in self.fakes)  # type: ignore[union-attr]
            weight = original(slot.module)
            rows = weight.t() if is_transposed(slot.module) else weight
            found[slot.path] = _codes(self.kinds[slot.path], fake, rows, slot.path)
        untransform(self.model, self.fakes, bake=True)
        return found

    def _forced(self, step: int) -> float:
        last = self.options.teacher_forcing * self.options.steps
        return max(1 - step / last, 0.0) if last else 0.0

    def _parameters(self) -> Iterator[nn.Parameter]:
        modules = [slot.module for slot in self.maps]
        for module in modules:
            yield original(module)  # type: ignore[misc]
            if isinstance(module.bias, nn.Parameter):
                yield module.bias
        for fake in self.fakes:
            yield from fake.parameters()
        for block in self.span.blocks:
            for norm in block.norms if any(slot.path.startswith(f"{block.path}.") for slot in self.maps) else ():
                yield from self.model.get_submodule(norm).parameters()

    def _error(self, here: Sequence[Call], wanted: Sequence[Call]) -> float:
        with torch.no_grad():
            pairs = zip(here, wanted, strict=True)
            found = [call.error(call.run(self.model, self.span, call.hidden), one.out) for call, one in pairs]
            return float(torch.stack(found).mean())


def _inside(path: str, span: Span) -> bool:
    return any(path.startswith(f"{block.path}.") for block in span.blocks)


def _codes(kind: Weights, fake: FakeWeight, weight: Tensor, path: str) -> Stored:
    """Codes and scales of a matrix (out, in) by the steps of `fake`. Raises LissomError LSM-901 for NaN or infinity."""
    rows = finite_weight(weight, path)
    if not isinstance(fake, LearnedFakeWeight):
        return kind, *quantize(rows, kind)
    scale = usable(fake.step.detach().abs())
    largest = LARGEST[kind]
    return kind, (rows / scale).clamp(-largest, largest).round(), scale.expand(len(rows)).clone()
