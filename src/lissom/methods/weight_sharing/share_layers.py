"""Let the layers of a stack use `unique` sets of weights: fewer parameters, the same number of executed layers.

Sources: Takase and Kiyono 2021, "Lessons on parameter sharing across layers", section 3 (sequence, cycle,
cycle-reversed); Lan et al. 2020, "ALBERT", section 3.1 (one set for all, or one a group of layers, which is sequence;
attention or feed-forward maps alone); Reid et al. 2021, "Subformer", section 3.1 (sandwich). They train from scratch;
a set starts here from the layers that will use it, see `lissom.methods.weight_sharing.start`. Bae et al. 2024, "Relaxed
Recursive Transformers", section 2.4: with `lora` each use of a shared map has a delta of its own, which starts as the
truncated singular value decomposition of what its own weights were more than the shared ones.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from lissom import edits
from lissom.anatomy import Anatomy, Stack
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Stage, check_gradients
from lissom.methods.weight_sharing import deltas, start

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
        "Takase and Kiyono 2021, section 3; Lan et al. 2020, section 3.1; Reid et al. 2021, section 3.1; "
        "Bae et al. 2024, section 2.4"
    )

    unique: Annotated[
        Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)],
        Field(description="how many sets of weights are left, or which share of the layers that is"),
    ] = 2
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
    lora: Annotated[
        int, Field(ge=0, description="rank of a delta that each use of a shared map has for itself; 0: none")
    ] = 0
    samples: Annotated[int, Field(ge=1, le=100_000, description="texts that best and fit look at")] = 256
    steps: Annotated[
        int, Field(ge=1, le=1_000_000, description="of training for each set with fit, on 32 texts each")
    ] = 200
    learning_rate: Annotated[float, Field(gt=0, le=1, description="of Adam at first, with fit; it falls to zero")] = (
        1e-3
    )
    stack: Annotated[str, Field(description="encoder or decoder; may be left out where there is only one")] = ""

    def words(self) -> str:
        """With deltas, that they add to the work."""
        return self.speed if not self.lora else f"slower by the work of the deltas; {self.speed}"

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-318 when there are fewer layers than sets, too few sets for a sandwich, or a delta takes as much
        as a map; LSM-317 without texts that best and fit look at, LSM-713 for packed layers that cannot be fitted."""
        stack = anatomy.stack(self.stack)
        layers = len(stack.blocks)
        unique = edits.how_many(self.unique, layers)
        if unique > layers:
            raise LissomError(318, f"{unique} sets of weights for {layers} layers")
        if self.order == "sandwich" and unique < min(3, layers):
            cause = f"{unique} sets of weights, and a sandwich has one for each end and one for the layers between"
            raise LissomError(318, cause, remedy="Write unique: 3.")
        if self.lora:
            deltas.check(anatomy.model, stack, self.parts, self.lora)
        if self.start in ("best", "fit") and (given.data is None or given.tokenizer is None):
            remedy = "Give --data, or choose start: average."
            raise LissomError(317, f"start: {self.start} looks at texts", remedy=remedy)
        if self.start == "fit":
            check_gradients(anatomy)

    def apply(self, editor: Editor, given: Given) -> dict[str, Any] | None:
        """Choose the values of each set, then tie the layers. Says which layers were the best, or the errors of a fit:
        of each set, before and after, as a share of what the layers add to the hidden states."""
        stack = editor.anatomy().stack(self.stack)
        used = sets(len(stack.blocks), edits.how_many(self.unique, len(stack.blocks)), self.order)
        source = tuple(used.index(one) for one in used)
        if source == tuple(range(len(source))):
            return None
        edit = edits.ShareLayers(stack=stack.name, source=source, parts=self.parts)
        own = deltas.own_weights(editor.model, stack, edit) if self.lora else {}
        did = self._share(editor, stack, edit, given)
        if own:
            deltas.add(editor, own, self.lora)
        return did

    def _share(self, editor: Editor, stack: Stack, edit: edits.ShareLayers, given: Given) -> dict[str, Any] | None:
        model = editor.model
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
        return {"errors": fit.run(self.steps, self.learning_rate, given.seed, given.report)}

    def preview(self, editor: Editor, given: Given) -> None:
        """The same structure; nothing is looked at."""
        dataclasses.replace(self, start="first").apply(editor, given)
