"""Move outliers from the inputs of linear maps into their weights, before both are rounded.

Channel j of an input is divided by `s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)` and the columns that read it are
multiplied by it, over all maps that read the input; the model computes the same. The factors go into what feeds the
maps, where that is exact, and no operation is added. Where it is not, as in models that normalise after the residual,
the maps multiply their inputs by 1 / s, and those that read one input share the product in an exported graph.
Or s is the weight of the norm that gives the input, gamma: the maps read (x - mean) / deviation + beta / gamma, whose
outliers are smaller, as gamma is what makes them large in BERT. That needs no texts.
Sources: Xiao et al. 2023, "SmoothQuant", eq. 4; Wei et al. 2022, "Outlier suppression", section 4.1 (gamma). Differs:
where a norm feeds the residual too, in the paper it gives the quotient, and the residual is multiplied by gamma; here
it gives what it gave, and the maps divide by gamma. They read the same numbers, for one product a norm as well.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from lissom.anatomy import Anatomy, is_transposed
from lissom.edits import Editor, ScaleInputs
from lissom.methods.base import Given, Method, Need, Stage
from lissom.methods.quantization.maps import check_unpacked
from lissom.stats.folding import Feed, feeders, fold, norms_of, unfed
from lissom.stats.ranges import largest_inputs

_LEAST = 1e-5  # a smaller weight of a norm is not divided by


@dataclasses.dataclass(frozen=True, kw_only=True)
class Smooth(Method):
    """Even out the inputs of linear maps; a step that packs the maps comes after it."""

    name: ClassVar[str] = "smooth"
    stage: ClassVar[Stage] = Stage.RESCALE
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    speed: ClassVar[str] = (
        "not faster: the same model, whose inputs are rounded to int8 with less error afterwards; where norms feed the "
        "residual (BERT), one multiplication is added for each input of maps"
    )
    source: ClassVar[str] = "Xiao et al. 2023, eq. 4; Wei et al. 2022, section 4.1"

    by: Annotated[
        Literal["inputs", "gamma"],
        Field(
            description="what is moved: factors by the size of inputs on texts, or the weights of the norms that give "
            "the inputs, where norms do; needs no texts"
        ),
    ] = "inputs"

    alpha: Annotated[
        float, Field(ge=0, le=1, description="inputs: how much of the outliers goes into the weights: 0 none, 1 all")
    ] = 0.5
    multiply: Annotated[
        Literal["none", "stream", "all"],
        Field(
            description="which inputs are multiplied where nothing that feeds the map takes the factors: those from "
            "the residual stream, or all"
        ),
    ] = "stream"
    samples: Annotated[int, Field(ge=1, le=100_000, description="inputs: texts on which they are measured")] = 128

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-713 when every map is packed already."""
        check_unpacked(anatomy)

    def apply(self, editor: Editor, given: Given) -> dict[str, Any]:
        """Find the factors of all places, then move them. Says how many places there were.

        places: all of them.  multiplied: those at which the maps multiply their inputs.
        """
        done = self._gammas(editor) if self.by == "gamma" else self._by_inputs(editor, given)
        for feed, factors in done:
            if feed.feeder is not None:
                fold(feed, factors)
        scaled = [(feed, factors) for feed, factors in done if feed.feeder is None]
        _multiply(editor, scaled)
        return {"places": len(done), "multiplied": len(scaled)}

    def preview(self, editor: Editor, given: Given) -> None:
        """The same structure, with factors of 1."""
        feeds = [feed for feed, _ in self._gammas(editor)] if self.by == "gamma" else self._feeds(editor)
        _multiply(editor, [(feed, torch.ones(feed.size)) for feed in feeds if feed.feeder is None])

    def _by_inputs(self, editor: Editor, given: Given) -> list[tuple[Feed, Tensor]]:
        """The places that texts reach, with the factors of equation 4."""
        feeds = self._feeds(editor)
        readers = [feed.slots[0] for feed in feeds]
        largest = largest_inputs(editor.model, readers, given.calibration(editor.model, self.samples))
        return [(feed, self._factors(feed, top)) for feed, top in zip(feeds, largest, strict=True) if top is not None]

    def _gammas(self, editor: Editor) -> list[tuple[Feed, Tensor]]:
        """The places that norms give inputs to, with the weights of these; 1 in place of what is nearly 0."""
        anatomy, feeds, found = editor.anatomy(), self._feeds(editor), []
        for feed, path in zip(feeds, norms_of(anatomy, feeds), strict=True):
            if path is not None:
                gamma = cast("Tensor", editor.model.get_submodule(path).weight).detach().float().clone()
                found.append((feed, torch.where(gamma.abs() > _LEAST, gamma, torch.ones_like(gamma))))
        return found

    def _feeds(self, editor: Editor) -> list[Feed]:
        """Every place: first those that have a feeder."""
        anatomy = editor.anatomy()
        fed = feeders(anatomy)
        return fed if self.multiply == "none" else [*fed, *unfed(anatomy, fed, every=self.multiply == "all")]

    def _factors(self, feed: Feed, top: Tensor) -> Tensor:
        """Equation 4. top: largest magnitude of each input, (in,). Returns (feed.size,); 1 where nothing arrives."""
        weights = torch.stack([slot.weight.detach().float().abs().amax(0) for slot in feed.slots]).amax(0)
        x, w = _by_channel(feed, top), _by_channel(feed, weights)
        factors = x.pow(self.alpha) / w.clamp_min(1e-5).pow(1 - self.alpha)
        return torch.where((x > 0) & (w > 0), factors.clamp_min(1e-5), torch.ones_like(x))


def _multiply(editor: Editor, scaled: list[tuple[Feed, Tensor]]) -> None:
    """Let the maps of each feed multiply their inputs by 1 / s. scaled: with s, (feed.size,)."""
    tensors: dict[str, Tensor] = {}
    for feed, factors in scaled:
        for slot in feed.slots:
            weight = slot.weight.detach() * factors.to(slot.weight)
            tensors[f"{slot.path}.input_factor"] = 1 / factors
            tensors[f"{slot.path}.inner.weight"] = weight.t() if is_transposed(slot.module) else weight
    linears = tuple(slot.path for feed, _ in scaled for slot in feed.slots)
    if linears:
        editor.apply(ScaleInputs(linears=linears), tensors)


def _by_channel(feed: Feed, values: Tensor) -> Tensor:
    """The largest of `values` (in,) over the columns that read each channel: (feed.size,)."""
    zeros = torch.zeros(feed.size, device=values.device)
    return zeros.scatter_reduce(0, feed.columns.to(values.device), values, "amax")
