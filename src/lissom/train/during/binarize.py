"""Binarization: weights of one bit and activations of one or a few, products of attention included, trained and packed.

Every linear map in the blocks computes with the signs of its centred weights, and its input is put on few levels with a
trained scale and shift; so are queries, keys, values and, with a softmax, the weights of attention. Of two sets, levels
from 0 on are for what is not negative: the weights of attention, and what the activation of a feed-forward without a
gate gives to its second map; the others are on both sides of 0. Formulas in `lissom.nn.levels` and `fake_levels`.
bits: with several numbers the run has as many stages of equal length, such as 2 and then 1 bits an activation. Each
goes on from where the one before ended, and learns from a copy of the student as it was then, in the teacher's place.
Sources: Liu et al. 2022 (BiT): elastic binarization (section 3.1), two sets (3.2), multi-distillation (3.3); Qin et al.
2022 (BiBERT): centred weights (section 3.1) and, with `attention: bool`, Bi-Attention (3.2).
Differs: all stages are one run with one schedule of the learning rate; GELU stays, and its small negative values become
0, where BiT has ReLU; trained shifts also with Bi-Attention; no dropout of attention weights. Pooler, head and norms,
and the tables of positions and types, stay as they are.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from pydantic import Field

from lissom import edits
from lissom.anatomy import is_transposed, token_table
from lissom.edits.binary import attend_by_levels, attention_layers
from lissom.errors import LissomError
from lissom.nn.fake_levels import CentredFakeWeight, LearnedAttentionLevels, LearnedLevels
from lissom.nn.low_bit import pack_codes
from lissom.train import checkpoint, processes
from lissom.train.during.base import Acting, During
from lissom.train.during.input_levels import InputLevels, positive_inputs
from lissom.train.during.split_binary import pack_table
from lissom.train.during.weights import original, trained, transform, untransform
from lissom.train.projections import Watch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from lissom.anatomy import Anatomy
    from lissom.edits import Editor
    from lissom.train.engine import Engine


@dataclasses.dataclass(frozen=True, kw_only=True)
class Binarize(During):
    """Trains weights of one bit with activations of few, and packs them at the end."""

    name: ClassVar[str] = "binarize"
    source: ClassVar[str] = "Liu et al. 2022 (BiT), section 3; Qin et al. 2022 (BiBERT), sections 3.1 and 3.2"
    speed: ClassVar[str] = "no faster: it saves space on disk, and no engine here multiplies single bits"
    order: ClassVar[int] = 80
    teacher: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False
    alone: ClassVar[bool] = True

    bits: Annotated[
        tuple[Annotated[int, Field(ge=1, le=8)], ...],
        Field(min_length=1, description="of activations; several for stages, each taught by the one before."),
    ] = (1,)
    attention: Annotated[
        Literal["softmax", "bool"],
        Field(description="its weights: levels of the softmax (BiT), or 1 where the score is not negative (BiBERT)."),
    ] = "softmax"
    scales: Annotated[
        Literal["row", "matrix"], Field(description="how many of weights: one a row or one a matrix.")
    ] = "row"
    embeddings: Annotated[bool, Field(description="also the token table, one bit a weight.")] = True

    @property
    def packs(self) -> bool:
        """Always: nothing can be trained afterwards."""
        return True

    def check(self, anatomy: Anatomy, teacher: PreTrainedModel | None) -> None:
        """Raises LSM-715 where transformers does not let the attention of this family be replaced."""
        try:
            attention_layers(anatomy.model)
        except LissomError as error:
            remedy = "Use fake_quant, which leaves attention as it is."
            raise LissomError(715, error.cause, place=self.name, remedy=remedy) from error

    def begin(self, editor: Editor, teacher: PreTrainedModel | None) -> Acting:
        """Put a quantizer on each weight, on each input and into each attention."""
        return _Binarizing(editor, self)

    def quantizer(self, module: nn.Module, _weight: Tensor) -> CentredFakeWeight:
        """What stands between a stored weight and its use in `module`."""
        return CentredFakeWeight(by_row=self.scales == "row", transposed=is_transposed(module))


class _Binarizing(Acting):
    """kept: module -> codes and scales of its weight when it was baked.

    taught: the student at the end of the stage before, if there was one.  loaded: its tensors, from a checkpoint.
    """

    def __init__(self, editor: Editor, options: Binarize) -> None:
        self.options, self.model, anatomy = options, editor.model, editor.anatomy()
        self.kind = self.model.config._attn_implementation
        self.linears = [slot.module for slot in trained(anatomy)]
        path = token_table(self.model) if options.embeddings else None
        self.tables = [] if path is None else [self.model.get_submodule(path)]
        self.made = cast(
            "list[CentredFakeWeight]",
            [*transform(self.linears, options.quantizer), *transform(self.tables, _by_row)],
        )
        self.inputs = InputLevels(self.linears, options.bits[0], positive_inputs(anatomy))
        self.attentions = self._attentions(anatomy)
        attend_by_levels(self.model)
        self.stage = 0
        self.kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self.taught: PreTrainedModel | None = None
        self.loaded: dict[str, Tensor] = {}

    def _attentions(self, anatomy: Anatomy) -> dict[nn.Module, LearnedAttentionLevels]:
        """Levels in each attention layer; layers that share their weights share them."""
        blocks = [block for stack in anatomy.stacks for block in stack.blocks]
        parts = [part for block in blocks for part in (block.attention, block.cross) if part is not None]
        made: dict[int, LearnedAttentionLevels] = {}
        found: dict[nn.Module, LearnedAttentionLevels] = {}
        for part in parts:
            weight = original(part.q.module)
            if id(weight) not in made:
                levels = LearnedAttentionLevels(self.options.bits[0], self.options.attention, processes.mean)
                made[id(weight)] = levels.to(weight.device)
            module = self.model.get_submodule(part.path)
            found[module] = made[id(weight)]
            module.add_module("levels", made[id(weight)])
        return found

    def at(self, progress: float) -> None:
        count = len(self.options.bits)
        stage = min(int(progress * count + 1e-9), count - 1)
        if stage != self.stage:
            self.taught = self._copied(self.options.bits[stage - 1])
            if self.loaded:
                checkpoint.fill(self.taught, self.loaded)
            self._set(self.model, self.options.bits[stage])
            self.stage, self.loaded = stage, {}

    def _copied(self, bits: int) -> PreTrainedModel:
        made: PreTrainedModel = copy.deepcopy(self.model).eval()  # type: ignore[no-untyped-call]
        self._set(made, bits)
        for one in made.parameters():
            one.grad = None
        made.requires_grad_(requires_grad=False)
        return made

    @staticmethod
    def _set(model: nn.Module, bits: int) -> None:
        for one in model.modules():
            if isinstance(one, LearnedLevels):
                one.bits = bits

    @property
    def settled(self) -> bool:
        return self.stage == len(self.options.bits) - 1

    def before(self, engine: Engine, inputs: Mapping[str, Tensor]) -> None:
        """From the second stage on the teacher is the student of the stage before."""
        taught = self.taught
        if taught is None or not engine.teachers or engine.teachers[0] is taught:
            return
        if "projections" in engine.reads:
            engine.watches[id(taught)] = engine.watching.enter_context(Watch(taught))
        engine.teachers = (taught, *engine.teachers[1:])

    def state(self) -> dict[str, Tensor]:
        taught = {} if self.taught is None else checkpoint.weights(self.taught)
        return {f"taught.{name}": one for name, one in taught.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Of a run in its second stage or later; the number of the stage comes by `at`."""
        self.loaded = {name.removeprefix("taught."): one for name, one in state.items()}

    def bake(self) -> None:
        for module in (*self.linears, *self.tables):
            quantizer = next(one for one in cast("Any", module).parametrizations.weight if one in self.made)
            self.kept[module] = quantizer.codes(original(module))
        self._out(bake=True)

    def remove(self) -> None:
        self._out(bake=False)

    def _out(self, *, bake: bool) -> None:
        untransform(self.model, self.made, bake=bake)
        self.inputs.remove()
        for module in self.attentions:
            module._modules.pop("levels", None)
        self.model.config._attn_implementation = self.kind
        self.taught = None

    def end(self, editor: Editor) -> None:
        """Pack maps and table, and let attention compute with levels for good."""
        anatomy = editor.anatomy()
        positive, bits = positive_inputs(anatomy), self.options.bits[-1]
        tensors: dict[str, Tensor] = {}
        slots = list(trained(anatomy))
        for slot in slots:
            codes, scale = self.kept[slot.module]
            tensors |= {f"{slot.path}.weight": pack_codes(codes, 1), f"{slot.path}.weight_scale": scale}
            tensors |= self.inputs.stored(slot.path, slot.module)
        paths, apart = (tuple(one.path for one in slots), [one for one in slots if one.module in positive])
        names = {module: name for name, module in editor.model.named_modules()}
        editor.apply(edits.PackBinary(linears=paths, bits=bits, positive=tuple(one.path for one in apart)), tensors)
        stored = {
            f"{names[module]}.levels.{part}.{name}": one
            for module, levels in self.attentions.items()
            for part, each in levels.named_children()
            for name, one in cast("LearnedLevels", each).stored().items()
        }
        editor.apply(edits.LevelAttention(bits=bits, rule=self.options.attention), stored)
        for table in self.tables:
            pack_table(editor, table, *self.kept[table], bits=1)


def _by_row(_module: nn.Module, _weight: Tensor) -> CentredFakeWeight:
    return CentredFakeWeight()
