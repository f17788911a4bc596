"""`lissom measure`: readings of one or several subjects, taken side by side."""

from __future__ import annotations

import click

from lissom.cli import options
from lissom.cli.compress import show
from lissom.cli.group import verb
from lissom.cli.output import Output


@verb(
    "measure",
    "lissom measure out --data data",
    "lissom measure out --vs teacher --data data --metrics accuracy,keep,speedup",
    "lissom measure out --data data --split validation --out rows.jsonl",
)
@click.argument("subjects", nargs=-1, required=True, metavar="SUBJECT...")
@options.needed_data
@options.columns
@click.option("--vs", "reference", metavar="REF", help="The subject that keep, loyalty and speedup compare with.")
@click.option("--split", default="test", show_default=True)
@click.option("--metrics", metavar="A,B", help="Names of readings, separated by commas. Default: all that apply.")
@click.option("-o", "--out", metavar="FILE", help="Also append the rows to this file, one JSON line each.")
@options.seed
@options.threads
@options.device
@options.any_length
def command(
    say: Output,
    *,
    subjects: tuple[str, ...],
    data: str,
    columns: dict[str, str],
    reference: str | None,
    split: str,
    metrics: str | None,
    out: str | None,
    seed: int,
    threads: int | None,
    device: str,
    max_length: int | None,
) -> None:
    """Measure quality, size, speed and memory, each with its interval and how it was taken.

    Subjects that are measured together take turns, so that a noisy machine favours none of them.
    """
    from lissom.bench.rows import append_row
    from lissom.data import load_data
    from lissom.measure import measure
    from lissom.runtime import open_runner

    options.check_file(out)
    names = dict.fromkeys(([reference] if reference else []) + list(subjects))
    runners = {name: open_runner(name, device=device, threads=threads, max_length=max_length) for name in names}
    labels = next(iter(runners.values())).labels
    with say.progress("measure") as report:
        found = measure(
            runners,
            load_data(data, columns=columns, model_labels=labels or None),
            split=split,
            reference=reference,
            metrics=None if metrics is None else [name.strip() for name in metrics.split(",")],
            seed=seed,
            report=report,
        )
    rows = [row.as_dict() for row in found]
    for row in rows if out is not None else ():
        append_row(str(out), row)
    say.result({"rows": rows})
    show(say, rows)
