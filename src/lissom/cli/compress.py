"""`lissom compress`: the main job."""

from __future__ import annotations

import shlex
from typing import Any

import click

from lissom.cli import options
from lissom.cli.group import verb
from lissom.cli.output import Output


@verb(
    "compress",
    "lissom compress teacher --recipe demo --data data --out out --keep 0.98",
    "lissom compress teacher --recipe recipe.yaml --data data --out out --force --json",
    "lissom compress student --teacher teacher --recipe recipe.yaml --data data --out out --force",
)
@click.argument("model")
@options.recipe
@options.data
@options.columns
@options.out("The folder to write.")
@click.option(
    "--teacher",
    "teachers",
    metavar="MODEL",
    multiple=True,
    help="Learn from this model instead of the original, and compare with it. May be given several times.",
)
@click.option("--keep", type=click.FloatRange(0), help="Share of the original's quality that must be kept.")
@click.option("--report", "page", metavar="FILE", help="Also write a report, as HTML.")
@options.force
@options.seed
@options.threads
@options.device
@options.max_length
def command(
    say: Output,
    *,
    model: str,
    recipe: str,
    data: str | None,
    columns: dict[str, str],
    out: str,
    teachers: tuple[str, ...],
    keep: float | None,
    page: str | None,
    force: bool,
    seed: int,
    threads: int | None,
    device: str,
    max_length: int,
) -> None:
    """Run a recipe on a model, measure both, and write the artifact with its evidence. Exit 5 if --keep is missed.

    The artifact is written even when --keep is missed, with what was measured. The same command goes on where it was
    interrupted.
    """
    from lissom.compress import compress
    from lissom.gate import require
    from lissom.recipe import Recipe

    read = Recipe.read(recipe)
    options.check_file(page)
    with options.working_folder(out, force, reads=(model, data, *teachers)) as work, say.progress("compress") as report:
        done = compress(
            model,
            read,
            data=data,
            columns=columns,
            teacher=teachers,
            keep=keep,
            seed=seed,
            device=options.prepared(device, threads),
            max_length=max_length,
            work=work,
            report=report,
        )
        if say.first:
            done.save(out, force=force)
    if page is not None and say.first:
        done.report(page)
    rows = [row.as_dict() for row in done.rows]
    verdicts = [{"met": one.met, "text": one.text} for one in done.verdicts]
    say.result({"model": out, "rows": rows, "steps": list(done.steps), "gate": verdicts, "notes": list(done.notes)})
    if say.quiet:
        say.print(out)
    else:
        show(say, rows)
        for step in done.steps:
            if step["did"]:
                say.note(f"{step['name']}: {told(step['did'])}")
        say.print("", *(f"gate {'met' if one.met else 'NOT MET'}: {one.text}" for one in done.verdicts))
        for note in done.notes:
            say.note(note)
        folder, beside = shlex.quote(out), shlex.quote(f"{out.rstrip('/')}-onnx")
        milder = f"{folder} keeps too little. Remove less, or let a step tune follow what removes, and compress again"
        say.note(f"Next: lissom export {folder} --to onnx --out {beside}" if done.met else f"Next: {milder}.")
    require(done.verdicts)


def told(did: dict[str, Any]) -> str:
    """What a step says about itself, on one line: names and values, without those that it does not know, and without
    what it says of every part."""
    known = {name: _number(value) for name, value in did.items() if value is not None and not isinstance(value, dict)}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in known.items())


def _number(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " to ".join(map(_number, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show(say: Output, rows: list[dict[str, Any]]) -> None:
    """The comparison of rows as a table; the first row is the reference of two or more."""
    from lissom.bench.table import reasons, table

    if rows:
        say.table(*table(rows, rows[0]["subject"] if len(rows) > 1 else None))
        for reason in reasons(rows):
            say.note(f"not measured: {reason}")
