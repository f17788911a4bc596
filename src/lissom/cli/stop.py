"""How a command ends when it does not end well: one line, one code, no traceback."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from lissom.errors import LissomError, nearest

if TYPE_CHECKING:
    from lissom.cli.output import Output


class Terminated(BaseException):
    """SIGTERM arrived."""


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM unwinds the stack like Ctrl-C does, so that half-made folders are removed; a second one ends at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def explain(error: BaseException, out: Output) -> int:
    """Say on stderr (and in the document) why the command failed, and return the exit code."""
    if isinstance(error, click.exceptions.Exit):  # --help and --version
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        _drop_output()  # the reader left
        return 128 + signal.SIGPIPE
    if os.environ.get("LISSOM_DEBUG") and not isinstance(error, click.ClickException):
        sys.excepthook(type(error), error, error.__traceback__)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return 2
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    failure = _stopped(error) or _explained(error).as_dict()
    place = f"{failure['place']}: " if failure["place"] else ""
    remedy = f" {failure['remedy']}" if failure["remedy"] else ""
    out.error(f"error {failure['code']} {place}{failure['message']}.{remedy}")
    try:
        out.finish(failure)
    except BrokenPipeError as broken:
        return explain(broken, out)
    except OSError:  # what is to be said here was said on stderr
        _drop_output()
    return int(failure["exit"])


def _drop_output() -> None:
    """Let what is still to be written to stdout go nowhere, so that the end of the interpreter does not fail on it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stopped(error: BaseException) -> dict[str, Any] | None:
    """The fields of a stop that the user asked for."""
    if isinstance(error, KeyboardInterrupt | click.Abort):
        exit_code, cause = 130, "stopped by Ctrl-C"
    elif isinstance(error, Terminated):
        exit_code, cause = 143, "stopped by SIGTERM"
    else:
        return None
    remedy = "No half-made result is left; the same command goes on where it can."
    return {"code": "LSM-609", "place": "", "message": cause, "remedy": remedy, "exit": exit_code}


def _explained(error: BaseException) -> LissomError:
    if isinstance(error, LissomError):
        return error
    if isinstance(error, click.ClickException):
        return _usage(error)
    if isinstance(error, MemoryError) or _torch_out_of_memory(error):
        remedy = "Close other programs, or lower --max-length."
        return LissomError(601, "out of memory", remedy=remedy)
    number, place = _system_error(error), str(getattr(error, "filename", None) or "")
    if number in (errno.ENOSPC, errno.EDQUOT):
        remedy = "Free some space, or write to another disk with --out."
        return LissomError(602, "the disk is full", place=place, remedy=remedy)
    if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG):
        return LissomError(603, f"not allowed: {os.strerror(number)}", place=place)
    cause = " ".join(f"{type(error).__name__}: {error}".split())[:500].rstrip(". ")
    remedy = "This is a fault of lissom: please report it. LISSOM_DEBUG=1 shows where it happened."
    return LissomError(919, f"unexpected {cause}", remedy=remedy)


def _system_error(error: BaseException) -> int | None:
    """The number of the system error that an exception stands for; safetensors tells it in its text only."""
    if isinstance(error, OSError):
        return error.errno
    told = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(told[1]) if told else None


def _usage(error: click.ClickException) -> LissomError:
    """click's complaint in our words."""
    context = getattr(error, "ctx", None)
    if isinstance(error, click.NoSuchOption) and context is not None:
        words = {one.lstrip("-") for parameter in context.command.get_params(context) for one in parameter.opts}
        hint = nearest(error.option_name.lstrip("-"), words).replace(' "', ' "--')
        remedy = hint if hint.startswith("Did") else f"`{context.command_path} --help` lists the options."
        return LissomError(207, f'unknown option "{error.option_name}"', remedy=remedy)
    cause = " ".join(error.format_message().split()).rstrip(".")
    path = context.command_path if context is not None else "lissom"
    return LissomError(208, cause[:1].lower() + cause[1:], remedy=f"`{path} --help` shows examples.")


def _torch_out_of_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
