"""MetaDistil: the teacher learns to teach, from how well a pilot of the student does after one of its lessons.

    pilot     θ' = θ - μ ∇_θ L(s_θ, t_φ)              one step of a copy of the student, on the training batch
    teacher   φ <- AdamW( ∇_φ Q(θ'(φ)) )              Q: the student's own loss on a batch of rows kept back
    student   the ordinary step, with the new teacher

L is T² · KL(softmax(t / T) ‖ softmax(s / T)), for a regression the squared error. With v = ∇_θ' Q the teacher's
gradient is, exactly,

    ∇_φ Q = -μ ∇_φ < ∂L/∂s (s, t_φ), J v >            J v: the derivative of the student's logits s in the direction v

which needs one forward-mode pass of the student and one backward pass of the teacher, and no second derivative through
either: kernels of attention have none.
Source: Zhou, Xu, McAuley 2022 (MetaDistil), section 3.2, algorithm 1. Differs: the pilot learns from the teacher's
logits alone, whatever `learn` says; pilot, quiz and teacher run without dropout and in float32, so that the derivative
is that of a fixed function; one batch of kept rows a step where the paper goes through all of them; nothing is clipped.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from lissom.errors import LissomError
from lissom.nn import Int8Linear
from lissom.train import checkpoint, processes
from lissom.train.answers import LABELS, one_answer_a_row
from lissom.train.divergence import divergence
from lissom.train.during.base import Acting, During
from lissom.train.during.held import drawn
from lissom.train.ramp import Ramp, at

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lissom.anatomy import Anatomy
    from lissom.edits import Editor
    from lissom.train.engine import Engine


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meta(During):
    """Trains a copy of the teacher for what its answers do to the student."""

    name: ClassVar[str] = "meta"
    source: ClassVar[str] = "Zhou et al. 2022 (MetaDistil), section 3.2"
    speed: ClassVar[str] = "no faster: it wins back quality that other steps cost"
    order: ClassVar[int] = 0
    labels: ClassVar[bool] = True
    differentiates: ClassVar[bool] = True
    teacher: ClassVar[bool] = True

    learning_rate: Annotated[
        Annotated[float, Field(gt=0, le=1)] | Ramp, Field(description="of the teacher, or a ramp of it.")
    ] = 5e-6
    pilot_rate: Annotated[
        float | None, Field(gt=0, le=1, description="μ, of the pilot's step; null: the student's at that step.")
    ] = None
    quiz: Annotated[
        float, Field(gt=0, lt=1, description="share of the training rows that is kept from training, for the quiz.")
    ] = 0.1
    temperature: Annotated[float, Field(gt=0, le=100, description="of the pilot's loss.")] = 2.0
    every: Annotated[int, Field(ge=1, description="the teacher learns at every so many steps.")] = 1

    @property
    def held(self) -> float:
        """The quiz."""
        return self.quiz

    def check(self, anatomy: Anatomy, teacher: PreTrainedModel | None) -> None:
        """Raises LSM-715 unless both answer a text as a whole, 319 when they answer with different numbers of classes,
        713 when the teacher is packed."""
        student: Any = anatomy.model
        for model in (student, *(() if teacher is None else (teacher,))):
            if not one_answer_a_row(model):
                cause = f"the quiz asks for one answer a text, and {type(model).__name__} gives others"
                raise LissomError(715, cause, place="meta", remedy="Leave meta out.")
        if teacher is None:
            return
        if student.config.num_labels != teacher.config.num_labels:
            cause = f"the student answers with {student.config.num_labels} values"
            cause += f", the teacher with {teacher.config.num_labels}"
            raise LissomError(319, cause, place="meta", remedy="Use a teacher of the same task.")
        if any(isinstance(module, Int8Linear) for module in teacher.modules()):
            cause = "the teacher is to be trained, and packed layers cannot be"
            raise LissomError(713, cause, place="meta", remedy="Use the teacher as it was before it was packed.")

    def begin(self, editor: Editor, teacher: PreTrainedModel | None) -> Acting:
        """Nothing in the student. Raises LSM-317 without a teacher."""
        if teacher is None:
            raise LissomError(317, "meta works with a teacher, and there is none", remedy="Give one.")
        return _Teaching(teacher, self)


class _Teaching(Acting):
    def __init__(self, teacher: PreTrainedModel, options: Meta) -> None:
        self.given, self.options = teacher, options
        self.copied: PreTrainedModel | None = None
        self.made: torch.optim.Optimizer | None = None

    @property
    def teacher(self) -> PreTrainedModel:
        """The copy that is trained, made when it is first asked for."""
        if self.copied is None:
            self.copied = copy.deepcopy(self.given).eval()  # type: ignore[no-untyped-call]
            self.copied.requires_grad_(requires_grad=True)
        return self.copied

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Of the teacher, made when the engine has put it on its device."""
        if self.made is None:
            self.made = torch.optim.AdamW(self.teacher.parameters(), weight_decay=0.0)
        return self.made

    def before(self, engine: Engine, inputs: Mapping[str, Tensor]) -> None:
        if not engine.accelerator.sync_gradients:  # of the batches of a step the last one is the teacher's
            return
        rate = self.options.pilot_rate or float(engine.lr_scheduler.get_last_lr()[0])
        if engine.state.global_step % self.options.every or not rate:  # a pilot that stands still teaches nothing
            return
        quiz = drawn(engine, "meta", "the quiz")
        student, mode = engine.model, engine.model.training
        student.eval()  # type: ignore[no-untyped-call]
        try:
            with torch.autocast(engine.args.device.type, enabled=False):
                teach(student, self.teacher, inputs, quiz, rate=rate, temperature=self.options.temperature)
        finally:
            student.train(mode)
        processes.share_gradients(self.teacher.parameters())
        for group in self.optimizer.param_groups:
            group["lr"] = at(self.options.learning_rate, engine.progress)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state(self) -> dict[str, Tensor]:
        found = {f"teacher.{name}": one for name, one in checkpoint.weights(self.teacher).items()}
        for i, own in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{i}.{key}": one for key, one in own.items()}
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        parts: dict[str, dict[str, Tensor]] = {"teacher": {}, "optimizer": {}}
        for name, one in state.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = one
        checkpoint.fill(self.teacher, parts["teacher"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, one in parts["optimizer"].items():
            number, _, key = name.partition(".")
            moments.setdefault(int(number), {})[key] = one
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})


