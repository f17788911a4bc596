"""The one training loop: transformers.Trainer, with objectives for its loss and state files that are never pickled."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerState
from transformers.modeling_outputs import SequenceClassifierOutput

from lissom.data.batches import pad
from lissom.errors import LissomError
from lissom.files import read_json, read_safetensors, write_json
from lissom.train import checkpoint, processes
from lissom.train.answers import LABELS, autocast, forced
from lissom.train.objectives import Answers, Objective
from lissom.train.pace import Pace
from lissom.train.projections import Watch
from lissom.train.ramp import at
from lissom.train.sampler import GroupedByLength, TokenBudget

if TYPE_CHECKING:
    from torch.utils.data import Dataset, Sampler
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
    from transformers.utils.generic import ModelOutput

    from lissom.data.batches import Row
    from lissom.train.during import Acting
    from lissom.train.objectives.base import Embed


class Engine(Trainer):
    """Trains a student by a sum of objectives.

    rows, lengths: encoded rows and how many tokens each has.
    teachers: asked once a batch for all objectives; they are no part of the student and are never saved. Where nothing
        but their logits is wanted, `stored` has them for all rows: (rows, classes) a teacher.
    acting: what acts on the student meanwhile, already put into it.  held: rows kept back for it, see `During.held`.
    validate: scores the student at the end of each epoch; higher is better. The best weights are kept in memory.
    patience: training stops after so many epochs in a row without a better score.
    batch_tokens: tokens in a batch, with their padding; None: a fixed number of rows.
    save_seconds: a checkpoint is written at the end of each epoch and when so much time has passed.

    With several processes each trains a copy on batches of its own, and the first one validates and writes.
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
        held: Any = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        validate: Callable[[PreTrainedModel], float] | None,
        patience: int | None = None,
        batch_tokens: int | None = None,
        pad_id: int,
        next_token: bool,
        bf16: bool,
        report: Callable[[str, float], None],
        save_seconds: float,
    ) -> None:
        self.objectives, self.teachers, self.validate = dict(objectives), tuple(teachers), validate
        self.stored, self.acting, self.held, self.tokenizer = tuple(stored), tuple(acting), held, tokenizer
        self.patience, self.next_token, self.bf16 = patience, next_token, bf16
        self.reads = frozenset[str]().union(*(one.reads for one in self.objectives.values()))
        self.progress = 0.0
        self.seen = 0  # rows, of all processes, since training began or went on
        if self.stored:
            rows = rows.add_column("row", list(range(len(rows))))
        self.sampler: GroupedByLength | TokenBudget = (
            TokenBudget(lengths, batch_tokens, args.seed, processes.count())
            if batch_tokens
            else GroupedByLength(lengths, args.train_batch_size, args.seed)
        )
        self.best: checkpoint.Kept | None = None
        self.stale = 0  # epochs of full strength since the best one
        self.loss = torch.tensor(math.nan)  # of the last step
        self.pace = Pace(self, report, save_seconds)
        super().__init__(
            model=model,
            args=args,
            train_dataset=rows,
            data_collator=lambda batch: pad(batch, pad_id),
            callbacks=[self.pace],
        )
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = True  # compute_loss gives a batch its share
        self.good, self.before = 0, checkpoint.copied(model)  # step of the last checkpoint; weights until there is one
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
            answers = self._ask(inputs)
        return nn.ModuleDict({name: objective.begin(answers) for name, objective in self.objectives.items()})

    # what is learnt

    def _ask(self, inputs: Mapping[str, Tensor]) -> Answers:
        """Student and teachers, each asked once about a batch of the rows."""
        inputs = dict(inputs)
        rows = inputs.pop("row", None)
        for objective in self.objectives.values():
            inputs = dict(objective.prepare(inputs, self.tokenizer))
        return self._both(forced(self.model, inputs), rows=rows)

    def _both(self, inputs: Mapping[str, Tensor], embed: Embed | None = None, *, rows: Tensor | None = None) -> Answers:
        """Student and teachers, each asked once. rows: numbers of the rows, where the teachers' answers are stored."""
        texts = {name: one for name, one in inputs.items() if name not in LABELS}
        answered = self._answer(self.model, self._shown(inputs), embed)
        taught: list[ModelOutput] = []
        if rows is not None:
            taught = [SequenceClassifierOutput(logits=one[rows.cpu()].to(rows.device)) for one in self.stored]
        elif any(one.teacher for one in self.objectives.values()):
            with torch.no_grad():  # not inference_mode: its tensors cannot be kept for the student's backward pass
                taught = [self._answer(one, texts, embed) for one in self.teachers]
        return Answers(
            inputs=inputs,
            student=answered,
            teacher=taught[0] if taught else None,
            others=tuple(taught[1:]),
            next_token=self.next_token,
            regression=getattr(self.model.config, "problem_type", None) == "regression",
            progress=self.progress,
            ask=self._both,
            model=self.model,
        )

    def _shown(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What the student sees of a batch: labels only where an objective learns from its own loss."""
        labels = any(one.labels for one in self.objectives.values())
        return {name: one for name, one in inputs.items() if labels or name not in LABELS}

    def again(self) -> Tensor:
        """The loss of the current batch for the student as it is by now; the teachers are not asked again."""
        inputs = self.answers.inputs
        answers = dataclasses.replace(self.answers, student=self._answer(self.model, self._shown(inputs), None))
        return torch.stack(list(self._values(answers).values())).sum()

    def _values(self, answers: Answers) -> dict[str, Tensor]:
        """The loss of each objective, with its weight."""
        return {
            name: at(one.weight, self.progress) * one.value(answers, self.beside[name])
            for name, one in self.objectives.items()
        }

    def _answer(self, model: PreTrainedModel, inputs: Mapping[str, Tensor], embed: Embed | None) -> ModelOutput:
        """What `model` answers, with all that objectives read."""
        if embed is not None:
            words = {"inputs_embeds": embed(model)}
            inputs = words | {name: one for name, one in inputs.items() if name != "input_ids"}
        extra = {f"output_{name}": True for name in ("hidden_states", "attentions") if name in self.reads}
        watch = self.watches.get(id(model))
        if watch is not None:
            watch.start()
        answered: ModelOutput = model(**inputs, **extra)
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
        """The weighted sum of the objectives and penalties, times the share that the batch has of its step's rows.

        num_items_in_batch: rows of the step, see `_get_num_items_in_batch`.
        Raises LSM-905 in all processes when it is NaN or infinite in one.
        """
        for one in self.acting:
            one.before(self, inputs)
        self.answers = self._ask(inputs)
        values = self._values(self.answers)
        for number, one in enumerate(self.acting):
            penalty = one.penalty()
            if penalty is not None:
                values[f"{number + 1}. penalty of while"] = penalty
        rows = len(inputs["input_ids"])
        total = torch.stack(list(values.values())).sum() * (rows / (num_items_in_batch or rows))
        everywhere = processes.summed(total.detach())
        if not torch.isfinite(everywhere):
            self._refuse(next((name for name, value in values.items() if not torch.isfinite(value)), "summed"))
        self.loss = self.loss + everywhere
        return (total, self.answers.student) if return_outputs else total

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        """Rows of a step, in all its batches and processes, over which its loss is a mean. Called before each step."""
        rows = processes.summed(torch.tensor(sum(len(one["input_ids"]) for one in batch_samples), device=device))
        self.loss = torch.zeros((), device=device)
        self.seen += int(rows)
        return rows

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Trainer's, after which the gradients of a whole step are those of all processes."""
        loss: Tensor = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            processes.share_gradients(one for group in self.optimizer.param_groups for one in group["params"])
        return loss

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        """The model in a shell, so that Trainer does not share gradients in its way; see `lissom.train.processes`."""
        return nn.ModuleList([self.model])

    def _refuse(self, name: str) -> None:
        step = self.state.global_step + 1
        kept = f"in {self.args.output_dir}" if self.good else "as they were before"
        raise LissomError(
            905,
            f"the {name} loss is NaN or infinite at step {step} of {self.state.max_steps}",
            place="tune",
            remedy=f"The weights of step {self.good} are put back and kept {kept}. Use a smaller learning_rate.",
        )

    def put_back(self) -> None:
        """Give the student the weights of the last checkpoint, or those that it had before."""
        path = Path(str(self.args.output_dir)) / f"checkpoint-{self.good}" / "model.safetensors"
        checkpoint.fill(self.model, read_safetensors(path) if self.good else self.before)

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
        processes.share_buffers(self.model)
        score = math.nan
        if processes.first():
            with self.compute_loss_context_manager():
                score = self.validate(self.model)
        score = processes.told(score, self.args.device)
        if all(one.settled for one in self.acting):
            better = math.isfinite(score) and (self.best is None or score > self.best.score)
            self.stale = 0 if better else self.stale + 1
            if better:
                self.best = checkpoint.Kept(self.state.global_step, checkpoint.copied(self.model), score)
            if self._patient_enough():
                self.control.should_training_stop = True
        return {"eval_score": score}

    def _patient_enough(self) -> bool:
        """Whether there was no better score for so long that training ends here."""
        return self.patience is not None and self.stale >= self.patience

    def stopped(self, folder: Path) -> bool:
        """Whether the run ended by `patience` at this checkpoint; then it is loaded, as Trainer would train on."""
        self.stale = read_json(folder / "best.json")["stale"]
        if not self._patient_enough():
            return False
        self._load_from_checkpoint(str(folder))
        self.state = TrainerState.load_from_json(str(folder / "trainer_state.json"))
        self.move(self.state.global_step / self.state.max_steps)
        return True

    @property
    def rows_per_step(self) -> float:
        """Rows whose mean the loss of a step is; an average where batches have a budget of tokens."""
        batches: int = self.args.world_size * self.args.gradient_accumulation_steps
        return self.sampler.rows * batches

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Trainer's, or one whose batches have a budget of tokens; each process gets its share of the batches."""
        if isinstance(self.sampler, GroupedByLength):
            return super().get_train_dataloader()
        loader: DataLoader[Any] = DataLoader(
            cast("Dataset[Any]", self.train_dataset),
            batch_sampler=self.sampler,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return cast("DataLoader[Any]", self.accelerator.prepare(loader))

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return cast("Sampler[int]", self.sampler)

    # checkpoints: Trainer decides what is written when, every file is written and read here

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        processes.share_buffers(self.model)
        if self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        processes.wait()
        super()._save_checkpoint(model, trial)
        processes.wait()
        if self.args.should_save:
            checkpoint.seal(folder)
            checkpoint.keep(folder.parent, 2)
        self.good, self.before = self.state.global_step, {}

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(str(output_dir or self.args.output_dir))
        checkpoint.write(folder / "model.safetensors", checkpoint.weights(self.model))
        checkpoint.write(folder / "beside.safetensors", checkpoint.weights(self.beside))
        acting = {f"{i}.{name}": one for i, it in enumerate(self.acting) for name, one in it.state().items()}
        checkpoint.write(folder / "acting.safetensors", acting)
        if self.best is not None and self.best.step != self.state.global_step:
            checkpoint.write(folder / "best.safetensors", self.best.tensors)
        step, score = (self.best.step, self.best.score) if self.best else (None, None)
        write_json(folder / "best.json", {"step": step, "score": score, "stale": self.stale})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        checkpoint.fill(self.model, read_safetensors(folder / "model.safetensors"))
        checkpoint.fill(self.beside, read_safetensors(folder / "beside.safetensors"))
        acting = read_safetensors(folder / "acting.safetensors")
        for i, it in enumerate(self.acting):
            own = {name.partition(".")[2]: one for name, one in acting.items() if name.startswith(f"{i}.")}
            it.load(own)
        self.good, self.before = checkpoint.step(folder), {}
        best = read_json(folder / "best.json")
        self.stale = best["stale"]
        if best["step"] is not None:
            path = folder / ("model" if best["step"] == self.good else "best")
            self.best = checkpoint.Kept(best["step"], read_safetensors(path.with_suffix(".safetensors")), best["score"])

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
