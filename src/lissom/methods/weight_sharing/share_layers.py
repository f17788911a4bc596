"""Let the layers of a stack use `unique` sets of weights: fewer parameters, the same number of executed layers.

Sources: Takase and Kiyono 2021, "Lessons on parameter sharing across layers", section 3 (sequence, cycle,
cycle-reversed); Lan et al. 2020, "ALBERT", section 3.1 (one set for all, or one a group of layers, which is sequence;
attention or feed-forward maps alone); Reid et al. 2021, "Subformer", section 3.1 (sandwich). They train from scratch;
a set starts here from the layers that will use it, see `lissom.methods.weight_sharing.start`.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from lissom import edits
from lissom.anatomy import Anatomy
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Stage, check_gradients
from lissom.methods.weight_sharing import start

Order = Literal["sequence", "cycle", "cycle-reversed", "sandwich"]


def sets(layers: int, unique: int, order: Order) -> tuple[int, ...]:
    """The set of weights, 0 to unique - 1, that each layer uses.

    sandwich: the first and the last layer have sets of their own, those between use the others in sequence.
    """
    if order == "sequence":
        return tuple(i * unique // layers for i in range(layers))
    if order == "cycle":
        return tuple(i % unique for i in range(layers))
    if order == "sandwich" and layers > 1:
        return (0, *(1 + one for one in sets(layers - 2, unique - 2, "sequence")), unique - 1)
    turn = layers - unique  # the last `unique` layers run the sets backwards
    return tuple(i % unique if i < turn else layers - 1 - i for i in range(layers))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShareLayers(Method):
    """Share weights between layers so that `unique` sets are left."""

    name: ClassVar[str] = "share_layers"
    stage: ClassVar[Stage] = Stage.SHARE
    speed: ClassVar[str] = "not faster: every layer is still executed; smaller on disk and in memory"
    source: ClassVar[str] = (
        "Takase and Kiyono 2021, section 3; Lan et al. 2020, section 3.1; Reid et al. 2021, section 3.1"
    )

    unique: Annotated[int, Field(ge=1, description="sets of weights that are left")] = 2
    order: Annotated[Order, Field(description="which layers use the same set")] = "cycle"
    parts: Annotated[
        edits.Parts, Field(description="what of a layer is shared: all; or the maps of attention, or feed-forward ones")
    ] = "all"
    start: Annotated[
        Literal["first", "average", "best", "fit"],
        Field(
            description="values of a set: those of its first layer; their mean; those of the layer that harms the "
            "answers least in the place of the others; or their mean, trained to give what each layer gave"
        ),
    ] = "first"
    samples: Annotated[int, Field(ge=1, le=100_000, description="texts that best and fit look at")] = 256
    steps: Annotated[
        int, Field(ge=1, le=1_000_000, description="of training for each set with fit, on 32 texts each")
    ] = 200
    learning_rate: Annotated[float, Field(gt=0, le=1, description="of Adam at first, with fit; it falls to zero")] = (
        1e-3
    )
    stack: Annotated[str, Field(description="encoder or decoder; may be left out where there is only one")] = ""

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-318 when there are fewer layers than sets, or too few sets for a sandwich; LSM-317 without texts
        that best and fit look at, LSM-713 for packed layers that cannot be fitted."""
        layers = len(anatomy.stack(self.stack).blocks)
        if self.unique > layers:
            raise LissomError(318, f"{self.unique} sets of weights for {layers} layers")
        if self.order == "sandwich" and self.unique < min(3, layers):
            cause = f"{self.unique} sets of weights, and a sandwich has one for each end and one for the layers between"
            raise LissomError(318, cause, remedy="Write unique: 3.")
        if self.start in ("best", "fit") and (given.data is None or given.tokenizer is None):
            remedy = "Give --data, or choose start: average."
            raise LissomError(317, f"start: {self.start} looks at texts", remedy=remedy)
        if self.start == "fit":
            check_gradients(anatomy)

    def apply(self, editor: Editor, given: Given) -> dict[str, Any] | None:
        """Choose the values of each set, then tie the layers. Says which layers were the best, or the errors of a fit:
        of each set, before and after, as a share of what the layers add to the hidden states."""
        stack = editor.anatomy().stack(self.stack)
        used = sets(len(stack.blocks), self.unique, self.order)
        source = tuple(used.index(one) for one in used)
        if source == tuple(range(len(source))):
            return None
        model = editor.model
        edit = edits.ShareLayers(stack=stack.name, source=source, parts=self.parts)
        if self.start == "first":
            editor.apply(edit)
            return None
        if self.start == "best":
            chosen = start.best(model, stack, edit, given.calibration(model, self.samples), given.report)
            editor.apply(edit, start.copied(model, stack, edit, chosen))
            return {"best": list(chosen.values())}
        first = copy.deepcopy(model) if self.start == "fit" else None
        editor.apply(edit, start.means(model, stack, edit))
        if first is None:
            return None
        batches = list(given.calibration(model, self.samples))
        fit = start.Fit(first=first, model=model, edit=edit, batches=batches)
        errors = fit.run(self.steps, self.learning_rate, given.seed, given.report)
        return {"errors": errors}

    def preview(self, editor: Editor, given: Given) -> None:
        """The same structure; nothing is looked at."""
        dataclasses.replace(self, start="first").apply(editor, given)
