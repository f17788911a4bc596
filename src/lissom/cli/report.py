"""`lissom report`: one HTML file from measured rows."""

from __future__ import annotations

import click

from lissom.cli import options
from lissom.cli.group import verb
from lissom.cli.output import Output


@verb(
    "report",
    "lissom report rows.jsonl --out report.html",
    "lissom report rows.jsonl --vs teacher --out report.html",
)
@click.argument("rows", nargs=-1, required=True)
@click.option("--vs", "reference", metavar="SUBJECT", help="The row that the others are compared with.")
@click.option("--title", default="Compression report", show_default=True)
@options.out("The HTML file; an older one is replaced.")
def command(say: Output, *, rows: tuple[str, ...], reference: str | None, title: str, out: str) -> None:
    """Write one self-contained HTML page: table, charts, how every number was taken, how to reproduce it.

    ROWS are files that `lissom measure --out` wrote, or what `lissom measure --json` printed.
    """
    from lissom.bench.report import report
    from lissom.bench.rows import read_rows

    found = read_rows(rows)
    report(found, out, reference=reference, title=title)
    say.result({"report": out, "rows": len(found)}, out)
