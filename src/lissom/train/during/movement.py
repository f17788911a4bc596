"""Movement pruning: weights that training moves towards zero are removed, wherever they are.

    w' = w · mask(S)        dL/dS = dL/dw' · w

S starts at zero and is trained beside the weights; by its gradient it sums up how much each weight moved away from
zero. After few steps the lowest S all lie in one direction of the gradient, and removing them together is one huge step
along it, worse than removing weights at random: with start: magnitude S begins as log |w / median|, ours.
mask keeps the highest S; with soft those with sigmoid(S) above a threshold, and a penalty pulls S down.
Sources: Sanh et al. 2020, "Movement pruning", section 4; Lagunas et al. 2021, "Block pruning for faster
transformers", section 3, for blocks, heads and neurons. Ours: the mask is chosen `refreshes` times, not at every step;
the soft form ends with the mask that removes exactly `sparsity`; a head's score is that of the columns of o alone,
which are its only way out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from lissom.errors import LissomError
from lissom.train.during.base import Acting, During
from lissom.train.during.masks import Plan, Schedule, Spread, Squares, Straight, check_shares, lowest_of, same
from lissom.train.during.units import Part, columns, input_side, parts, remove_empty, rows
from lissom.train.during.weights import original, trained, untransform

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lissom.anatomy import Anatomy
    from lissom.edits import Editor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Movement(During):
    """Remove the share `sparsity` of the weights of the linear maps in the blocks."""

    name: ClassVar[str] = "movement"
    source: ClassVar[str] = "Sanh et al. 2020, section 4; Lagunas et al. 2021, section 3"
    speed: ClassVar[str] = (
        "no faster by zeros, which no dense engine skips; with of: blocks or heads_and_neurons faster by the heads and "
        "neurons that go"
    )
    order: ClassVar[int] = 30
    differentiable: ClassVar[bool] = False

    sparsity: Annotated[
        float, Field(ge=0, lt=1, description="share of the weights in the blocks that is removed at the end")
    ] = 0.5
    of: Annotated[
        Literal["weights", "blocks", "heads_and_neurons"],
        Field(description="what has a score: a weight; a square in attention or a neuron; a head or a neuron"),
    ] = "weights"
    block: Annotated[int, Field(ge=1, le=4096, description="side of a square, with of: blocks")] = 32
    across: Annotated[
        Literal["matrix", "model"],
        Field(description="rank within each matrix (or layer), or over the model; soft ranks over the model"),
    ] = "matrix"
    start: Annotated[
        Literal["zero", "magnitude"],
        Field(description="scores at first: all 0, or log |w| against the median of the matrix, with of: weights"),
    ] = "zero"
    soft: Annotated[bool, Field(description="a threshold and a penalty choose how much each matrix loses")] = False
    threshold: Annotated[float, Field(ge=0, lt=0.5, description="soft: keep where sigmoid(S) is above it")] = 0.1
    penalty: Annotated[
        float, Field(ge=0, description="soft: weight of the mean of sigmoid(S), while too few weights are removed")
    ] = 100.0
    warmup: Annotated[float, Field(ge=0, le=1, description="share of the run before anything is removed")] = 0.1
    cooldown: Annotated[float, Field(ge=0, le=1, description="share of the run at full sparsity")] = 0.2
    refreshes: Annotated[int, Field(ge=1, description="how often in the run the mask is chosen anew")] = 100
    learning_rate: Annotated[float, Field(gt=0, le=10, description="of the scores, at its peak")] = 1e-2

    def check(self, anatomy: Anatomy, teacher: PreTrainedModel | None) -> None:
        """Raises LSM-318 when warmup and cooldown are more than the whole run, 319 for a start of what is no weight."""
        check_shares(self.warmup, self.cooldown)
        if self.start == "magnitude" and self.of != "weights":
            cause = f"start: magnitude is for single weights, and of is {self.of}"
            raise LissomError(319, cause, place="while", remedy="Write start: zero.")

    def begin(self, editor: Editor, teacher: PreTrainedModel | None) -> Acting:
        """Give every unit a score."""
        return _Moving(editor, self)


class Scores(nn.Module):
    """The scores of one matrix, or of the heads or neurons of one part, and which of them are kept."""

    keep: Tensor

    def __init__(self, shape: torch.Size | tuple[int, ...], device: torch.device) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(shape, device=device))
        self.register_buffer("keep", torch.ones(shape, dtype=torch.bool, device=device))
        self.threshold: float | None = None  # of the soft form, as long as it decides
        self.tied = False  # heads or neurons

    def kept(self) -> Tensor:
        """Which stay now, bool."""
        return self.keep if self.threshold is None else self.scores.detach().sigmoid() > self.threshold


class Mask(nn.Module):
    """w -> w · mask(S), straight through."""

    def __init__(self, of: Scores, spread: Spread) -> None:
        super().__init__()
        self.of, self.spread = of, spread

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with zeros where its unit is not kept."""
        return cast("Tensor", Straight.apply(weight, self.spread(self.of.scores), self.spread(self.of.kept())))  # type: ignore[no-untyped-call]


