"""`lissom finetune`: make a teacher."""

from __future__ import annotations

from pathlib import Path

import click

from lissom.cli import options
from lissom.cli.group import verb
from lissom.cli.output import Output


@verb(
    "finetune",
    "lissom finetune my-model --data data --out teacher",
    "lissom finetune my-model --data data --out teacher --epochs 3 --learning-rate 3e-5 --force",
)
@click.argument("model")
@options.needed_data
@options.columns
@options.out("The folder to write.")
@click.option("--epochs", type=click.FloatRange(0, 1000, min_open=True), default=2.0, show_default=True)
@click.option("--learning-rate", type=click.FloatRange(0, 1, min_open=True), default=5e-5, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Texts a batch.")
@click.option("--batch-tokens", type=click.IntRange(1), help="Tokens a batch, with padding, instead of --batch-size.")
@click.option("--accumulate", type=click.IntRange(1), default=1, show_default=True, help="Batches a step.")
@click.option("--max-steps", type=click.IntRange(1), help="Stop after so many steps, whatever --epochs says.")
@click.option("--patience", type=click.IntRange(1), help="Stop after so many epochs without a better score.")
@options.force
@options.seed
@options.threads
@options.device
@options.max_length
def command(
    say: Output,
    *,
    model: str,
    data: str,
    columns: dict[str, str],
    out: str,
    epochs: float,
    learning_rate: float,
    batch_size: int,
    batch_tokens: int | None,
    accumulate: int,
    max_steps: int | None,
    patience: int | None,
    force: bool,
    seed: int,
    threads: int | None,
    device: str,
    max_length: int,
) -> None:
    """Train a model on labelled data: the original that a recipe then compresses.

    With a validation split (one is cut from train if there is none) the weights of the best epoch are kept. The same
    command goes on where it was interrupted.
    """
    from lissom.data import load_data
    from lissom.store import load, load_tokenizer, save
    from lissom.train.finetune import finetune
    from lissom.train.score import as_shown

    found = load_data(data, columns=columns).with_validation(seed)
    with options.working_folder(out, force, reads=(model, data)) as work, say.progress("finetune") as report:
        made, done = finetune(
            load(model),
            found,
            tokenizer=(tokenizer := load_tokenizer(model)),
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=batch_size,
            batch_tokens=batch_tokens,
            accumulate=accumulate,
            max_steps=max_steps,
            patience=patience,
            seed=seed,
            device=options.prepared(device, threads),
            max_length=max_length,
            work=work,
            report=report,
        )
        if say.first:
            save(made, Path(out), tokenizer=tokenizer, base=None if Path(model).exists() else model, force=force)
    metric, value = as_shown(found.task, done.score)
    score = "" if value is None else f", {metric} {value:.4f} on validation"
    best = "" if done.best_step is None else f" at step {done.best_step}"
    say.result(
        {
            "model": out,
            "steps": done.steps,
            "best_step": done.best_step,
            "metric": metric,
            "score": value,
            "resumed": done.resumed,
            "rows_per_step": done.rows_per_step,
            "rows_per_second": done.rows_per_second,
            "bf16": done.bf16,
        },
        out if say.quiet else f"{out}: {done.steps} steps{score}{best}, {done.rows_per_second:.4g} rows/s",
    )
