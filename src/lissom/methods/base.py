"""What a method is: frozen options, a stage, what it needs, and the two verbs `check` and `apply`."""

from __future__ import annotations

import dataclasses
import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lissom.errors import LissomError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lissom.anatomy import Anatomy
    from lissom.data import Data
    from lissom.edits import Editor


class Stage(enum.IntEnum):
    """The order in which steps of a recipe must stand. TUNE may stand anywhere before VOCABULARY.

    Behind VOCABULARY the model reads other tokens than its teacher.
    """

    STUDENT = 10
    DEPTH = 20
    WIDTH = 30
    RANK = 40
    SHARE = 50
    DYNAMIC = 60
    ZEROS = 70
    RESCALE = 75
    VOCABULARY = 78
    BITS = 80
    TUNE = 0


class Need(enum.Enum):
    """What a method consumes besides the model."""

    CALIBRATION = "calibration"  # texts; labels are not read
    TRAIN = "train"  # labelled training data
    TEACHER = "teacher"  # the original model, still whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """How one form of a model did in one engine on this machine.

    texts_per_s: the median over rounds, with its interval.  loyalty: share of the answers that agree with the
    unrounded model's.  Both are None where the form did not run, and `why` says why.
    """

    form: str
    engine: str
    texts_per_s: float | None = None
    low: float | None = None
    high: float | None = None
    loyalty: float | None = None
    why: str = ""

    def words(self) -> str:
        """On one line."""
        if self.texts_per_s is None or self.loyalty is None or self.low is None or self.high is None:
            return f"{self.form} in {self.engine}: {self.why}"
        pace, low, high = (
            f"{one:,.0f}" if one >= 100 else f"{one:.3g}" for one in (self.texts_per_s, self.low, self.high)
        )
        return f"{self.form} in {self.engine}: {pace} texts/s ({low} to {high}), loyalty {self.loyalty:.3f}"


BEFORE_PACKED = "Begin with the model as it was before it was packed."
"""What to do where a step finds packed layers."""


def _silent(what: str, fraction: float) -> None:
    """Reports progress to nobody."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """What a method may use. `check` runs before any work, with the same object as `apply`.

    data: splits with normalised columns, or None when the user gave none.
    tokenizer: the model's tokenizer, or None.
    teacher: the model to learn from, in eval mode; never edited. By default the model before the first step.
    teachers: further ones, for objectives that learn from several.
    work: a folder for checkpoints and caches; it belongs to this run.
    report: called with a short phrase and the fraction of this step that is done (0 to 1).
    trial: times forms of a model, by name, the unrounded one first, in the engines of this machine; None where nothing
        can be measured.
    """

    data: Data | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    teacher: PreTrainedModel | None = None
    teachers: tuple[PreTrainedModel, ...] = ()
    seed: int = 0
    device: str = "cpu"
    max_length: int = 128
    work: Path = Path()
    report: Callable[[str, float], None] = _silent
    trial: Callable[[Mapping[str, PreTrainedModel]], Sequence[Trial]] | None = None

    def calibration(
        self, model: PreTrainedModel, samples: int, *, labelled: bool = False
    ) -> Iterator[dict[str, Tensor]]:
        """Batches of at most `samples` texts on the device, see `lissom.stats.batches.calibration_batches`.

        model: what reads them; the decoder of one that writes what it has read is given the same text.
        Raises LissomError LSM-317 without data or a tokenizer.
        """
        from lissom.stats.batches import calibration_batches

        if self.data is None or self.tokenizer is None:
            raise LissomError(317, "needs texts to look at", remedy="Give --data.")
        writes = model.config.is_encoder_decoder and model.can_generate() and not labelled
        batches = calibration_batches(
            self.data,
            self.tokenizer,
            samples=samples,
            max_length=self.max_length,
            seed=self.seed,
            device=self.device,
            labelled=labelled,
        )
        return ({**one, "decoder_input_ids": one["input_ids"]} for one in batches) if writes else batches


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Decides what to change in a model and fills in the numbers.

    A subclass is a frozen, keyword-only dataclass. Its fields are its options: `Annotated[type, Field(...)]` with a
    default, a range and one line of description; that one declaration feeds validation, YAML, `--help` and the docs.
    The constructor only stores. `check` complains early and computes nothing. `apply` works, through the editor.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}

    name: ClassVar[str]  # as in a recipe; the module has the same name
    stage: ClassVar[Stage]
    needs: ClassVar[frozenset[Need]] = frozenset()
    speed: ClassVar[str]  # one sentence for `plan`: what makes it faster, or that it does not
    source: ClassVar[str]  # paper, section or equation
    only_packs: ClassVar[bool] = False  # it packs linear maps, and has nothing to do where all are packed

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raise `LissomError` when this step cannot work on this model with what is given."""

    @abstractmethod
    def apply(self, editor: Editor, given: Given) -> dict[str, Any] | None:
        """Change the model that `editor` holds, in place.

        What it gives back, if anything, says in JSON values how it went: `did` in the record of the step.
        """

    def preview(self, editor: Editor, given: Given) -> None:
        """Leave the structure that `apply` leaves, for `plan`: in seconds, whatever the numbers."""
        self.apply(editor, given)

    def reached(self) -> Stage:
        """The stage that the model is in afterwards."""
        return self.stage

    def packs_all(self) -> bool:
        """Whether no linear map of the blocks is left to pack afterwards, whatever the model."""
        return False

    def words(self) -> str:
        """One sentence for `plan`: what these options make faster, or that they do not."""
        return self.speed


_LOSSLESS = ("question_answering", "masked_language_modelling", "embedding")  # calibration texts get no labels there


def check_labelled(given: Given, remedy: str) -> None:
    """Raise when the loss of labels, which a step looks at, cannot be had from the training texts.

    remedy: what to choose instead, behind "or".
    LSM-317 without data or tokenizer, 821 for texts without labels, or of a task whose calibration texts have none, 817
    without a train split.
    """
    if given.data is None or given.tokenizer is None:
        raise LissomError(317, "needs labelled texts", remedy=f"Give --data, or {remedy}.")
    task = given.data.task.kind
    if task in _LOSSLESS:
        cause = f"needs the loss of labels, and takes none for {task.replace('_', ' ')}"
        raise LissomError(821, cause, remedy=f"{remedy[0].upper()}{remedy[1:]}.")
    if not given.data.labelled("train"):
        cause = "needs labelled texts, and the training texts have no labels"
        raise LissomError(821, cause, remedy=f"Give labels, or {remedy}.")


def check_gradients(anatomy: Anatomy) -> None:
    """Raise LSM-713 when a layer is packed to 8 bits or fewer: no gradient goes through it."""
    refuse_packed(anatomy, "this step needs gradients, and a packed layer has none")


def check_floating(anatomy: Anatomy) -> None:
    """Raise LSM-713 when a layer is packed: a step that works on its weight would unpack it, or has none to work on."""
    refuse_packed(anatomy, "this step changes weights in floating point, and a packed layer has none")


def refuse_packed(anatomy: Anatomy, cause: str) -> None:
    """Raise LSM-713, with this cause, when a layer is packed to 8 bits or fewer."""
    from lissom.nn import Int8Linear

    packed = next((name for name, one in anatomy.model.named_modules() if isinstance(one, Int8Linear)), None)
    if packed is not None:
        raise LissomError(713, cause, place=packed, remedy=BEFORE_PACKED)
