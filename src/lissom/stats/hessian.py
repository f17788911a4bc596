"""The second-order statistics of linear maps: H = 2 Σ xᵀx over the tokens that enter one.

Source: Frantar et al. 2022, "GPTQ", section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lissom.anatomy import Slot
from lissom.stats.batches import is_of_tokens
from lissom.stats.blocks import Step
from lissom.stats.finite import check_finite_inputs


class Hessians:
    """Sums H (in, in) in float32 for slots while the model runs. Slots that read one tensor share one sum.

    mask: set before each batch: (rows, length), nonzero where a token counts; None counts all.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.mask: Tensor | None = None
        self._owner: dict[str, str] = {}
        self._sums: dict[str, Tensor] = {}
        self._last: tuple[Tensor, str] | None = None
        self._hooks = [slot.watch(lambda x, _, path=slot.path: self._note(path, x)) for slot in slots]  # type: ignore[misc]

    def _note(self, path: str, x: Tensor) -> None:
        if path not in self._owner:
            same = self._last is not None and self._last[0] is x
            self._owner[path] = self._owner[self._last[1]] if same and self._last is not None else path
        self._last = (x, path)
        if self._owner[path] != path:
            return
        rows = x.detach().float()
        if self.mask is not None and is_of_tokens(x, self.mask):
            rows = rows[self.mask.to(x.device).bool()]
        now = self._of(rows.reshape(-1, x.shape[-1]))
        self._sums[path] = self._sums[path].add_(now) if path in self._sums else now

    def _of(self, rows: Tensor) -> Tensor:
        return 2 * rows.t() @ rows

    def of(self, path: str) -> Tensor | None:
        """H of a slot (in, in), not to be changed; None when no text reached it."""
        return self._sums.get(self._owner.get(path, path))

    def close(self) -> None:
        """Stop watching."""
        self._last = None
        for hook in self._hooks:
            hook.remove()


class Powers(Hessians):
    """Sums Σ x² of each column, (in,), for slots in the same way."""

    def _of(self, rows: Tensor) -> Tensor:
        return rows.square().sum(0)


def hessians_of(step: Step, slots: Sequence[Slot]) -> dict[str, Tensor]:
    """Path -> H (in, in), not to be changed, of the maps that texts reach. Maps that read one tensor share one H.

    Raises LissomError LSM-901 for NaN and infinity.
    """
    return _seen(Hessians(slots), step, slots)


def powers_of(step: Step, slots: Sequence[Slot]) -> dict[str, Tensor]:
    """Path -> Σ x² of each column (in,), not to be changed, of the maps that texts reach. Raises as `hessians_of`."""
    return _seen(Powers(slots), step, slots)


def _seen(found: Hessians, step: Step, slots: Sequence[Slot]) -> dict[str, Tensor]:
    try:
        step.run(lambda mask: setattr(found, "mask", mask))
    finally:
        found.close()
    sums = {slot.path: one for slot in slots if (one := found.of(slot.path)) is not None}
    for path, one in sums.items():
        check_finite_inputs(one, path)
    return sums
