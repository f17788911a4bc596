"""Store weights as numbers into a short table of values for each layer, and the few that no table serves whole.

A Gaussian is fitted to the weights of a layer, and those whose log-density under it is below -4 stay as they are. The
others get 2^bits values: the means of bins of equal population at first, then in turn each weight goes to its nearest
value and each value becomes the mean of its weights, while the L1 error Σ|w - value| falls. No data is needed.

With `vector` above 1 a number stands for so many weights side by side, and the table holds vectors, found by k-means as
`lissom.nn.vectors` says (product quantization, Stock et al. 2020): eight columns and 8 bits are one bit a weight.
Source: Zadeh et al. 2020, "GOBO", section 4. A density depends on the unit, as in the paper: at the spread of BERT's
weights (0.03 to 0.1) the threshold leaves out 0.02 to 0.1 % of a Gaussian, and more of the tails that weights have.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lissom import edits
from lissom.anatomy import Anatomy, token_table
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Stage
from lissom.methods.quantization.maps import check_unpacked, unpacked_maps
from lissom.nn.palette import pack_indices
from lissom.nn.vectors import indexed
from lissom.stats.finite import finite_weight

_MOST = 0.05  # outliers: 8 bytes each, so that more of them eat up what the table saves


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codebook(Method):
    """Store every linear map in the blocks, and the token table, by a table of 2^bits values and a few outliers."""

    name: ClassVar[str] = "codebook"
    stage: ClassVar[Stage] = Stage.BITS
    speed: ClassVar[str] = "not faster: weights are decoded to float before use, so it only saves space on disk"
    source: ClassVar[str] = "Zadeh et al. 2020, section 4; vectors: Stock et al. 2020, section 3.1"

    bits: Annotated[
        Literal[2, 3, 4, 8], Field(description="bits a number: a table of 4, 8, 16 or 256 entries for a layer")
    ] = 3
    vector: Annotated[
        Literal[1, 2, 4, 8],
        Field(description="weights side by side that share a number; above 1 entries are vectors, best with bits: 8"),
    ] = 1
    density: Annotated[
        float, Field(ge=-1000, le=0, description="log-density under the layer's Gaussian below which a weight is kept")
    ] = -4.0
    embeddings: Annotated[bool, Field(description="also the token table, often half of a small model's bytes")] = True

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-713 when all that it would store is packed already."""
        check_unpacked(anatomy, table=self.embeddings)

    def packs_all(self) -> bool:
        """Always."""
        return True

    def apply(self, editor: Editor, given: Given) -> None:
        """Choose tables and outliers, and replace the modules."""
        weights = self._weights(editor)
        tensors: dict[str, Tensor] = {}
        for done, (path, weight) in enumerate(weights.items()):
            given.report(path, done / len(weights))
            tensors |= {f"{path}.{name}": value for name, value in self._stored(path, weight).items()}
        counts = {path: len(tensors[f"{path}.weight_outliers"]) for path in weights}
        self._edit(editor, counts, tensors)

    def preview(self, editor: Editor, given: Given) -> None:
        """The same structure without the search for tables."""
        weights = self._weights(editor)
        self._edit(editor, {path: int(self._outliers(path, one).sum()) for path, one in weights.items()}, {})

    def _weights(self, editor: Editor) -> dict[str, Tensor]:
        """Path -> weight (rows, columns) of all that is to be stored."""
        found = {slot.path: slot.weight.detach() for slot in unpacked_maps(editor)}
        table = token_table(editor.model) if self.embeddings else None
        if table is not None:
            found[table] = editor.model.get_submodule(table).weight.detach()  # type: ignore[operator]
        for path, weight in found.items():
            if weight.shape[1] % self.vector:
                cause = f"vectors of {self.vector} do not fill {weight.shape[1]} columns"
                raise LissomError(318, cause, place=path, remedy="Choose a vector that divides them.")
        return found

    def _edit(self, editor: Editor, counts: dict[str, int], tensors: dict[str, Tensor]) -> None:
        if not counts:
            return
        tables = tuple(path for path in counts if isinstance(editor.model.get_submodule(path), torch.nn.Embedding))
        linears = tuple(path for path in counts if path not in tables)
        outliers = {path: count for path, count in counts.items() if count}
        edit = edits.Palette(bits=self.bits, vector=self.vector, linears=linears, embeddings=tables, outliers=outliers)
        editor.apply(edit, tensors)

    def _outliers(self, path: str, weight: Tensor) -> Tensor:
        """Where `weight` is kept whole. Raises LSM-901 for NaN, LSM-314 where that is more than a table is good for."""
        full = finite_weight(weight, path)
        found = far_out(full, self.density)
        share = float(found.float().mean())
        if share > _MOST:
            cause = f"{share:.0%} of the weights have a log-density below {self.density:g} and would be kept whole"
            remedy = f"A density is that of the weight's own unit: give a lower one than {self.density:g}."
            raise LissomError(314, cause, place=path, remedy=remedy)
        return found

    def _stored(self, path: str, weight: Tensor) -> dict[str, Tensor]:
        """The four tensors of `lissom.nn.palette.PaletteLinear`."""
        outside, full = self._outliers(path, weight), weight.float()
        at = outside.flatten().nonzero().flatten()
        if self.vector == 1:
            table = centroids(full[~outside], 2**self.bits)
            index = nearest_of(full, table)
        else:
            index, table = indexed(full.masked_fill(outside, float(full.mean())), self.vector, 2**self.bits)
        return {
            "weight": pack_indices(index, self.bits),
            "weight_table": table,
            "weight_outliers": full.flatten()[at],
            "weight_positions": at.to(torch.int32),
        }


