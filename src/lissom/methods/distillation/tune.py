"""Tune: train the weights that are there, on labels, on the original model's answers, or on both.

    L = sum over `learn` of weight · loss + sum over `while` of penalty

Each objective, with its formula and source, is a module of `lissom.train.objectives`; each thing that acts on the model
meanwhile, and changes its structure at the end, one of `lissom.train.during`.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from lissom.data import encode
from lissom.data.augment import Augment, augmented, is_mlm
from lissom.data.hide import hidden_rows
from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Need, Stage, check_gradients
from lissom.methods.options import build
from lissom.train import cache
from lissom.train.during import DURING, During
from lissom.train.objectives import OBJECTIVES, Objective
from lissom.train.objectives.exits import ExitAnswers
from lissom.train.run import train
from lissom.train.score import Validation, as_shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import datasets
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lissom.anatomy import Anatomy
    from lissom.data import Data
    from lissom.edits import Editor

    Learn = dict[str, Objective]
    While = dict[str, During]
else:  # one key an objective, each optional: validation and schema follow the tables
    Learn = TypedDict("Learn", OBJECTIVES, total=False)
    Learn.__pydantic_config__ = {"extra": "forbid"}
    Acts = TypedDict("Acts", DURING, total=False)
    Acts.__pydantic_config__ = {"extra": "forbid"}

    def _one(entry: dict) -> dict:
        if len(entry) != 1:
            raise ValueError("an entry of while is one name with its options; write each as an entry of its own")
        return entry

    While = Annotated[Acts, AfterValidator(_one)]

log = logging.getLogger(__name__)

_UNPACKED = "stay in floating point"
_NESTED = (("augment", "augment"), ("learn", "learn"), ("while", "while_"))  # as a recipe calls it, and the field


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tune(Method):
    """Train on the train split; a validation split with labels says which epoch's weights the model ends with.

    Where nothing trains the answers (states alone are learnt), a score says nothing, and the last weights are kept.
    """

    name: ClassVar[str] = "tune"
    stage: ClassVar[Stage] = Stage.TUNE
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TRAIN})
    speed: ClassVar[str] = "no faster: it wins back quality that other steps cost"
    source: ClassVar[str] = "Hinton et al. 2015 for logits, Jiao et al. 2020 for hidden"

    epochs: Annotated[float, Field(gt=0, le=1000, description="passes over the training data")] = 2.0
    learning_rate: Annotated[float, Field(gt=0, le=1, description="its peak; it falls to zero at the end")] = 5e-5
    batch_size: Annotated[int, Field(ge=1, le=65536, description="texts a batch")] = 32
    batch_tokens: Annotated[
        int | None, Field(ge=1, description="tokens a batch, with padding, instead of batch_size texts")
    ] = None
    accumulate: Annotated[int, Field(ge=1, le=65536, description="batches a step")] = 1
    warmup: Annotated[float, Field(ge=0, lt=1, description="share of the steps in which the rate rises")] = 0.1
    weight_decay: Annotated[float, Field(ge=0, le=1, description="of AdamW, for matrices only")] = 0.01
    max_steps: Annotated[int | None, Field(ge=1, description="stop after so many steps, whatever epochs says")] = None
    patience: Annotated[int | None, Field(ge=1, description="stop after so many epochs without a better score")] = None
    augment: Annotated[Augment | None, Field(description="changed copies of the training texts")] = None
    learn: Annotated[
        Learn | None,
        Field(description="objectives with their options; logits where there is a teacher, else task"),
    ] = None

    while_: Annotated[
        tuple[While, ...],
        Field(alias="while", description="what acts on the model meanwhile, each with its options, in this order"),
    ] = ()

    def reached(self) -> Stage:
        """BITS where weights are packed at the end."""
        return Stage.BITS if any(one.packs for one in self._during()) else self.stage

    def words(self) -> str:
        """Those of what acts meanwhile, if anything does."""
        words = (f"no faster: weights {_UNPACKED}" if one.unpacked else one.speed for one in self._during())
        return "; ".join(dict.fromkeys(words)) or self.speed

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-317 without tokenizer, teacher or the scores that `patience` looks at, 319 when nothing is learnt,
        713 for int8 layers, 715 for states or attention of two stacks, and what `Objective.check` and `During.check`
        raise."""
        check_gradients(anatomy)
        if given.tokenizer is None:
            raise LissomError(317, "there is no tokenizer to read the training data with", remedy="Give one.")
        teachers = self._teachers(given)
        for name, objective in self._objectives(given).items():
            if objective.teacher and given.teacher is None:
                cause = f"{name} learns from a teacher, and there is none"
                raise LissomError(317, cause, place="learn", remedy="Give one, or learn only the task.")
            if objective.reads and not objective.two_stacks and len(anatomy.stacks) > 1:
                cause = f"{name} compares one row of layers, and {anatomy.family} has an encoder and a decoder"
                raise LissomError(715, cause, place="learn", remedy="Use logits, hidden or attention.")
            if objective.answers and given.data is not None and given.data.task.kind == "embedding":
                cause = f"{name} learns answers, and a model without a head gives states alone"
                raise LissomError(319, cause, place="learn", remedy="Use hidden, relations or attention.")
            objective.check(anatomy, given.tokenizer, teachers)
        if (augment := self._augment()) is not None:
            kind = None if given.data is None else given.data.task.kind
            augment.check(kind, _asked(given) or (cast("PreTrainedModel", anatomy.model),), given.tokenizer)
        if self.patience is not None and given.data is not None and not self._judged(given):
            cause = "patience looks at validation scores, and there are none"
            remedy = "Give a validation split, and learn the task or the logits."
            raise LissomError(317, cause, place="patience", remedy=remedy)
        self._check_labels(given)
        self._check_during(anatomy, given)

    def _check_labels(self, given: Given) -> None:
        """Raise LSM-317 when what learns, or acts, needs labels that the training rows have not got."""
        if given.data is None or given.data.labelled("train"):
            return
        wanted = next((name for name, one in self._objectives(given).items() if one.labels), None)
        if wanted is not None:
            cause = f"{wanted} learns from labels, and the training rows have none"
            raise LissomError(317, cause, place="learn", remedy="Give labels, or learn only from a teacher.")
        acts = next((one.name for one in self._during() if one.labels), None)
        if acts is not None:
            cause = f"{acts} looks at labels, and the training rows have none"
            raise LissomError(317, cause, place="while", remedy=f"Give labels, or leave {acts} out.")

    def _check_during(self, anatomy: Anatomy, given: Given) -> None:
        every = self._during()
        for during, after in itertools.pairwise(every):
            if during.packs:
                cause = f"{during.name} stands before {after.name}, and rounds what is masked or gated afterwards"
                raise LissomError(319, cause, place="while", remedy=f"Write {during.name} last.")
        for during in every:
            if during.alone and len(every) > 1:
                other = next(one for one in every if one is not during)
                cause = f"{other.name} stands beside {during.name}, which goes with nothing else"
                raise LissomError(
                    319, cause, place="while", remedy="Do one in this step and the other in the one before."
                )
            if during.teacher and given.teacher is None:
                cause = f"{during.name} works with a teacher, and there is none"
                raise LissomError(317, cause, place="while", remedy="Give one.")
            for name, objective in self._objectives(given).items():
                if lacking := objective.reads & during.hides:
                    cause = f"{name} compares {' and '.join(sorted(lacking))}, which layers lack under {during.name}"
                    raise LissomError(319, cause, place="while", remedy="Learn from hidden or logits.")
                if objective.asks and during.again:
                    cause = f"{name} makes batches of its own, and {during.name} asks for each loss several times"
                    raise LissomError(
                        319, cause, place="while", remedy="Do one in this step and the other in the next."
                    )
            if during.differentiates and (rough := [one.name for one in every if not one.differentiable]):
                cause = f"{during.name} needs a forward derivative, and {rough[0]} has none"
                raise LissomError(319, cause, place="while", remedy="Do one in this step and the other in the next.")
            during.check(anatomy, given.teacher)

    def preview(self, editor: Editor, given: Given) -> None:
        """What the structure will be, without training."""
        acting = [(one, one.begin(editor, given.teacher)) for one in self._during()]
        for _, it in acting:
            it.at(1.0)
            it.bake()
        for _, it in sorted(acting, key=lambda pair: pair[0].order):
            it.end(editor)

    def apply(self, editor: Editor, given: Given) -> dict[str, Any]:
        """Train `editor.model` in place; the fields of `Trained`, a `score` that is minus a loss as `validation_loss`.

        Also `weights` where they were rounded and not packed.

        Raises LSM-827 without rows, LSM-905 when the loss is NaN or infinite.
        """
        if given.data is None or given.tokenizer is None:
            raise LissomError(317, "there is no data or no tokenizer to train with", remedy="Give both.")
        task, tokenizer = given.data.task, given.tokenizer
        pad_id = tokenizer.pad_token_id or 0
        validate = None
        if self._judged(given):
            rows = encode(given.data.split("validation"), tokenizer, task, given.max_length)
            if task.kind == "masked_language_modelling":
                rows = hidden_rows(rows, tokenizer, given.seed)
            exits = any(isinstance(one, ExitAnswers) for one in self._objectives(given).values())
            validate = Validation.of(task, rows, pad_id, exits=exits)
        done = train(
            editor.model,
            encode(self._train(editor, given), tokenizer, task, given.max_length),
            self._objectives(given),
            teachers=self._teachers(given),
            during=self._during(),
            tokenizer=tokenizer,
            validate=validate,
            epochs=self.epochs,
            max_steps=self.max_steps,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            batch_tokens=self.batch_tokens,
            accumulate=self.accumulate,
            patience=self.patience,
            warmup=self.warmup,
            weight_decay=self.weight_decay,
            seed=given.seed,
            device=given.device,
            pad_id=pad_id,
            work=given.work,
            report=given.report,
        )
        left = {"weights": _UNPACKED} if any(one.unpacked for one in self._during()) else {}
        name, score = as_shown(task, done.score)
        told = dataclasses.asdict(done)
        if name == "loss":
            del told["score"]
            told["validation_loss"] = score
        return {**told, **left}

    def _train(self, editor: Editor, given: Given) -> datasets.Dataset:
        """The rows of the train split, with their changed copies."""
        data, tokenizer = cast("Data", given.data), cast("PreTrainedTokenizerBase", given.tokenizer)
        rows, how = data.split("train"), self._augment()
        if how is None:
            return rows

        def keep(
            plan: Sequence[Any], model: PreTrainedModel, make: Callable[[], dict[str, Tensor]]
        ) -> dict[str, Tensor]:
            return cache.kept(given.work / f"words-{cache.digest(plan, model)}.safetensors", lambda _: True, make)

        given.report("altered copies of the texts", 0.0)
        models = _asked(given) or (editor.model,)
        made = augmented(rows, how, models, tokenizer, seed=given.seed, max_length=given.max_length, keep=keep)
        log.info("%d altered copies of %d texts", len(made) - len(rows), len(rows))
        return made

    def _teachers(self, given: Given) -> tuple[PreTrainedModel, ...]:
        """Those to learn from: a masked language model that only proposes words is none of them."""
        how, asked = self._augment(), _asked(given)
        if how is None or how.by != "mlm" or all(map(is_mlm, asked)):
            return asked
        return tuple(one for one in asked if not is_mlm(one))

    def _judged(self, given: Given) -> bool:
        """Whether epochs are compared by a score on the validation split."""
        data = given.data
        there = data is not None and "validation" in data.splits and data.labelled("validation")
        return there and any(one.answers for one in self._objectives(given).values())

    def _objectives(self, given: Given) -> dict[str, Objective]:
        """`learn`, validated, with the default filled in."""
        if self.learn is None:
            name = "task" if given.teacher is None else "logits"
            return {name: OBJECTIVES[name]()}
        if not self.learn:
            raise LissomError(319, "learn names no objective", place="learn", remedy=f"Known: {', '.join(OBJECTIVES)}.")
        return dict(cast("dict[str, Any]", self._built().learn))

    def _augment(self) -> Augment | None:
        """`augment`, validated."""
        return None if self.augment is None else self._built().augment

    def _during(self) -> list[During]:
        """`while`, validated."""
        found = cast("list[dict[str, During]]", self._built().while_ if self.while_ else ())
        return [during for one in found for during in one.values()]

    def _built(self) -> Tune:
        """This step with objects for what is nested: Python callers may give plain values, a recipe does not."""
        plain = dataclasses.asdict(self)
        given = {name: plain[field] for name, field in _NESTED if plain[field] not in (None, ())}
        return cast("Tune", build(type(self), given, lambda path: ".".join(map(str, path))))


def _asked(given: Given) -> tuple[PreTrainedModel, ...]:
    """The teacher and the further ones."""
    return () if given.teacher is None else (given.teacher, *given.teachers)
