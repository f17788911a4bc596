"""How edits cut tensors that may stand in several places of a model."""

from __future__ import annotations

from torch import Tensor, nn


class Cut:
    """Cuts tensors down to the places `kept` of one dimension; what was one tensor in several places stays one.

    kept: 1-D int64 numbers.
    """

    def __init__(self, kept: Tensor) -> None:
        self.kept = kept
        self._made: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, old: Tensor, dim: int) -> Tensor:
        """`old` without the other places of `dim`; the same tensor each time it is asked for."""
        if not self.knows(old):
            new = old.detach().index_select(dim, self.kept.to(old.device))
            new = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
            self._made[id(old)] = old, new  # the old one too, so that its id is nobody else's
        return self._made[id(old)][1]

    def knows(self, old: Tensor) -> bool:
        """Whether `old` was cut before."""
        return id(old) in self._made
