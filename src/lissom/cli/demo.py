"""`lissom demo`: the main job, offline, on a real model and real text."""

from __future__ import annotations

import click

from lissom.cli import options
from lissom.cli.compress import show
from lissom.cli.group import verb
from lissom.cli.output import Output


@verb("demo", "lissom demo", "lissom demo --out my-demo --force")
@click.option("-o", "--out", default="lissom-demo", show_default=True, metavar="PATH", help="The folder to write.")
@options.force
@options.seed
@options.threads
def command(say: Output, *, out: str, force: bool, seed: int, threads: int | None) -> None:
    """Fine-tune a topic classifier, compress it, export it, measure both side by side, check the gate.

    Takes minutes on two cores, needs no network, and ends in a table, a report and an artifact to use.
    """
    from lissom.demo import run
    from lissom.gate import require

    with say.progress("demo") as report:
        done = run(out, force=force, seed=seed, threads=threads, report=report)
    rows = [row.as_dict() for row in done.rows]
    verdicts = [{"met": one.met, "text": one.text} for one in done.verdicts]
    say.result({"folder": out, "rows": rows, "gate": verdicts}, *([out] if say.quiet else []))
    if not say.quiet:
        show(say, rows)
        say.print("", *(f"gate {'met' if one.met else 'NOT MET'}: {one.text}" for one in done.verdicts))
        say.print("", f"Open {out}/report.html, then try:", *(f"  {line}" for line in _next(out)))
    require(done.verdicts)


def _next(out: str) -> list[str]:
    return [
        f"echo 'Shares fall as oil prices rise.' | lissom predict {out}/onnx --input -",
        f"lissom inspect {out}/model",
        f"lissom measure {out}/onnx --vs {out}/teacher --data {out}/data",
    ]