def far_out(weight: Tensor, density: float) -> Tensor:
    """Where the log-density of `weight` (float32), under the Gaussian with its mean and spread, is below `density`.

    bool, of the shape of `weight`. Weights that are all the same have none.
    """
    spread = float(weight.double().std(correction=0))
    if spread == 0:
        return torch.zeros_like(weight, dtype=torch.bool)
    room = -math.log(spread * math.sqrt(2 * math.pi)) - density  # from the density at the mean
    far = spread * math.sqrt(2 * room) if room > 0 else -1.0  # log-density at z spreads: that at the mean - z²/2
    return (weight - float(weight.double().mean())).abs() > far


def centroids(values: Tensor, count: int) -> Tensor:
    """At most `count` values for those in `values` by GOBO's search: (count,) float32, ascending.

    values: at least one number. Costs one sort; after it each round looks at the borders between values only.
    """
    ordered = values.flatten().double().sort().values
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    size = len(ordered)
    borders = torch.arange(count + 1, device=ordered.device) * size // count
    found = _means(borders, sums, ordered[(borders[:-1]).clamp(max=size - 1)])
    error = _l1(found, ordered, sums)
    while True:
        tried = _means(_borders(found, ordered), sums, found)
        now = _l1(tried, ordered, sums)
        if not now < error:
            return found.float()
        found, error = tried, now


def nearest_of(weight: Tensor, table: Tensor) -> Tensor:
    """The number of the value of `table` (ascending) that is nearest to each weight; int64, of the weight's shape."""
    return torch.bucketize(weight.contiguous(), (table[1:] + table[:-1]) / 2)


def _borders(found: Tensor, ordered: Tensor) -> Tensor:
    """Where in `ordered` the numbers begin that are nearest to each value, and the end."""
    inner = torch.searchsorted(ordered, (found[1:] + found[:-1]) / 2)
    return torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), len(ordered))])


def _means(borders: Tensor, sums: Tensor, before: Tensor) -> Tensor:
    """The mean of each part of the ordered numbers; of an empty one the value before."""
    many = borders.diff()
    return torch.where(many > 0, sums[borders].diff() / many.clamp(min=1), before)


def _l1(found: Tensor, ordered: Tensor, sums: Tensor) -> float:
    """Σ|number - nearest value|, from sums over the parts on both sides of each value."""
    borders = _borders(found, ordered)
    low, high = borders[:-1], borders[1:]
    middle = torch.searchsorted(ordered, found).clamp(low, high)
    below = found * (middle - low) - (sums[middle] - sums[low])
    above = sums[high] - sums[middle] - found * (high - middle)
    return float((below + above).sum())