class _Moving(Acting):
    def __init__(self, editor: Editor, options: Movement) -> None:
        self.model, self.options = editor.model, options
        self.schedule = Schedule(options.sparsity, options.warmup, options.cooldown, options.refreshes)
        self.scores: list[Scores] = []
        self.costs: list[Tensor] | None = None if options.of == "weights" else []
        self.plan = Plan()
        anatomy = editor.anatomy()
        structured = [] if options.of == "weights" else parts(anatomy)
        for part in structured:
            if not part.heads or options.of == "heads_and_neurons":
                self._tie(part)
        if options.of != "heads_and_neurons":
            neurons = {slot.path for part in structured if not part.heads for slot in _slots(part)}
            for slot in trained(anatomy):
                if not any(slot.path == path or slot.path.startswith(f"{path}.") for path in neurons):
                    self.plan.add(slot.module, "weight", self._matrix)
        self.made = self.plan.carry_out()

    def _matrix(self, tensor: Tensor) -> nn.Module:
        """A score for each weight or square of a matrix."""
        if self.costs is None:
            self.scores.append(Scores(tensor.shape, tensor.device))
            if self.options.start == "magnitude":
                self.scores[-1].scores.data.copy_(_by_magnitude(tensor))
            return Mask(self.scores[-1], same)
        squares = Squares(tensor.shape[0], tensor.shape[1], self.options.block)
        sizes = [
            torch.full((count,), self.options.block).index_fill_(0, torch.tensor(count - 1), last)
            for count, last in (
                (count, length - (count - 1) * self.options.block)
                for count, length in zip(squares.units(), tensor.shape, strict=True)
            )
        ]
        self.costs.append(sizes[0].unsqueeze(1) * sizes[1])
        self.scores.append(Scores(squares.units(), tensor.device))
        return Mask(self.scores[-1], squares)

    def _tie(self, part: Part) -> None:
        """A score for each unit of a part, at everything that reads it and, of a neuron, writes it."""
        one = Scores((part.units,), original(input_side(part.readers[0])).device)
        one.tied = True
        self.scores.append(one)
        cast("list[Tensor]", self.costs).append(torch.full((part.units,), part.cost))
        for slot in part.readers:
            self.plan.add(input_side(slot), "weight", functools.partial(_tied, one, columns(slot, part)))
        for slots in part.writers:
            for module, along in rows(slots, part):
                self.plan.add(module, "weight", functools.partial(_tied, one, along))

    def at(self, progress: float) -> None:
        due = self.schedule.move(progress)
        live = self.options.soft and not self.schedule.settled
        for one in self.scores:
            one.threshold = self.options.threshold if live else None
        if due and not live:
            self._choose()

    def _choose(self) -> None:
        together = self.options.soft or self.options.across == "model"
        gone = lowest_of([self._ranked(one) for one in self.scores], self.schedule.share, self.costs, together=together)
        for one, lost in zip(self.scores, gone, strict=True):
            one.keep.copy_(~lost)

    def _ranked(self, one: Scores) -> Tensor:
        """Its scores; of heads and neurons the best one is never the lowest."""
        found = one.scores.detach()
        return found.index_fill(0, found.argmax(), torch.inf) if one.tied else found

    @property
    def settled(self) -> bool:
        return self.schedule.settled

    def penalty(self) -> Tensor | None:
        if not self.options.soft or self.schedule.settled or self._removed() >= self.schedule.share:
            return None
        ramp = self.schedule.share / self.options.sparsity  # the cubic schedule again, from 0 to 1
        return self.options.penalty * ramp * self._mean([one.scores.sigmoid() for one in self.scores])

    def _removed(self) -> float:
        return 1 - float(self._mean([one.kept().float() for one in self.scores]))

    def _mean(self, values: list[Tensor]) -> Tensor:
        """The mean over all weights of what their units have."""
        if self.costs is None:
            return torch.stack([one.sum() for one in values]).sum() / sum(one.numel() for one in values)
        weighted = [(one * cost.to(one.device)).sum() for one, cost in zip(values, self.costs, strict=True)]
        return torch.stack(weighted).sum() / sum(int(cost.sum()) for cost in self.costs)

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": [one.scores for one in self.scores], "lr": self.options.learning_rate}]

    def state(self) -> dict[str, Tensor]:
        return self.schedule.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.schedule.load(state)

    def bake(self) -> None:
        untransform(self.model, self.made, bake=True)

    def end(self, editor: Editor) -> None:
        if self.options.of != "weights":
            remove_empty(editor)

    def remove(self) -> None:
        untransform(self.model, self.made, bake=False)


def _by_magnitude(weight: Tensor) -> Tensor:
    """log |w| less that of the median of the matrix: what is half as large has 0.7 less."""
    size = weight.detach().float().abs().clamp_min(1e-12)
    return (size / size.median()).log()


def _tied(of: Scores, spread: Spread, _tensor: Tensor) -> nn.Module:
    return Mask(of, spread)


def _slots(part: Part) -> list[Any]:
    return [*part.readers, *(slot for slots in part.writers for slot in slots)]
