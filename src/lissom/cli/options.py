"""Options that several verbs share, declared once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any] | click.Command)

data = click.option(
    "--data",
    metavar="D",
    help="A folder with train, validation and test as .jsonl, .jsonl.gz, .csv or .parquet, or a `datasets` id.",
)
columns = click.option(
    "--column",
    "columns",
    metavar="ROLE=NAME",
    multiple=True,
    callback=lambda ctx, parameter, pairs: _pairs(pairs),
    help="Which column holds the text, text_b, label, ...; for names that are not the usual ones.",
)
recipe = click.option("--recipe", metavar="R", required=True, help="A YAML file or the name of a packaged recipe.")
seed = click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
threads = click.option("--threads", type=click.IntRange(1), help="CPU threads. Default: all cores.")
device = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
max_length = click.option("--max-length", type=click.IntRange(1), help="Longest text in tokens. Default: the model's.")
force = click.option("--force", is_flag=True, help="Replace what is in the folder.")


def out(what: str) -> Callable[[_Command], _Command]:
    """The folder or file that the verb writes."""
    return click.option("-o", "--out", metavar="PATH", required=True, help=what)


def _pairs(pairs: tuple[str, ...]) -> dict[str, str]:
    found = dict(pair.partition("=")[::2] for pair in pairs)
    if not all(role and name for role, name in found.items()):
        raise click.BadParameter("expected ROLE=NAME, as in text=review")
    return found
