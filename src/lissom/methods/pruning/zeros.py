"""What the methods that set single weights to zero have in common: how many, in which maps, block after block."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lissom.anatomy import Anatomy, Slot, stored_maps
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Stage, check_floating
from lissom.stats.batches import cut
from lissom.stats.blocks import Step, walk
from lissom.train.during.masks import lowest

_ROWS = 8  # texts that run at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Zeros(Method):
    """Set weights of the linear maps in the blocks to zero; shapes stay. Saved folders leave the zeros out."""

    stage: ClassVar[Stage] = Stage.ZEROS
    speed: ClassVar[str] = "no faster: no dense engine skips zeros; the folder is smaller, since zeros are not stored"

    ratio: Annotated[float, Field(ge=0, lt=1, description="share of the weights that is removed")] = 0.5
    pattern: Annotated[
        str | None,
        Field(
            pattern=r"^[1-9]\d{0,2}:[1-9]\d{0,2}$",
            description='"2:4" keeps two of every four weights side by side in a row, whatever ratio says',
        ),
    ] = None
    samples: Annotated[
        int, Field(ge=1, le=100_000, description="texts, or blocks of running text, to look at inputs on")
    ] = 128

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-318 for a pattern that keeps more than there are, LSM-713 for packed layers."""
        if self.kept_of is not None and self.kept_of[0] > self.kept_of[1]:
            raise LissomError(318, f"pattern {self.pattern} keeps more weights than there are", place="pattern")
        check_floating(anatomy)

    @property
    def kept_of(self) -> tuple[int, int] | None:
        """N and M of the pattern N:M."""
        if self.pattern is None:
            return None
        kept, _, of = self.pattern.partition(":")
        return int(kept), int(of)

    def lowest(self, scores: Tensor) -> Tensor:
        """Which weights go, by `pattern` or over the whole matrix. scores: (out, in). Returns bool, of that shape."""
        if self.kept_of is None:
            return lowest(scores, self.ratio)
        kept, of = self.kept_of
        return lowest_of_each(scores, of - kept, of)


def lowest_of_each(scores: Tensor, gone: int, of: int) -> Tensor:
    """Which of `scores` (out, in) are, in each row, the `gone` lowest of every `of` columns side by side.

    Of equal scores the first ones go; of the last columns, where they are fewer, as large a share, rounded down.
    """
    rows, columns = scores.shape
    whole = columns - columns % of
    found = torch.zeros_like(scores, dtype=torch.bool)
    for start, end, count, width in ((0, whole, gone, of), (whole, columns, gone * (columns - whole) // of, None)):
        if end > start and count:
            groups = scores[:, start:end].reshape(rows, -1, width or end - start)
            first = groups.argsort(dim=-1, stable=True)[..., :count]
            found[:, start:end] = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, first, True).flatten(1)
    return found


def maps_of(anatomy: Anatomy) -> list[Slot]:
    """Every linear map of the blocks that has a weight of its own; of those that share one, the first."""
    first: dict[int, Slot] = {}
    for slot in (one for each in anatomy.linears() for one in stored_maps(each)):
        first.setdefault(id(slot.module.weight), slot)
    return list(first.values())


def block_by_block(editor: Editor, given: Given, samples: int) -> Iterator[tuple[Step, list[Slot]]]:
    """Each block that has maps, with them. Zeros that are set before asking for the next are seen by it."""
    anatomy, done = editor.anatomy(), 0
    maps = maps_of(anatomy)
    batches = list(cut(given.calibration(editor.model, samples), _ROWS))
    for step in walk(anatomy, batches):
        own = [slot for slot in maps if slot.path.startswith(f"{step.block.path}.")]
        given.report(step.block.path, done / max(len(maps), 1))
        if own:
            yield step, own
        done += len(own)


@torch.no_grad()
def remove(slot: Slot, gone: Tensor) -> None:
    """Set weights to zero in place. gone: bool (out, in)."""
    slot.weight.masked_fill_(gone.to(slot.weight.device), 0)
