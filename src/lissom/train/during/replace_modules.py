"""Module replacing: layers of the teacher stand in for layers of the student, more and more rarely.

    x_(i+1) = r_i · student_i(x_i) + (1 - r_i) · teacher group_i(x_i),    r_i ~ Bernoulli(p)

drawn anew for each layer i and each forward. Group i are the teacher layers between those that student layers i and
i + 1 are mapped to (m -> m · N / M, halves rounded up, for M student and N teacher layers: N / M each where that is
whole). They are frozen, without dropout, and gradients flow through them to the student's layers below. Evaluation runs
the student alone; so does training once p is 1, which is the fine-tuning of the successors.
Source: Xu et al. 2020 (BERT-of-Theseus), sections 3.1 to 3.4: module replacing, successor fine-tuning and the linear
curriculum p = min(1, k t + b) that joins both in one run. With as many student layers as the teacher has it is the
grafting of Huang et al. 2022 (sparse progressive distillation). Differs: the teacher's layers run without dropout; the
student's layers start as they are (`keep_layers: {by: first}` before this step gives the paper's start).
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from lissom.anatomy import dissect
from lissom.anatomy.dissect import stack_record
from lissom.errors import LissomError
from lissom.nn import Int8Linear
from lissom.train.during import detour
from lissom.train.during.base import Acting, During
from lissom.train.objectives.base import Read
from lissom.train.ramp import Probability, Ramp, at

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lissom.anatomy import Anatomy, Stack
    from lissom.edits import Editor
    from lissom.train.engine import Engine


_CURRICULUM = Ramp(start=0.5, end=1.0, finish=0.5)  # the second half of the run is successor fine-tuning


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplaceModules(During):
    """Trains the student's layers among those of the teacher, which they come to replace."""

    name: ClassVar[str] = "replace_modules"
    source: ClassVar[str] = "Xu et al. 2020 (BERT-of-Theseus), section 3; Huang et al. 2022 (SPD)"
    speed: ClassVar[str] = "no faster: it wins back quality that dropping layers costs"
    order: ClassVar[int] = 0
    teacher: ClassVar[bool] = True
    hides: ClassVar[frozenset[Read]] = frozenset({"attentions", "projections"})

    probability: Annotated[
        Probability, Field(description="of running a layer of the student, drawn in each forward; or a ramp of it.")
    ] = _CURRICULUM
    frozen: Annotated[
        bool, Field(description="whether embeddings, head and all else outside the layers wait until it is 1.")
    ] = True

    def check(self, anatomy: Anatomy, teacher: PreTrainedModel | None) -> None:
        """Raises LSM-319 when the teacher's layers cannot stand in for the student's, 713 when they are packed, 715
        when they would need other masks than the student makes."""
        if teacher is not None:
            for mine, wanted in _stacks(anatomy, dissect(teacher)):
                _check_fit(anatomy.model, mine, teacher, wanted)

    def begin(self, editor: Editor, teacher: PreTrainedModel | None) -> Acting:
        """Put a detour on each layer. Raises LSM-317 without a teacher."""
        if teacher is None:
            raise LissomError(317, "replace_modules works with a teacher, and there is none", remedy="Give one.")
        return _Replacing(editor.model, teacher, self)


def _stacks(student: Anatomy, teacher: Anatomy) -> list[tuple[Stack, Stack]]:
    """The stacks of both by name. Raises LSM-319 when one is missing."""
    found = {stack.name: stack for stack in teacher.stacks}
    if [stack.name for stack in student.stacks] != list(found) or not found:
        cause = f"{student.family} and {teacher.family} have not the same stacks of layers"
        raise LissomError(319, cause, place="replace_modules", remedy="Take a student that was cut from its teacher.")
    return [(stack, found[stack.name]) for stack in student.stacks]


