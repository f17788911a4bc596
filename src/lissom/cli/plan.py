"""`lissom plan`: what a recipe would do, before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lissom.cli import options
from lissom.cli.group import verb
from lissom.cli.output import Output

if TYPE_CHECKING:
    from lissom.plan import Shape


@verb(
    "plan",
    "lissom plan my-model --recipe demo",
    "lissom plan my-model --recipe recipe.yaml --data data --json",
)
@click.argument("model")
@options.recipe
@options.data
@options.columns
@options.seed
@options.threads
@options.max_length
def command(
    say: Output,
    *,
    model: str,
    recipe: str,
    data: str | None,
    columns: dict[str, str],
    seed: int,
    threads: int | None,
    max_length: int,
) -> None:
    """Check a recipe against a model and predict what it brings.

    Parameters, size and FLOPs are counted on the very shapes that the recipe leaves; latency is measured here, briefly.
    Nothing is trained and nothing is written.
    """
    from lissom.plan import plan
    from lissom.recipe import Recipe

    read = Recipe.read(recipe)
    with say.progress("plan") as report:
        found = plan(
            model,
            read,
            data=data,
            columns=columns,
            seed=seed,
            threads=threads,
            max_length=max_length,
            report=report,
        )
    say.result({"model": model, **found.as_dict()})
    stages = [["as it is", *_cells(found.before)], *([step.name, *_cells(step.after)] for step in found.steps)]
    say.table(["after", "parameters", "MB", "MFLOPs", "latency ms"], stages)
    say.print("", *(f"{step.name}: {step.speed}" for step in found.steps))
    say.print("", *(f"{form} on this processor: {what}" for form, what in found.forms.items()))
    say.print("", *(f"column {role} is read from {name}" for role, name in found.columns.items()), *found.notes)


def _cells(shape: Shape) -> list[str]:
    flops = "-" if shape.flops is None else f"{shape.flops / 1e6:,.1f}"
    latency = "-" if shape.latency_ms is None else f"{shape.latency_ms:.2f}"
    return [f"{shape.parameters:,}", f"{shape.size_mb:,.1f}", flops, latency]
