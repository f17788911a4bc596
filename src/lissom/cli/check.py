"""`lissom check`: the gate of a CI job."""

from __future__ import annotations

import dataclasses

import click

from lissom.cli.group import verb
from lissom.cli.output import Output


@verb("check", 'lissom check out --gate "keep>=0.99"', 'lissom check out --gate "keep>=0.98,size_mb<=30" --json')
@click.argument("folder", metavar="DIR")
@click.option("--gate", required=True, metavar="CONDITIONS", help="As in keep>=0.99,size_mb<=20; all must hold.")
def command(say: Output, *, folder: str, gate: str) -> None:
    """Verify an artifact's files, then hold the readings stored in it against a gate. Exit 5 when it is not met.

    A reading that is not there counts as not met. Nothing is measured again.
    """
    from lissom.check import check
    from lissom.gate import require

    verdicts = check(folder, gate)
    say.result(
        {"met": all(one.met for one in verdicts), "conditions": [dataclasses.asdict(one) for one in verdicts]},
        *(f"{'met' if one.met else 'NOT MET'}: {one.text}" for one in verdicts),
    )
    require(verdicts)
