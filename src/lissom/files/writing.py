"""How files and artifact folders are written: whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lissom.errors import LissomError

if TYPE_CHECKING:
    from collections.abc import Iterator

if sys.platform != "win32":
    import fcntl

_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EXDEV, errno.EBUSY, errno.EEXIST, errno.ENOTDIR}
_REFUSED |= {errno.EISDIR, errno.ENOENT, errno.ENAMETOOLONG}


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 so that the file is at each moment the old or the new one.

    Raises LissomError LSM-602 when the disk is full, LSM-603 when it cannot be written.
    """
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _write_errors(path):
        try:
            with temp.open("wb") as file:
                file.write(text.encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
            temp.replace(path)
            _sync_folder(path.parent)
        finally:
            temp.unlink(missing_ok=True)


def write_json(path: Path, obj: Any) -> None:
    """Write `obj` as indented JSON in its own order, atomically. Raises ValueError for NaN and infinity: write None."""
    write_text(path, json.dumps(obj, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def new_folder(target: Path, *, force: bool = False) -> Iterator[Path]:
    """A folder to fill that becomes `target` when the block ends well, and vanishes when it does not.

    The caller writes into the folder it is given, its manifest last. When the block ends, every file is on the disk
    before the name `target` leads to them. With `force` an existing folder is replaced; whenever the process is killed,
    the old or the new one is whole, and the next call for the same target (or `recover`) puts it in place and removes
    what the killed one left.
    Raises LissomError LSM-201 when `target` exists, is not empty and `force` is not set, LSM-202 when it is no folder,
    LSM-203 when it must not be replaced, LSM-602 when the disk is full, LSM-603 when it cannot be written.
    """
    target = target.expanduser().resolve()
    with _write_errors(target):
        _refuse_target(target, force)
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent):
            _finish_swap(target)
            _refuse_target(target, force)
            _sweep(target)
            temp = Path(tempfile.mkdtemp(prefix=_beside(target, "new-").name, dir=target.parent))
            lock = _lock(temp, wait=False)
        try:
            yield temp
            _sync_tree(temp)
            with _locked(target.parent):
                _refuse_target(target, force)  # another process may have been faster
                temp.rename(_beside(target, "ready"))
                _finish_swap(target)
        finally:
            if temp.exists():
                shutil.rmtree(temp, ignore_errors=True)
            else:  # interrupted after the point of no return
                recover(target)
            _unlock(lock)


def check_new_folder(target: Path, *, force: bool = False) -> None:
    """Raise what `new_folder` would raise for `target` as it is now: LissomError LSM-201 to 203."""
    target = target.expanduser().resolve()
    with _write_errors(target):
        _refuse_target(target, force)


def recover(target: Path) -> None:
    """Finish what a process began that was killed while it replaced the folder `target`. Cheap when there was none."""
    target = target.expanduser().resolve()
    if _beside(target, "ready").exists() or _beside(target, "old").exists():
        with _write_errors(target), _locked(target.parent):
            _finish_swap(target)


def _beside(target: Path, role: str) -> Path:
    """The sibling of `target` that a swap uses as `role`: new-... (being filled), ready (complete) or old (aside)."""
    return target.with_name(f".{target.name}.lissom-{role}")


def _finish_swap(target: Path) -> None:
    """Put a complete new folder in the place of `target`; every step may be the last before a kill."""
    ready, old = _beside(target, "ready"), _beside(target, "old")
    if ready.exists():
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        ready.rename(target)
        _sync_folder(target.parent)
    elif old.exists() and not target.exists():
        old.rename(target)
    if old.exists():
        shutil.rmtree(old, ignore_errors=True)


def _sweep(target: Path) -> None:
    """Remove the half-filled folders that killed runs left beside `target`: those that nobody holds locked."""
    prefix = _beside(target, "new-").name
    for left in target.parent.iterdir():
        if left.name.startswith(prefix) and (lock := _lock(left, wait=False)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            _unlock(lock)


def _refuse_target(target: Path, force: bool) -> None:
    """Refuse an output folder that holds something, unless `force`; never replace what cannot be an artifact."""
    if not target.exists():
        return
    if not target.is_dir():
        raise LissomError(202, f"output {target} exists and is not a folder", remedy="Use another --out.")
    if target == Path.home() or target in (Path.cwd(), *Path.cwd().parents) or target.is_mount():
        cause = f"output folder {target} is the home, the working or a mounted folder, or above it"
        raise LissomError(203, cause, remedy="Use a folder inside it as --out.")
    if not force and any(target.iterdir()):
        raise LissomError(
            201, f"output folder {target} exists and is not empty", remedy="Use --force or another --out."
        )


def _sync_tree(folder: Path) -> None:
    """Give `folder` and its files the permissions that the user's umask asks for, and put all of it on the disk."""
    probe = folder / ".mode"
    probe.mkdir()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.rmdir()
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(parent, name)
            path.chmod(mode & 0o666)
            with path.open("rb") as file:
                os.fsync(file.fileno())
        _sync_folder(Path(parent))
    folder.chmod(mode)


def _sync_folder(folder: Path) -> None:
    """Put the names in `folder` on the disk, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _lock(folder: Path, *, wait: bool) -> int | None:
    """A handle that holds `folder` locked until `_unlock` or the end of this process; None when that is impossible."""
    if sys.platform == "win32":  # leftovers of killed runs stay until a person removes them
        return None
    handle = None
    try:
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # held by another process, gone, or a file system without locks
        _unlock(handle)
        return None
    return handle


def _unlock(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold `folder` against the other processes that swap or sweep in it."""
    handle = _lock(folder, wait=True)
    try:
        yield
    finally:
        _unlock(handle)


@contextlib.contextmanager
def _write_errors(target: Path) -> Iterator[None]:
    """Explain a full disk, and a place that cannot be written, while `target` is made; other errors pass."""
    try:
        yield
    except Exception as error:
        number = getattr(error, "errno", None)
        # safetensors reports system errors as text only
        if number in {errno.ENOSPC, errno.EDQUOT} or re.search(r"os error (28|122)\b", str(error)):
            home = next(parent for parent in target.parents if parent.exists())
            cause = f"the disk is full: {shutil.disk_usage(home).free / 1e6:.1f} MB are free"
            raise LissomError(602, cause, place=str(target), remedy="Make room or write elsewhere.") from error
        ours = str(getattr(error, "filename", "")).startswith(str(target.parent))
        if ours and isinstance(error, OSError) and number in _REFUSED:
            cause = f"it cannot be written: {error.strerror}"
            raise LissomError(603, cause, place=str(target), remedy="Write elsewhere.") from error
        raise