def groups(student: int, teacher: int) -> tuple[range, ...]:
    """The layers of the teacher that stand for each layer of the student, adjacent and all of them."""
    ends = [(2 * m * teacher + student) // (2 * student) for m in range(student + 1)]  # as `hidden` maps layers
    return tuple(itertools.starmap(range, itertools.pairwise(ends)))


def _check_fit(student: nn.Module, mine: Stack, teacher: nn.Module, wanted: Stack) -> None:
    count, layers = len(mine.order), len(wanted.order)
    if count > layers:
        cause = f"{count} layers of the student for {layers} of the teacher"
        raise LissomError(319, cause, place="replace_modules", remedy="Drop layers of the student first.")
    one, other = mine.blocks[0], wanted.blocks[0]
    kinds = [type(model.get_submodule(block.path)).__name__ for model, block in ((student, one), (teacher, other))]
    if kinds[0] != kinds[1]:
        cause = f"the student's layers are of the kind {kinds[0]}, the teacher's {kinds[1]}"
        raise LissomError(319, cause, place="replace_modules", remedy="Take a student that was cut from its teacher.")
    sizes = {
        "states are {} numbers wide": [block.attention.q.in_features for block in (one, other)],
        "heads are {} numbers wide": [block.attention.head_dim for block in (one, other)],
    }
    if one.attention.tied:
        sizes["layers share a position bias of {} heads"] = [block.attention.heads for block in (one, other)]
    for said, (left, right) in sizes.items():
        if left != right:
            cause = f"the student's {said.format(left)}, the teacher's {right}"
            raise LissomError(319, cause, place="replace_modules", remedy="Use hidden, which projects, instead.")
    if any(isinstance(module, Int8Linear) for module in teacher.modules()):
        cause = "no gradient goes through the teacher's layers, which are packed"
        raise LissomError(713, cause, place="replace_modules", remedy="Use the teacher as it was before it was packed.")
    own, others = (list(getattr(model.config, "layer_types", None) or ()) for model in (student, teacher))
    for i, group in enumerate(groups(count, layers) if own and others else ()):
        if {others[j] for j in group} != {own[i]}:
            cause = f"layers {group.start} to {group.stop - 1} of the teacher do not all attend as layer {i} does"
            raise LissomError(715, cause, place="replace_modules", remedy="Keep as many layers as the teacher has.")


class _Replacing(Acting):
    def __init__(self, model: PreTrainedModel, teacher: PreTrainedModel, options: ReplaceModules) -> None:
        self.options, self.probability = options, at(options.probability, 0.0)
        self.detours: list[tuple[nn.Module, detour.Detour]] = []
        self.turns: list[_Turns] = []
        anatomy = dissect(model)
        outside = _outside(anatomy)
        self.handles = [cast(Any, one).register_post_accumulate_grad_hook(self._keep_still) for one in outside]
        kind = model.config._attn_implementation
        both = _stacks(anatomy, dissect(teacher))
        # one copy of all: a layer of the teacher may be used in several places
        executed = [[teacher.get_submodule(wanted.blocks[i].path) for i in wanted.order] for _, wanted in both]
        self.stand_ins = frozen_copies(executed, kind)
        for (mine, _), copies in zip(both, self.stand_ins, strict=True):
            gives = stack_record(model, mine.name).gives or ()
            layers = list(cast("nn.ModuleList", copies))
            cut = [layers[group.start : group.stop] for group in groups(len(mine.order), len(layers))]
            for block in mine.blocks:
                module = model.get_submodule(block.path)
                turns = _Turns([cut[i] for i, number in enumerate(mine.order) if number == block.index])
                self.turns.append(turns)
                around = self._around(turns, gives)
                detour.add(module, around)
                self.detours.append((module, around))

    def _around(self, turns: _Turns, gives: tuple[str, ...]) -> detour.Detour:
        def around(forward: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            group = turns.next()
            if torch.rand((), device="cpu") < self.probability:
                return forward(*args, **kwargs)
            return through(group, gives, args, kwargs)

        return around

    def _keep_still(self, parameter: Tensor) -> None:
        if self.options.frozen and self.probability < 1:
            parameter.grad = None  # the optimizer passes over it, weight decay included

    def at(self, progress: float) -> None:
        self.probability = at(self.options.probability, progress)
        self.done = self.probability == at(self.options.probability, 1.0)

    @property
    def settled(self) -> bool:
        return self.done

    def before(self, engine: Engine, inputs: Mapping[str, Tensor]) -> None:
        self.stand_ins.to(engine.args.device)
        for one in self.turns:
            one.start()

    def remove(self) -> None:
        for block, around in self.detours:
            detour.take_out(block, around)
        for handle in self.handles:
            handle.remove()
        self.detours.clear()


class _Turns:
    """What stands in for a block, which some families run several times in a forward."""

    def __init__(self, groups: list[list[nn.Module]]) -> None:
        self.groups, self.turn = groups, 0

    def start(self) -> None:
        self.turn = 0

    def next(self) -> list[nn.Module]:
        found = self.groups[self.turn % len(self.groups)]
        self.turn += 1
        return found


def _outside(anatomy: Anatomy) -> list[nn.Parameter]:
    """What lies outside the layers, and the position bias that one layer has for all of its stack."""
    inside = tuple(f"{block.path}." for stack in anatomy.stacks for block in stack.blocks)
    shared = tuple({block.attention.head_bias for stack in anatomy.stacks for block in stack.blocks} - {""})
    named = anatomy.model.named_parameters()
    return [one for name, one in named if not name.startswith(inside) or name.startswith(shared or "\0")]


def frozen_copies(stacks: Sequence[Sequence[nn.Module]], attention: str) -> nn.ModuleList:
    """Copies of the layers that share their weights and buffers, in eval mode, with nothing to train and no hooks.

    attention: the kind of attention, which must be that of the model that makes the masks.
    """
    originals = nn.ModuleList(nn.ModuleList(layers) for layers in stacks)
    memo: dict[int, Any] = {id(one): nn.Parameter(one.detach(), requires_grad=False) for one in originals.parameters()}
    memo |= {id(one): one for one in originals.buffers()}
    copies = copy.deepcopy(originals, memo).eval()
    for module in copies.modules():
        module._forward_hooks.clear()  # they would note the teacher's states among the student's
        module._forward_pre_hooks.clear()
        if hasattr(module, "config"):
            module.config._attn_implementation = attention  # type: ignore[union-attr]
    return copies


def through(layers: Sequence[nn.Module], gives: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `layers` give one after the other, called as one layer is; gives: see `StackRecord`."""
    given = detour.bind(layers[0], args, kwargs)
    first = next(iter(given.arguments))
    for layer in layers:
        output = layer(*given.args, **given.kwargs)
        given.arguments[first] = detour.states(output)
        for name, one in zip(gives, output[1:] if gives else (), strict=True):
            if name:
                given.arguments[name] = one
    return output
