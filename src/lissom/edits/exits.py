"""The edits of early exit: heads after some layers, and when a text leaves at them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Literal, cast

import torch
from torch import nn

from lissom.anatomy import Anatomy, Stack, dissect
from lissom.anatomy.dissect import stack_record
from lissom.edits.depth import check_ascending
from lissom.edits.edit import EDIT_MISFIT, Edit
from lissom.edits.linear import device_and_dtype
from lissom.errors import LissomError
from lissom.nn.exit_rules import RULES
from lissom.nn.exits import Exits

EXITS = "exits"  # the child of the model that holds them
LARGEST = 100.0  # constant of a rule, which may be an exponent


def exits_of(model: nn.Module) -> Exits | None:
    """The exits of a model; None where it has none."""
    found = getattr(model, EXITS, None)
    return found if isinstance(found, Exits) else None


def exit_stack(anatomy: Anatomy) -> Stack:
    """The stack of layers that texts can leave. Raises LissomError LSM-715 where there is none.

    It is the one of an encoder with one answer to a whole text, each of whose classes excludes the others.
    """
    model = anatomy.model
    name, config = type(model).__name__, cast("Any", model.config)
    cause = ""
    if not name.endswith("ForSequenceClassification"):
        cause = f"{name} does not give whole texts a class or a number"
    elif len(anatomy.stacks) != 1 or not stack_record(model, anatomy.stacks[0].name).per_row:
        cause = f"{name} is no encoder that texts can leave before its last layer"
    elif getattr(config, "problem_type", None) == "multi_label_classification":
        cause = "a text may have several labels here, and no rule says when all of them are sure"
    elif getattr(config, "conv_kernel_size", 0):
        cause = "a convolution takes the states of its first layer past the others"
    if cause:
        raise LissomError(715, cause, remedy="Early exit needs an encoder with a head for classes or one number.")
    return anatomy.stacks[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AddExits(Edit):
    """Let a text be answered after earlier layers, by heads of their own. Nobody leaves until `SetExits` says when.

    layers: after how many executed layers each exit stands, ascending, all before the last layer.
    head: one linear map; or pooled, a dense layer of the hidden width with tanh and a map.
    reads: the state of the first token, or the mean over the tokens of the text.
    judge: whether all exits share a map that is trained to tell how right an answer is.
    Heads come as tensors `exits.heads.N.classifier.weight` and so on, numbered from 0.
    """

    layers: tuple[int, ...]
    head: Literal["linear", "pooled"] = "linear"
    reads: Literal["first", "mean"] = "first"
    judge: bool = False

    def apply(self, model: nn.Module) -> None:
        """Put the heads beside the model; they are not filled in yet."""
        try:
            stack = exit_stack(dissect(model))
        except LissomError as error:
            raise LissomError(EDIT_MISFIT, error.cause, remedy=error.remedy) from error
        if exits_of(model) is not None:
            raise LissomError(EDIT_MISFIT, "the model has exits already", place=EXITS)
        depth = len(stack.order)
        check_ascending(tuple(one - 1 for one in self.layers), depth - 1, f"exits after layers of {stack.path}")
        config = cast("Any", model.config)
        down = stack.blocks[0].ffn.down
        device, dtype = device_and_dtype(down)
        dropout = getattr(config, "classifier_dropout", None)
        with torch.device(device):
            exits = Exits(
                down.out_features,
                config.num_labels,
                self.layers,
                depth,
                per_row=stack_record(model, stack.name).per_row,
                pooled=self.head == "pooled",
                reads=self.reads,
                judge=self.judge,
                dropout=float(getattr(config, "hidden_dropout_prob", 0.1) if dropout is None else dropout),
            )
        setattr(model, EXITS, exits.to(dtype).train(model.training))
        self.settle(model)

    def settle(self, model: nn.Module, later: tuple[Edit, ...] = ()) -> None:
        """Hook into the blocks, of which an edit may have made new ones."""
        exits, stack = exits_of(model), exit_stack(dissect(model))
        if exits is not None:
            exits.attach(model, [model.get_submodule(block.path) for block in stack.blocks])


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetExits(Edit):
    """Say when a text leaves a model that has exits, in the place of what was said before. It changes no tensor.

    rule, constant: see `lissom.nn.exit_rules`; None takes the rule's own constant.
    points: named operating points: a threshold for each exit, which higher ones let fewer texts leave.
    use: the point that holds where a caller asks for none.
    """

    acts: ClassVar[bool] = True

    rule: str
    constant: float | None = None
    points: dict[str, tuple[float, ...]]
    use: str

    def apply(self, model: nn.Module) -> None:
        """Set it."""
        exits, rule = exits_of(model), RULES.get(self.rule)
        if exits is None or rule is None:
            cause = "the model has no exits" if exits is None else f"there is no rule {self.rule[:40]!r} of exits"
            raise LissomError(EDIT_MISFIT, cause, place="SetExits")
        count = len(exits.layers)
        bad = next((name for name, one in self.points.items() if len(one) != count or not _finite(one)), None)
        constant = self.constant or 0.0
        if bad is not None or self.use not in self.points or not 0 <= constant <= LARGEST:
            cause = f"point {bad[:40]!r} is not {count} finite thresholds" if bad is not None else ""
            if not 0 <= constant <= LARGEST:
                cause = f"constant {constant:g} is not 0 to {LARGEST:g}"
            raise LissomError(EDIT_MISFIT, cause or f"there is no point {self.use[:40]!r}", place="SetExits")
        if cause := rule_misfit(model, self.rule):
            raise LissomError(EDIT_MISFIT, cause, place="SetExits")
        exits.rule, exits.use = self.rule, self.use
        exits.constant = float(self.constant if self.constant is not None else rule.constant or 0.0)
        exits.points = dict(self.points)


def rule_misfit(model: nn.Module, rule: str) -> str:
    """Why `rule` cannot say when texts leave `model`, which has exits; empty where it can."""
    exits = cast("Exits", exits_of(model))
    if RULES[rule].judge and exits.judge is None:
        return f"rule {rule} asks a judge, and the exits were made without one"
    if cast("Any", model.config).num_labels == 1 and not RULES[rule].regression:
        return f"rule {rule} looks at classes, and the model gives a number"
    return ""


def _finite(values: tuple[float, ...]) -> bool:
    return all(map(math.isfinite, values))
