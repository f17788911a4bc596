"""Gates on heads, neurons, whole layers and the ranks of thin maps, trained with the weights; what closes is removed.

    u ~ U(0, 1)    s = sigmoid((log u - log(1 - u) + a) / b)    z = clip(s · 1.2 - 0.1, 0, 1)    b = 2/3
    P(z > 0) = sigmoid(a - b · log(0.1 / 1.1))

z multiplies what a head or a neuron gives, and what a layer adds. The loss gets l1 · (s - t) + l2 · (s - t)², with s
the expected share of parameters that is removed and t its target, and l1 and l2 rise by gradient ascent; with `penalty`
it gets penalty · the expected number of open gates. In the last part of the run the gates stand still at
z = clip(sigmoid(a) · 1.2 - 0.1, 0, 1); with a target those with the lowest a are closed until it is met, and no other
one: z is at least sigmoid(a) there.
gates: l1 trains plain factors z = c that start at 1, with the penalty on the sum of |c|; those with the lowest |c| go.
Sources: Louizos et al. 2018, eq. 10 to 13; Voita et al. 2019 (heads); McCarley et al. 2019 (heads and neurons); Wang et
al. 2020 (FLOP, ranks); Xia et al. 2022 (CoFi), section 3.1; Chen et al. 2021 (EarlyBERT) for l1. Ours: the
gates act on the weights behind them, which is the same; the closing at the end; CoFi's gates on the hidden size are
missing, because no edit removes it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lissom.errors import LissomError
from lissom.train.during.base import Acting, During
from lissom.train.during.masks import Along, Plan, check_shares, even
from lissom.train.during.ranks import rank_parts, remove_empty_ranks
from lissom.train.during.units import Part, columns, input_side, output_side, parts, remove_empty
from lissom.train.during.weights import untransform
from lissom.train.ramp import Ramp

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lissom.anatomy import Anatomy
    from lissom.edits import Editor
    from lissom.train.engine import Engine

_B, _LOW, _HIGH = 2 / 3, -0.1, 1.1  # beta, gamma and zeta of the hard concrete distribution
_OPEN = 2.0  # a at the start: z > 0 with probability 0.97
_ALMOST = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class L0(During):
    """Train gates until the share `sparsity` of the parameters behind them is removed."""

    name: ClassVar[str] = "l0"
    source: ClassVar[str] = "Louizos et al. 2018, eq. 10 to 13; Voita et al. 2019; Xia et al. 2022, section 3.1"
    speed: ClassVar[str] = "faster in every runtime, by the heads, neurons and ranks that go"
    order: ClassVar[int] = 30

    of: Annotated[
        tuple[Literal["heads", "neurons", "layers", "ranks"], ...],
        Field(
            min_length=1,
            description="what has gates; layers: attention and feed-forward layers as wholes; ranks: of thin maps",
        ),
    ] = ("heads", "neurons")
    sparsity: Annotated[
        float, Field(ge=0, lt=1, description="share of the parameters in reach of the gates that goes")
    ] = 0.5
    penalty: Annotated[
        float | None, Field(gt=0, description="cost of an open gate; with hard-concrete it replaces sparsity")
    ] = None
    gates: Annotated[Literal["hard-concrete", "l1"], Field(description="random 0 to 1, or plain factors")] = (
        "hard-concrete"
    )
    warmup: Annotated[float, Field(ge=0, le=1, description="share of the run in which the target rises from 0")] = 0.4
    cooldown: Annotated[float, Field(ge=0, le=1, description="share of the run in which the gates stand still")] = 0.2
    learning_rate: Annotated[float, Field(gt=0, le=10, description="of gates and multipliers, at its peak")] = 1e-2
    only_gates: Annotated[bool, Field(description="train the gates alone, with all weights as they are")] = False

    def check(self, anatomy: Anatomy, teacher: PreTrainedModel | None) -> None:
        """Raises LSM-318 when warmup and cooldown are more than the whole run or `sparsity` is out of reach, LSM-715
        when there is nothing to gate."""
        check_shares(self.warmup, 0.0 if self.only_gates else self.cooldown)
        if "ranks" in self.of:  # steps before this one may still make thin maps
            return
        self._check_reach(anatomy)

    def _check_reach(self, anatomy: Anatomy) -> None:
        found = [one.part for one in _gated(anatomy, self.of)]
        if not found:
            cause = f"of: {', '.join(self.of)} finds nothing in {anatomy.family} that a gate could remove"
            raise LissomError(
                715, cause, place="while", remedy="Choose heads or neurons; ranks are those that svd leaves."
            )
        most = 1 - sum(one.cost for one in found) / sum(one.cost * one.units for one in found)
        if self.aims and self.sparsity > most:
            cause = f"sparsity {self.sparsity:g} is more than one head and one neuron a layer leave, {most:.3g}"
            raise LissomError(318, cause, place="while", remedy="Lower it, or gate more kinds of parts.")

    @property
    def aims(self) -> bool:
        """Whether it ends at `sparsity`."""
        return self.penalty is None or self.gates == "l1"

    def begin(self, editor: Editor, teacher: PreTrainedModel | None) -> Acting:
        """Put open gates before every head, neuron, layer and rank that `of` names. Raises as `check` does."""
        self._check_reach(editor.anatomy())
        return _Gating(editor, self)


@dataclasses.dataclass(frozen=True)
class _Place:
    """The gates of a part in the row of all gates. layer: number of the gate of the whole part, or None."""

    part: Part
    units: slice | None
    layer: int | None


def _gated(anatomy: Anatomy, of: tuple[str, ...]) -> list[_Place]:
    """Which parts have gates. A part that shares a position bias with others cannot go as a whole."""
    found, at = [], 0
    for part in rank_parts(anatomy) if "ranks" in of else ():
        found.append(_Place(part, slice(at, at + part.units), None))
        at += part.units
    for part in parts(anatomy) if set(of) - {"ranks"} else ():
        units = slice(at, at + part.units) if ("heads" if part.heads else "neurons") in of else None
        at += part.units if units else 0
        layer = at if "layers" in of and not part.tied else None
        at += layer is not None
        if units is not None or layer is not None:
            found.append(_Place(part, units, layer))
    return found


class Gates(nn.Module):
    """All gates of a run in one row, with what closing each removes.

    a: (gates,), the trained numbers.  open: (gates,) bool, false for what is closed in any case.
    multipliers: l1 and l2.  noise: the draw of the batch, uniform in (0, 1).
    """

    open: Tensor
    noise: Tensor
    owner: Tensor
    cost: Tensor
    base: Tensor
    least: Tensor
    layer: Tensor

    def __init__(self, places: list[_Place], options: L0, device: torch.device) -> None:
        super().__init__()
        self.soft, self.aims = options.gates == "l1", options.aims
        count = sum((one.part.units if one.units else 0) + (one.layer is not None) for one in places)
        self.a = nn.Parameter(torch.full((count,), 1.0 if self.soft else _OPEN, device=device))
        self.multipliers = nn.Parameter(torch.zeros(2, device=device))
        self.still = False  # no draws: the gates have their final values
        whole = sum(one.part.cost * one.part.units for one in places)
        owner, cost = torch.zeros(count, dtype=torch.int64), torch.zeros(count)
        base, layer = torch.zeros(len(places)), torch.full((len(places),), count)
        least = torch.tensor([one.part.cost / whole for one in places])
        for number, one in enumerate(places):
            if one.units is None:
                base[number] = one.part.cost * one.part.units / whole
            else:
                owner[one.units] = number
                cost[one.units] = one.part.cost / whole
            if one.layer is not None:
                layer[number] = one.layer
        fixed = {"owner": owner, "cost": cost, "base": base, "least": least, "layer": layer}
        for name, tensor in {**fixed, "noise": torch.full((count,), 0.5)}.items():
            self.register_buffer(name, tensor.to(device), persistent=False)
        self.register_buffer("open", torch.ones(count, dtype=torch.bool, device=device))

    def z(self, which: slice) -> Tensor:
        """The values of some gates: drawn in training, else final."""
        a, open_ = self.a[which], self.open[which]
        if self.soft:
            return a * open_ if self.still or not self.training else a
        if self.still or not self.training:
            s = a.sigmoid()
            z = _stretched(s)
            return (z.maximum(s) if self.aims else z) * open_
        noise = self.noise[which]
        return _stretched(((noise.log() - (1 - noise).log() + a) / _B).sigmoid())

    def likely(self) -> Tensor:
        """P(z > 0) of all gates."""
        return (self.a - _B * math.log(-_LOW / _HIGH)).sigmoid()

    def removed(self, open_: Tensor) -> Tensor:
        """The share of the parameters that is removed when gates are open with the probabilities `open_`.

        One head or neuron of every part stays, empty if need be.
        """
        kept = self.base.index_add(0, self.owner, open_ * self.cost)
        kept = kept * torch.cat([open_, open_.new_ones(1)])[self.layer]
        return 1 - kept.maximum(self.least).sum()

    @torch.no_grad()
    def close(self, target: float) -> None:
        """Close those with the lowest a (the smallest |c|), and no more than it takes to remove the share `target`."""
        scores = self.a.abs() if self.soft else self.a
        spread = even(len(scores)).to(scores.device)
        order = spread[scores[spread].argsort(stable=True)]
        low, high = 0, len(order)
        while low < high:
            middle = (low + high) // 2
            trial = torch.ones_like(self.a).index_fill_(0, order[:middle], 0.0)
            if float(self.removed(trial)) >= target - _ALMOST:
                high = middle
            else:
                low = middle + 1
        self.open.fill_(True).index_fill_(0, order[:low], False)


def _stretched(s: Tensor) -> Tensor:
    return (s * (_HIGH - _LOW) + _LOW).clamp(0, 1)


class Factor(nn.Module):
    """w -> w · z, with one gate a unit along a dimension of a weight, or one gate for all of a tensor."""

    def __init__(self, gates: Gates, which: slice, along: Along | None) -> None:
        super().__init__()
        self.gates, self.which, self.along = gates, which, along

    def forward(self, weight: Tensor) -> Tensor:
        """The tensor times its gates."""
        z = self.gates.z(self.which)
        return weight * (z if self.along is None else self.along(z)).to(weight.dtype)


class _Gating(Acting):
    def __init__(self, editor: Editor, options: L0) -> None:
        self.model, self.options = editor.model, options
        finish = 1.0 if options.only_gates else 1 - options.cooldown
        self.target = Ramp(start=0.0, end=options.sparsity, finish=min(options.warmup, finish))
        self.finish, self.progress = finish, 0.0
        self.frozen = [one for one in self.model.parameters() if options.only_gates and one.requires_grad]
        places = _gated(editor.anatomy(), options.of)
        self.gates = Gates(places, options, next(self.model.parameters()).device)
        units, layers, biases = Plan(), Plan(), Plan()
        for place in places:
            for reader in place.part.readers:
                if place.units is not None:
                    make = functools.partial(_factor, self.gates, place.units, columns(reader, place.part))
                    units.add(input_side(reader), "weight", make)
                if place.layer is not None:
                    make = functools.partial(_factor, self.gates, slice(place.layer, place.layer + 1), None)
                    layers.add(output_side(reader), "weight", make)
                    if output_side(reader).bias is not None:
                        biases.add(output_side(reader), "bias", make)
        self.made = [(units.carry_out(), "weight"), (layers.carry_out(), "weight"), (biases.carry_out("bias"), "bias")]
        for one in self.frozen:
            one.requires_grad_(False)

    def at(self, progress: float) -> None:
        self.progress = progress
        self.gates.still = progress >= self.finish
        if self.options.aims:
            self.gates.close(self.target.at(progress))

    @property
    def settled(self) -> bool:
        return self.progress >= self.finish

    def before(self, engine: Engine, inputs: Mapping[str, Tensor]) -> None:
        if not self.gates.soft and not self.gates.still:
            self.gates.noise.uniform_(_ALMOST, 1 - _ALMOST)

    def penalty(self) -> Tensor | None:
        gates = self.gates
        if gates.still:
            return None
        if gates.soft:
            return (self.options.penalty or 1e-4) * gates.a.abs().sum()
        if self.options.penalty is not None:
            return self.options.penalty * gates.likely().sum()
        short = gates.removed(gates.likely()) - self.target.at(self.progress)
        found: Tensor = gates.multipliers[0] * short + gates.multipliers[1] * short.square()
        return found

    def groups(self) -> list[dict[str, Any]]:
        rate = {"lr": self.options.learning_rate}
        return [{"params": [self.gates.a], **rate}, {"params": [self.gates.multipliers], "maximize": True, **rate}]

    def bake(self) -> None:
        self.gates.still = True
        self._out(bake=True)

    def end(self, editor: Editor) -> None:
        if "ranks" in self.options.of:
            remove_empty_ranks(editor)
        if set(self.options.of) - {"ranks"}:
            remove_empty(editor)

    def remove(self) -> None:
        self._out(bake=False)

    def _out(self, *, bake: bool) -> None:
        for made, name in self.made:
            untransform(self.model, made, bake=bake, name=name)
        for one in self.frozen:
            one.requires_grad_(True)


def _factor(gates: Gates, which: slice, along: Along | None, _tensor: Tensor) -> nn.Module:
    return Factor(gates, which, along)
