"""The verbs by name, and what each of them has: `--json`, `-q` and runnable examples at the end of its help."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import click

from lissom import __version__
from lissom.cli.output import Output, first
from lissom.errors import LissomError, nearest

VERBS = (
    "demo",
    "doctor",
    "inspect",
    "recipes",
    "finetune",
    "plan",
    "compress",
    "measure",
    "export",
    "predict",
    "check",
    "report",
)


_TRAINING = ("finetune", "compress")  # several processes do these together; the others are done by the first alone
_HELP = ["-h", "--help"]


class Verb(click.Command):
    """A verb of the command line.

    examples: command lines that run as they stand, given the folders they name.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.context_settings = {"help_option_names": _HELP}
        self.examples = tuple(examples)
        self.params += [
            click.Option(["--json"], is_flag=True, expose_value=False, help="Print one JSON document on stdout."),
            click.Option(
                ["-q", "--quiet"], is_flag=True, expose_value=False, callback=_hush, help="No notes and no progress."
            ),
        ]

    def invoke(self, ctx: click.Context) -> Any:
        """As click does it, in the processes that this verb is for."""
        if self.name not in _TRAINING:
            if not first():
                return None
            for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
                os.environ.pop(name, None)
        return super().invoke(ctx)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples, as they are."""
        if self.examples:
            with formatter.section("Examples"):
                formatter.write("".join(f"  {line}\n" for line in self.examples))


def verb(name: str, *examples: str) -> Callable[[Callable[..., None]], Verb]:
    """Makes a verb of a function that takes an `Output` first; its docstring is the help."""

    def made(function: Callable[..., None]) -> Verb:
        taken = functools.wraps(function)(click.pass_obj(function))
        command: Verb = click.command(name, cls=Verb, examples=examples)(taken)
        return command

    return made


class _Verbs(click.Group):
    """Imports a verb when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which a person meets them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The verb of that name, or None."""
        if name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"lissom.cli.{name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, but with our message for an unknown verb."""
        if args[0] not in VERBS and not args[0].startswith("-"):
            raise LissomError(207, f'unknown command "{args[0]}"', remedy=nearest(args[0], VERBS))
        return super().resolve_command(ctx, args)


@click.group("lissom", cls=_Verbs, context_settings={"help_option_names": _HELP, "max_content_width": 100})
@click.version_option(__version__, message="lissom %(version)s")
def group() -> None:
    """Make a pretrained language model smaller and faster, and prove that it still passes your quality gate.

    `lissom VERB --help` ends with examples. MODEL and SUBJECT are a local folder, a hub id or an exported folder.
    Every verb takes --json. Exit codes: 0 ok, 1 unexpected, 2 usage, 3 recipe, 4 unsafe or broken input, 5 gate not
    met, 6 out of memory, disk or time, 7 missing extra or unsupported model.
    """


def _hush(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    out = ctx.find_object(Output)
    if out is not None:
        out.quiet = out.quiet or value
