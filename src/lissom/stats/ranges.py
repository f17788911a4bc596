"""The range of the inputs of linear maps on calibration texts, and which part of it to cover with 256 codes.

Maps that read the same tensor share one range. Padding is left out where a row of the input is a token.
Sources: Krishnamoorthi 2018, section 3 (min_max); Wu et al. 2020, "Integer Quantization for Deep Learning Inference",
section 4 (percentile, entropy; the latter after Migacz 2017); Choukroun et al. 2019 (mse).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lissom.anatomy import Slot
from lissom.errors import LissomError
from lissom.nn import ScaledLinear
from lissom.stats.batches import is_of_tokens
from lissom.stats.finite import check_finite_inputs

Calibrator = Literal["min_max", "percentile", "mse", "entropy"]
LEVELS = 255  # steps between 256 codes
PERCENTILE = 99.99  # share of the values, in percent, that lies inside; what is cut is cut evenly from both ends
_HALF = 2048  # bins on either side of zero
_FACTORS = 40  # candidates for each end, evenly from the whole range down to a fortieth of it
_EPSILON = 1e-12


class Histogram:
    """Counts of values in bins as wide as each other, zero in the middle, whose range grows with what comes.

    low, high: the least and the largest value so far.
    When a value lies outside, bins become twice as wide, two of them one, as often as it takes; so a bin is at most
    1 / 1024 of the largest magnitude, in whatever order values come.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(2 * _HALF, dtype=torch.float64)
        self.limit = 0.0
        self.low, self.high = float("inf"), float("-inf")

    def add(self, x: Tensor) -> None:
        """Count the values of `x`: float32, any shape. Raises ValueError when one is NaN or infinite."""
        if not x.numel():
            return
        low, high = (float(one) for one in torch.aminmax(x))
        if not (torch.isfinite(torch.tensor([low, high])).all()):
            raise ValueError("NaN or infinity")
        self.low, self.high = min(self.low, low), max(self.high, high)
        largest = max(abs(low), abs(high))
        if self.limit == 0:
            self.limit = largest
        while largest > self.limit > 0:
            self._widen()
        if self.limit > 0:
            self.counts += torch.histc(x.float(), 2 * _HALF, -self.limit, self.limit).double().cpu()

    def _widen(self) -> None:
        middle = self.counts.view(_HALF, 2).sum(1)
        self.counts = torch.nn.functional.pad(middle, (_HALF // 2, _HALF // 2))
        self.limit *= 2

    def centers(self) -> Tensor:
        """The value in the middle of each bin: (bins,) float64."""
        width = self.limit / _HALF
        return (torch.arange(2 * _HALF, dtype=torch.float64) - _HALF + 0.5) * width


def find_range(seen: Histogram, calibrator: Calibrator) -> tuple[float, float]:
    """The least and the largest value that codes should stand for, both within what was seen.

    min_max      everything that was seen
    percentile   all but 0.01 % of the values
    mse          least squared error of the rounded values; each end is searched for by itself
    entropy      least Kullback-Leibler divergence of the rounded values from what was seen, clipped; ends move together
    """
    if calibrator == "percentile":
        shares = seen.counts.cumsum(0) / seen.counts.sum()
        tail = (1 - PERCENTILE / 100) / 2
        centers = seen.centers()
        low = float(centers[int(torch.searchsorted(shares, torch.tensor(tail, dtype=torch.float64)))])
        at = int(torch.searchsorted(shares, torch.tensor(1 - tail, dtype=torch.float64)))
        return max(low, seen.low), min(float(centers[min(at, len(centers) - 1)]), seen.high)
    if calibrator == "mse":
        return _least_error(seen)
    if calibrator == "entropy":
        return _least_divergence(seen)
    return seen.low, seen.high


def scale_and_zero(low: float, high: float) -> tuple[Tensor, Tensor]:
    """The grid of 256 codes over a range, which is stretched to hold zero exactly: () float32 and () uint8."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = torch.tensor((high - low) / LEVELS, dtype=torch.float32).clamp_min(torch.finfo(torch.float32).tiny)
    return scale, (-low / scale).round().clamp(0, LEVELS).to(torch.uint8)


def _rounded(values: Tensor, low: float, high: float) -> tuple[Tensor, float, float]:
    """The code of each value, (n,) float64, and the scale and zero point."""
    scale, zero = (float(one) for one in scale_and_zero(low, high))
    return (values / scale).round_().add_(zero).clamp_(0, LEVELS), scale, zero


def _least_error(seen: Histogram) -> tuple[float, float]:
    held = seen.counts > 0
    values, counts = seen.centers()[held], seen.counts[held]

    def error(low: float, high: float) -> float:
        codes, scale, zero = _rounded(values, low, high)
        return float((((codes - zero) * scale - values).square_() * counts).sum())

    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    lows, highs = _shrunk(low), _shrunk(high)
    for _ in range(2):  # one end, then the other, and once again
        high = min(highs, key=lambda one: error(low, one))
        low = min(lows, key=lambda one: error(one, high))
    return low, high


def _least_divergence(seen: Histogram) -> tuple[float, float]:
    held = seen.counts > 0
    values, counts = seen.centers()[held], seen.counts[held]

    def divergence(low: float, high: float) -> float:
        codes, _, _ = _rounded(values, low, high)
        where = codes.long()
        inside = (values >= low) & (values <= high)
        clipped = torch.where(inside, counts, 0)
        first, last = int(inside.nonzero()[0]), int(inside.nonzero()[-1])
        clipped[first] += counts[:first].sum()
        clipped[last] += counts[last + 1 :].sum()
        plain = torch.where(inside, counts, 0)  # Migacz: what is clipped counts in the reference only
        sums = torch.zeros(LEVELS + 1, dtype=torch.float64).index_add_(0, where, plain)
        bins = torch.zeros(LEVELS + 1, dtype=torch.float64).index_add_(0, where, inside.double())
        spread = torch.where(inside, (sums / bins.clamp_min(1))[where], 0)
        p, q = clipped[inside] / clipped.sum(), spread[inside] / spread.sum().clamp_min(_EPSILON)
        return float((p * (p / q.clamp_min(_EPSILON)).clamp_min(_EPSILON).log()).sum())

    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    pairs = [(one, other) for one, other in zip(_shrunk(low), _shrunk(high), strict=True)]
    usable = [(a, b) for a, b in pairs if bool(((values >= a) & (values <= b)).any())]
    return min(usable, key=lambda pair: divergence(*pair)) if usable else (low, high)


def _shrunk(end: float) -> list[float]:
    return [end * (_FACTORS - step) / _FACTORS for step in range(_FACTORS)]


def same_inputs(model: nn.Module, slots: Sequence[Slot], batch: Mapping[str, Tensor]) -> list[list[Slot]]:
    """The slots that one pass over `batch` reaches, in sets that read the same tensor, in the order of `slots`.

    Maps that multiply one tensor by the same factors (`ScaledLinear`) read the same one.
    """
    readers: list[tuple[Tensor, Tensor | None, set[int]]] = []  # tensors are held, so that each stays itself
    outer, factors = zip(*(_behind_factors(model, slot) for slot in slots), strict=True) if slots else ((), ())

    def note(place: int, x: Tensor) -> None:
        factor = factors[place]
        known = (places for one, other, places in readers if one is x and _alike(factor, other))
        found = next(known, None)
        if found is None:
            readers.append((x, factor, {place}))
        else:
            found.add(place)

    _run(model, outer, [batch], note)
    sets: list[set[int]] = []
    for _, _, places in readers:  # a map that is used more than once joins what its inputs feed
        apart = [one for one in sets if not one & places]
        sets = [*apart, places.union(*(one for one in sets if one & places))]
    return [[slots[place] for place in sorted(one)] for one in sorted(sets, key=min)]


def _behind_factors(model: nn.Module, slot: Slot) -> tuple[Slot, Tensor | None]:
    """The slot that reads what `slot` reads before factors of a `ScaledLinear`, and the factors; None without any."""
    path = slot.path.removesuffix(".inner")
    module = model.get_submodule(path)
    if path != slot.path and isinstance(module, ScaledLinear):
        return Slot(model, path), module.input_factor
    return slot, None


def _alike(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def histograms(model: nn.Module, slots: Sequence[Slot], batches: Iterable[Mapping[str, Tensor]]) -> list[Histogram]:
    """What goes into each slot, over all tokens of all batches that are not padding.

    Raises LissomError LSM-901 when an input holds NaN or infinity, naming the map.
    """
    found = [Histogram() for _ in slots]

    def note(place: int, values: Tensor) -> None:
        try:
            found[place].add(values)
        except ValueError as error:
            cause = f"an input holds {error} on a calibration text"
            remedy = "Check the weights; float16 may need float32."
            raise LissomError(901, cause, place=slots[place].path, remedy=remedy) from error

    _run_on_tokens(model, slots, batches, note)
    return found


def column_histograms(
    model: nn.Module,
    slots: Sequence[Slot],
    parts: Sequence[Tensor],
    groups: int,
    batches: Iterable[Mapping[str, Tensor]],
) -> list[list[Histogram]]:
    """What goes into each group of columns of each slot, as `histograms`. parts: the group of each column (in,)."""
    found = [[Histogram() for _ in range(groups)] for _ in slots]

    def note(place: int, values: Tensor) -> None:
        for group, one in enumerate(found[place]):
            one.add(values[:, parts[place] == group])

    _run_on_tokens(model, slots, batches, note)
    return found


def largest_inputs(
    model: nn.Module, slots: Sequence[Slot], batches: Iterable[Mapping[str, Tensor]]
) -> list[Tensor | None]:
    """The largest magnitude of each input of each slot, (in,) float32, over all tokens that are not padding.

    None for a slot that no text reaches. Raises LissomError LSM-901 when an input holds NaN or infinity.
    """
    found: list[Tensor | None] = [None] * len(slots)

    def note(place: int, values: Tensor) -> None:
        top = values.abs().amax(0)
        check_finite_inputs(top, slots[place].path)
        before = found[place]
        found[place] = top if before is None else torch.maximum(before, top)

    _run_on_tokens(model, slots, batches, note)
    return found


def token_ranges(
    model: nn.Module, slots: Sequence[Slot], batches: Iterable[Mapping[str, Tensor]]
) -> list[tuple[Tensor, Tensor]]:
    """The least and the largest value of each token that goes into each slot, two of (tokens,) float32, on the CPU.

    Tokens that are padding are left out. Raises LissomError LSM-901 when an input holds NaN or infinity.
    """
    found: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in slots]

    def note(place: int, values: Tensor) -> None:
        low, high = (one.cpu() for one in torch.aminmax(values, dim=-1))
        check_finite_inputs(low + high, slots[place].path)
        found[place][0].append(low)
        found[place][1].append(high)

    _run_on_tokens(model, slots, batches, note)
    return [(torch.cat(lows), torch.cat(highs)) for lows, highs in found]


def _run_on_tokens(
    model: nn.Module,
    slots: Sequence[Slot],
    batches: Iterable[Mapping[str, Tensor]],
    note: Callable[[int, Tensor], None],
) -> None:
    """As `_run`; gives `note` the real tokens, (tokens, in) float32, where there are any."""
    real: list[Tensor] = []

    def masked(place: int, x: Tensor) -> None:
        values = x.detach().float()
        if real and is_of_tokens(values, real[-1]):
            values = values[real[-1].to(values.device)]
        if values.numel():
            note(place, values.reshape(-1, values.shape[-1]))

    def noting() -> Iterable[Mapping[str, Tensor]]:
        for batch in batches:
            if "attention_mask" in batch:
                real[:] = [batch["attention_mask"].bool()]
            yield batch

    _run(model, slots, noting(), masked)


def _run(
    model: nn.Module,
    slots: Sequence[Slot],
    batches: Iterable[Mapping[str, Tensor]],
    note: Callable[[int, Tensor], None],
) -> None:
    was = model.training
    hooks = [slot.watch(lambda x, _, place=place: note(place, x)) for place, slot in enumerate(slots)]  # type: ignore[misc]
    try:
        model.eval()
        with torch.no_grad():
            for batch in batches:
                model(**batch)
    finally:
        model.train(was)
        for hook in hooks:
            hook.remove()
