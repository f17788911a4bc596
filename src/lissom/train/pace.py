"""The pace of a run: what is told after each step, and when to validate, to write a checkpoint and to stop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from statistics import mean
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from lissom.train import processes

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from lissom.train.engine import Engine

log = logging.getLogger(__name__)


class Pace(TrainerCallback):
    """Trainer calls it; see `Engine` for what its parameters mean."""

    def __init__(self, engine: Engine, report: Callable[[str, float], None], save_seconds: float) -> None:
        self.engine, self.report, self.save_seconds = engine, report, save_seconds
        self.saved = self.begun = time.monotonic()
        self.losses: list[float] = []  # of each step, since training began or went on

    @property
    def loss(self) -> tuple[float, float] | None:
        """Mean loss over the first and over the last tenth of the steps of this process; None without steps."""
        count = math.ceil(len(self.losses) / 10)
        return (mean(self.losses[:count]), mean(self.losses[-count:])) if count else None

    @property
    def rows_per_second(self) -> float:
        """Rows that all processes trained on since this run began or went on, validation and checkpoints included."""
        return self.engine.seen / max(time.monotonic() - self.begun, 1e-9)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Move every schedule to where this run begins or goes on."""
        batches = f"{args.world_size} processes x {args.gradient_accumulation_steps} batches"
        log.info("%.4g rows a step, from %s; %d steps", self.engine.rows_per_step, batches, state.max_steps)
        self.begun = time.monotonic()
        self.engine.move(state.global_step / state.max_steps)

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Let the order of rows follow the epoch: Trainer does not reach the sampler of all data loaders."""
        self.engine.sampler.set_epoch(int(state.epoch or 0))

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Clear the gradients beside the model; Trainer clears only those of the model."""
        self.engine.beside.zero_grad()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Move every schedule on, report, and write a checkpoint when the last one is old and the epoch goes on."""
        self.engine.move(state.global_step / state.max_steps)
        epochs = math.ceil(state.num_train_epochs)
        epoch = min(math.ceil(state.epoch or 0.0), epochs)
        rate = self.rows_per_second
        self.losses.append(float(self.engine.loss))
        said = f"epoch {epoch} of {epochs}, loss {self.losses[-1]:.3g}, {rate:.{int(rate < 10)}f} rows/s"
        self.report(said, state.global_step / state.max_steps)
        # the last step of an epoch is saved with its score: a run that goes on from there does not validate it again
        last = float(state.epoch or 0).is_integer() or state.global_step >= state.max_steps
        late = not last and time.monotonic() - self.saved >= self.save_seconds
        control.should_save = bool(processes.told(late, args.device))
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Validate, then write a checkpoint."""
        control.should_evaluate, control.should_save = self.engine.validate is not None, True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count the seconds to the next checkpoint from here."""
        self.saved = time.monotonic()
