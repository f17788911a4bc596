"""Options that several verbs share, declared once, and what they stand for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from lissom.cli.output import first
from lissom.errors import LissomError

_Command = TypeVar("_Command", bound=Callable[..., Any] | click.Command)

_DATA = "A folder with train, validation and test as .jsonl, .jsonl.gz, .csv or .parquet, or a `datasets` id."

data = click.option("--data", metavar="D", help=_DATA)
needed_data = click.option("--data", metavar="D", required=True, help=_DATA)
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
max_length = click.option(
    "--max-length", type=click.IntRange(1), default=128, show_default=True, help="Tokens that a text is cut at."
)
any_length = click.option(
    "--max-length", type=click.IntRange(1), help="Tokens that a text is cut at; the model's limit."
)
force = click.option("--force", is_flag=True, help="Replace what is in the folder.")


def out(what: str) -> Callable[[_Command], _Command]:
    """The folder or file that the verb writes."""
    return click.option("-o", "--out", metavar="PATH", required=True, help=what)


def prepared(name: str, count: int | None) -> str:
    """The device that `--device` means, with torch set to `--threads`, and to one of several devices by `torchrun`.

    Raises LSM-732 for cuda where torch finds none.
    """
    import torch

    from lissom.runtime import best_device

    if count is not None:
        torch.set_num_threads(count)
    found = best_device() if name == "auto" else name
    if found == "cuda" and not torch.cuda.is_available():
        raise LissomError(732, "torch finds no CUDA device here", remedy="Take --device cpu, or a torch built for it.")
    if found == "cuda" and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return found


@contextmanager
def working_folder(target: str, force: bool, *, reads: Sequence[str | None] = ()) -> Iterator[Path]:
    """A folder beside `target` for checkpoints, which stays when the work is interrupted, and goes when it is done.

    Of several processes the first one checks and removes; the others work in the same folder.
    Raises LissomError as `check_folder` before any work, 603 when nothing can be written there.
    """
    final = Path(target)
    if first():
        check_folder(target, force, reads=reads)
    work = final.with_name(f".{final.name}.unfinished")
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        cause = f"it cannot be written: {error.strerror}"
        raise LissomError(603, cause, place=target, remedy="Write elsewhere.") from error
    try:
        yield work
    except BaseException:
        if first() and not any(work.iterdir()):  # nothing to go on from
            work.rmdir()
        raise
    if first():
        shutil.rmtree(work, ignore_errors=True)


def check_folder(target: str, force: bool, *, reads: Sequence[str | None] = ()) -> None:
    """Raise LissomError 201 to 203 before any work when the folder `target` must not be written.

    reads: models and data of the command, which it must not replace even with `force`.
    """
    from lissom.files import check_new_folder

    check_new_folder(Path(target), force=force)
    final = Path(target).resolve()
    for source in reads:
        path = Path(source).resolve() if source and Path(source).exists() else None
        if path is not None and path.is_relative_to(final):
            cause = f"output folder {target} is or holds {source}, which this command reads"
            raise LissomError(203, cause, remedy="Use another --out.")


def check_file(path: str | None) -> None:
    """Raise LissomError 603 before any work when a file that is written at its end has no folder, or is one."""
    if path is not None and (Path(path).is_dir() or not Path(path).parent.is_dir()):
        cause = "it is a folder" if Path(path).is_dir() else "its folder does not exist"
        raise LissomError(603, f"it cannot be written: {cause}", place=path, remedy="Write elsewhere.")


def _pairs(pairs: tuple[str, ...]) -> dict[str, str]:
    found = dict(pair.partition("=")[::2] for pair in pairs)
    if not all(role and name for role, name in found.items()):
        raise click.BadParameter("expected ROLE=NAME, as in text=review")
    return found