def teach(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    batch: Mapping[str, Tensor],
    quiz: Mapping[str, Tensor],
    *,
    rate: float,
    temperature: float,
) -> None:
    """Add to the gradients of `teacher` that of the quiz's loss after the pilot's step; the student is left as it is.

    batch, quiz: padded rows, the latter with labels.  rate: μ.
    """
    texts = {name: one for name, one in batch.items() if name not in LABELS}
    own: dict[str, Tensor] = {name: one for name, one in student.named_parameters() if one.requires_grad}
    taught = teacher(**texts)["logits"]
    answered = functional_call(student, own, kwargs=texts)["logits"]
    steps = _slopes(_distance(answered, taught.detach(), temperature), own)
    pilot = {name: (one - rate * steps[name]).detach().requires_grad_() for name, one in own.items()}
    examined = functional_call(student, pilot, kwargs=dict(quiz))["loss"]
    answered, moved = _along(student, own, _slopes(examined, pilot), texts)
    answered.requires_grad_()
    (pull,) = torch.autograd.grad(_distance(answered, taught, temperature), answered, create_graph=True)
    learnt = [one for one in teacher.parameters() if one.requires_grad]
    torch.autograd.backward(-rate * (pull * moved).sum(), inputs=learnt)


def _distance(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The loss of the pilot; a single number a text is a regression."""
    if student.shape[-1] == 1:
        return nn.functional.mse_loss(student, teacher)
    return divergence(student, teacher, "kl", temperature, None).mean()


def _slopes(loss: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of `loss`, zero where a tensor has no part in it."""
    found = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
    return {
        name: torch.zeros_like(one) if slope is None else slope
        for (name, one), slope in zip(tensors.items(), found, strict=True)
    }


def _along(
    student: PreTrainedModel, own: Mapping[str, Tensor], direction: Mapping[str, Tensor], texts: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """The logits (batch, classes) and their derivative when the parameters `own` move in `direction`.

    Raises LSM-715 where something between the parameters and the logits has no such derivative.
    """
    ad: Any = forward_ad
    # the fast kernels of attention have no forward mode
    with torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
        duals: dict[str, Tensor] = {name: ad.make_dual(one.detach(), direction[name]) for name, one in own.items()}
        try:
            found = ad.unpack_dual(functional_call(student, duals, kwargs=dict(texts))["logits"])
        except NotImplementedError as error:
            cause = "something that acts on the student has no forward derivative"
            raise LissomError(715, cause, place="meta", remedy="Give meta a tune without the rest of while.") from error
        return found.primal.clone(), found.tangent.clone()
