"""The one training loop: transformers.Trainer, with objectives for its loss and state files that are never pickled."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.modeling_outputs import SequenceClassifierOutput

from lissom.data.batches import pad
from lissom.errors import LissomError
from lissom.files import read_json, read_safetensors, write_json
from lissom.train import checkpoint
from lissom.train.answers import LABELS, autocast
from lissom.train.objectives import Answers, Objective
from lissom.train.projections import Watch
from lissom.train.ramp import at
from lissom.train.sampler import GroupedByLength

if TYPE_CHECKING:
    from torch.utils.data import Sampler
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )
    from transformers.utils.generic import ModelOutput

    from lissom.data.batches import Row
    from lissom.train.during import Acting


@dataclasses.dataclass
class Kept:
    """Weights that are kept in memory: those of a step, with the score that they had."""

    step: int
    tensors: dict[str, Tensor]
    score: float = -math.inf


class Engine(Trainer):
    """Trains a student by a sum of objectives.

    rows, lengths: encoded rows and how many tokens each has.
    teachers: asked once a batch for all objectives; they are no part of the student and are never saved. Where nothing
        but their logits is wanted, `stored` has them for all rows: (rows, classes) a teacher.
    acting: what acts on the student meanwhile, already put into it.
    validate: scores the student at the end of each epoch; higher is better. The best weights are kept in memory.
    save_seconds: a checkpoint is written at the end of each epoch and when so much time has passed.
    """

    args: TrainingArguments
    model: PreTrainedModel
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LambdaLR

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        rows: Any,
        lengths: list[int],
        objectives: Mapping[str, Objective],
        *,
        teachers: Sequence[PreTrainedModel],
        stored: Sequence[Tensor] = (),
        acting: Sequence[Acting] = (),
        tokenizer: PreTrainedTokenizerBase | None = None,
        validate: Callable[[PreTrainedModel], float] | None,
        pad_id: int,
        next_token: bool,
        bf16: bool,
        report: Callable[[str, float], None],
        save_seconds: float,
    ) -> None:
        self.objectives, self.teachers, self.validate = dict(objectives), tuple(teachers), validate
        self.stored, self.acting, self.tokenizer = tuple(stored), tuple(acting), tokenizer
        self.lengths, self.next_token, self.bf16 = lengths, next_token, bf16
        self.reads = frozenset[str]().union(*(one.reads for one in self.objectives.values()))
        self.progress = 0.0
        self.seen = 0  # rows in this process
        if self.stored:
            rows = rows.add_column("row", list(range(len(rows))))
        self.best: Kept | None = None
        self.loss = torch.tensor(math.nan)  # of the last batch
        super().__init__(
            model=model,
            args=args,
            train_dataset=rows,
            data_collator=lambda batch: pad(batch, pad_id),
            callbacks=[_Pace(self, report, save_seconds)],
        )
        self.remove_callback(PrinterCallback)
        self.loss_is_scaled_for_ga = False  # objectives are means of a batch: Trainer divides by accumulated batches
        self.model_accepts_loss_kwargs = False
        self.good = Kept(0, checkpoint.copied(model))
        for teacher in self.teachers:
            nn.Module.to(teacher, args.device)
        watched = (model, *self.teachers) if "projections" in self.reads else ()
        self.watching = contextlib.ExitStack()  # for whoever made the engine to close
        self.watches = {id(one): self.watching.enter_context(Watch(one)) for one in watched}
        self.beside = self._begin(rows[0], pad_id).to(args.device)

    def _begin(self, row: Row, pad_id: int) -> nn.ModuleDict:
        """What the objectives train beside the student, after one row was answered."""
        self.model.eval()  # type: ignore[no-untyped-call]
        inputs = {name: one.to(self.args.device) for name, one in pad([row], pad_id).items()}
        with torch.no_grad():
            answers = self._ask(self.model, inputs)
        return nn.ModuleDict({name: objective.begin(answers) for name, objective in self.objectives.items()})

    # what is learnt

    def _ask(self, student: nn.Module, inputs: Mapping[str, Tensor]) -> Answers:
        """Student and teachers, each asked once."""
        inputs = dict(inputs)
        rows = inputs.pop("row", None)
        for objective in self.objectives.values():
            inputs = dict(objective.prepare(inputs, self.tokenizer))
        texts = {name: one for name, one in inputs.items() if name not in LABELS}
        labelled = inputs if any(one.labels for one in self.objectives.values()) else texts
        answered = self._answer(student, self.model, labelled)
        taught: list[ModelOutput] = []
        if rows is not None:
            taught = [SequenceClassifierOutput(logits=one[rows.cpu()].to(rows.device)) for one in self.stored]
        elif any(one.teacher for one in self.objectives.values()):
            with torch.no_grad():  # not inference_mode: its tensors cannot be kept for the student's backward pass
                taught = [self._answer(one, one, texts) for one in self.teachers]
        return Answers(
            inputs=inputs,
            student=answered,
            teacher=taught[0] if taught else None,
            others=tuple(taught[1:]),
            next_token=self.next_token,
            regression=getattr(self.model.config, "problem_type", None) == "regression",
            progress=self.progress,
            ask=lambda other: self._ask(student, other),
            model=self.model,
        )

    def _answer(self, called: nn.Module, model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> ModelOutput:
        """What `model` answers, with all that objectives read. called: the model, or what wraps it."""
        extra = {f"output_{name}": True for name in ("hidden_states", "attentions") if name in self.reads}
        watch = self.watches.get(id(model))
        if watch is not None:
            watch.start()
        answered: ModelOutput = called(**inputs, **extra)
        if watch is not None:
            answered["projections"] = watch.take()
        return answered

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The weighted sum of the objectives and penalties. Raises LSM-905 when it is NaN or infinite."""
        for one in self.acting:
            one.before(self, inputs)
        self.seen += len(inputs["input_ids"])
        answers = self._ask(model, inputs)
        values = {
            name: at(one.weight, self.progress) * one.value(answers, self.beside[name])
            for name, one in self.objectives.items()
        }
        for number, one in enumerate(self.acting):
            penalty = one.penalty()
            if penalty is not None:
                values[f"{number + 1}. penalty of while"] = penalty
        total = torch.stack(list(values.values())).sum()
        if not torch.isfinite(total):
            self._refuse(next((name for name, value in values.items() if not torch.isfinite(value)), "summed"))
        self.loss = total.detach()
        return (total, answers.student) if return_outputs else total

    def _refuse(self, name: str) -> None:
        step = self.state.global_step + 1
        kept = f"in {self.args.output_dir}" if self.good.step else "as they were before"
        raise LissomError(
            905,
            f"the {name} loss is NaN or infinite at step {step} of {self.state.max_steps}",
            place="tune",
            remedy=f"The weights of step {self.good.step} are put back and kept {kept}. Use a smaller learning_rate.",
        )

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        """bf16 autocast where it is faster. Trainer's own bf16 would leave a wrapped `forward` on the model."""
        stack = contextlib.ExitStack()
        stack.enter_context(autocast(self.args.device, self.bf16))
        return stack

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's, with what is trained beside the student, and what acts on it with rates of its own."""
        fresh = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if not fresh:
            return optimizer
        groups = [group for one in self.acting for group in one.groups()]
        apart = {id(one) for group in groups for one in group["params"]}
        for group in optimizer.param_groups:
            group["params"] = [one for one in group["params"] if id(one) not in apart]
        if extra := list(self.beside.parameters()):
            groups.append({"params": extra})
        for group in groups:
            optimizer.add_param_group({"weight_decay": 0.0, **group})
        return optimizer

    def move(self, progress: float) -> None:
        """The share `progress` of the run is done: move every schedule there."""
        self.progress = progress
        for one in self.acting:
            one.at(progress)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The validation score, once; the weights are kept when it is the best so far, the first of equals."""
        if self.validate is None:
            return {}
        with self.compute_loss_context_manager():
            score = self.validate(self.model)
        settled = all(one.settled for one in self.acting)
        if settled and (self.best is None or score > self.best.score):
            self.best = Kept(self.state.global_step, checkpoint.copied(self.model), score)
        return {"eval_score": score}

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return GroupedByLength(self.lengths, self.args.train_batch_size, self.args.seed)

    # checkpoints: Trainer decides what is written when, every file is written and read here

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            checkpoint.seal(folder)
            checkpoint.keep(folder.parent, 2)
        self.good = Kept(self.state.global_step, checkpoint.copied(self.model))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(str(output_dir or self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.write(folder / "model.safetensors", checkpoint.weights(self.model))
        checkpoint.write(folder / "beside.safetensors", checkpoint.weights(self.beside))
        acting = {f"{i}.{name}": one for i, it in enumerate(self.acting) for name, one in it.state().items()}
        checkpoint.write(folder / "acting.safetensors", acting)
        if self.best is not None:
            if self.best.step != self.state.global_step:
                checkpoint.write(folder / "best.safetensors", self.best.tensors)
            write_json(folder / "best.json", {"step": self.best.step, "score": self.best.score})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        checkpoint.fill(self.model, read_safetensors(folder / "model.safetensors"))
        checkpoint.fill(self.beside, read_safetensors(folder / "beside.safetensors"))
        acting = read_safetensors(folder / "acting.safetensors")
        for i, it in enumerate(self.acting):
            own = {name.partition(".")[2]: one for name, one in acting.items() if name.startswith(f"{i}.")}
            it.load(own)
        self.good = Kept(int(folder.name.rpartition("-")[2]), checkpoint.copied(self.model))
        if (folder / "best.json").exists():
            best = read_json(folder / "best.json")
            last = best["step"] == self.good.step
            tensors = self.good.tensors if last else read_safetensors(folder / "best.safetensors")
            self.best = Kept(best["step"], tensors, best["score"])

    def _load_best_model(self) -> None:
        if self.best is not None:
            checkpoint.fill(self.model, self.best.tensors)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.should_save:
            checkpoint.write_optimizer(Path(output_dir), self.optimizer.state_dict(), self.lr_scheduler.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint_: str | None) -> None:
        if checkpoint_ is not None:
            optimizer, schedule = checkpoint.read_optimizer(Path(checkpoint_))
            self.optimizer.load_state_dict(optimizer)
            self.lr_scheduler.load_state_dict(schedule)

    def _save_rng_state(self, output_dir: str) -> None:
        write_json(Path(output_dir) / f"random-{self.args.process_index}.json", checkpoint.random_state())

    def _load_rng_state(self, checkpoint_: str | None) -> None:
        if checkpoint_ is not None:
            path = Path(checkpoint_) / f"random-{self.args.process_index}.json"
            checkpoint.set_random_state(read_json(path))

    def _save_scaler(self, output_dir: str) -> None:
        """Nothing: there is a gradient scaler in fp16 only, which is not offered."""

    def _load_scaler(self, checkpoint_: str | None) -> None:
        """Nothing: see `_save_scaler`."""


class _Pace(TrainerCallback):
    """Reports each step, and says when to validate and to write a checkpoint."""

    def __init__(self, engine: Engine, report: Callable[[str, float], None], save_seconds: float) -> None:
        self.engine, self.report, self.save_seconds = engine, report, save_seconds
        self.saved = time.monotonic()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        self.engine.move(state.global_step / state.max_steps)

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.engine.beside.zero_grad()  # Trainer clears the gradients of the model only

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        self.engine.move(state.global_step / state.max_steps)
        epochs = math.ceil(state.num_train_epochs)
        epoch = min(math.ceil(state.epoch or 0.0), epochs)
        said = f"epoch {epoch} of {epochs}, loss {float(self.engine.loss):.3g}"
        self.report(said, state.global_step / state.max_steps)
        control.should_save = time.monotonic() - self.saved >= self.save_seconds
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        control.should_evaluate, control.should_save = self.engine.validate is not None, True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.saved = time.monotonic()
