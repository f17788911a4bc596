"""The command line: thin verbs over the library, and the manners that all of them share.

Data goes to stdout, everything else to stderr; `--json` gives exactly one document on stdout, on failure too; a failure
is one line and an exit code. Nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lissom.cli.output import Output
from lissom.cli.stop import explain, stoppable


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; nothing escapes but what ends the interpreter."""
    from lissom.cli.group import group

    out = Output(json="--json" in arguments)
    try:
        with stoppable(), out, group.make_context("lissom", list(arguments), obj=out) as context:
            group.invoke(context)
        out.finish()
    except BaseException as error:  # noqa: BLE001 - the one place where every failure becomes a line and a code
        return explain(error, out)
    return 0
