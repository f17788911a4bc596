"""What may be read: regular files, strict JSON, sound safetensors, names that stay inside their folder."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
import struct
from collections import Counter
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, cast

from lissom.errors import LissomError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from io import BufferedReader

    import torch

MB = 1_000_000
HEADER_LIMIT = 100 * MB  # bytes of a safetensors header; the safetensors library has the same limit
JSON_DEPTH = 100
JSON_VALUES = 3_000_000  # each takes about 100 bytes of memory once it is parsed
NAME_LIMIT = 200  # bytes of one file name, 500 of a tensor name

DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".h5", ".keras", ".npy"})

_GET_AGAIN = "The file is truncated or hostile. Download it again."
_CONVERT = (
    "Ask its author for safetensors, or convert it where you trust it: "
    "AutoModel.from_pretrained(FOLDER, use_safetensors=False).save_pretrained(OTHER)."
)


def open_file(path: Path) -> BinaryIO:
    """`path` opened for reading, when it is a regular file; a FIFO or a device is refused without waiting for it.

    Raises LissomError LSM-402 when it is missing or unreadable, LSM-403 when it is something else than a file.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        why = "there is no such file" if isinstance(error, FileNotFoundError) else f"it cannot be read: {error}"
        raise LissomError(402, why, place=str(path), remedy="Check the name and its permissions.") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise LissomError(403, "it is not a regular file", place=str(path), remedy="Name a file.")
    return os.fdopen(handle, "rb")


def read_json(path: Path, *, limit_mb: float = 64) -> Any:
    """The value in a JSON file that nobody vouches for.

    Raises LissomError LSM-405 when it is not JSON in UTF-8, LSM-406 when it is larger than `limit_mb` megabytes, nested
    more than 100 levels deep or made of more than 3 million values, LSM-407 when a key stands twice in one object or a
    number is not finite.
    """
    limit = int(limit_mb * MB)
    with open_file(path) as file:
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise LissomError(406, f"the JSON file is larger than {limit_mb:g} MB", place=str(path), remedy=_GET_AGAIN)
    return _parse_json(raw, str(path))


def _parse_json(raw: bytes, place: str) -> Any:
    """`raw` as strict JSON; see `read_json` for what is refused."""

    def flaw(cause: str) -> LissomError:
        return LissomError(407, cause, place=place, remedy=_GET_AGAIN)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise flaw(f"the key {_shown(twice)} stands twice")
        return found

    def finite(text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            raise flaw(f"{text[:40]} is not a finite number")
        return number

    if sum(map(raw.count, (b"[", b"{", b","))) > JSON_VALUES:
        cause = f"it holds more than {JSON_VALUES} values"
        raise LissomError(406, cause, place=place, remedy=_GET_AGAIN)
    too_deep = LissomError(406, f"it is nested more than {JSON_DEPTH} levels deep", place=place, remedy=_GET_AGAIN)
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=once, parse_float=finite, parse_constant=finite)
    except RecursionError as error:
        raise too_deep from error
    except ValueError as error:  # bad JSON, bad UTF-8, a number of thousands of digits
        raise LissomError(405, f"it is not valid JSON: {error}", place=place, remedy=_GET_AGAIN) from error
    level, depth = [value], 0
    while level := [child for one in level for child in _children(one)]:
        depth += 1
        if depth > JSON_DEPTH:
            raise too_deep
    return value


def _children(value: Any) -> Iterable[Any]:
    """The values that a JSON object or array holds."""
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _shown(text: str) -> str:
    """A name from a file, cut to 80 characters and without control characters."""
    return json.dumps(text if len(text) <= 80 else text[:77] + "...")


def check_safetensors(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (dtype, shape) of every tensor of a safetensors file, read from its header alone.

    Everything the header claims is compared with the real size of the file: its own length, that each byte range is
    shape x dtype, that the ranges cover the data without hole or overlap.
    Raises LissomError LSM-401 for a pickle under that name, LSM-405 to 407 for a bad header, LSM-411 for its length,
    LSM-412 for its form, LSM-413 for byte ranges, LSM-414 for tensor names, LSM-415 for dtypes and shapes.
    Source: the format's specification, safetensors README, «Format».
    """
    refuse_pickle(path)
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        first = file.read(8)
        claimed = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        if not 2 <= claimed <= min(size - 8, HEADER_LIMIT):
            cause = f"its header claims {claimed} bytes, {max(size - 8, 0)} are left"
            raise LissomError(411, cause, place=str(path), remedy=_GET_AGAIN)
        raw = file.read(claimed)
    if not raw.startswith(b"{"):
        raise LissomError(412, "its header does not start with an object", place=str(path), remedy=_GET_AGAIN)
    header = _parse_json(raw, str(path))
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise LissomError(412, "__metadata__ is not a map of text to text", place=str(path), remedy=_GET_AGAIN)

    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    ranges = []
    for name, entry in header.items():
        dtype, shape, begin, end = _tensor_entry(name, entry, path)
        found[name] = (dtype, shape)
        ranges.append((begin, end, name))
    _check_cover(sorted(ranges), size - 8 - claimed, path)
    return found


def _tensor_entry(name: str, entry: Any, path: Path) -> tuple[str, tuple[int, ...], int, int]:
    """dtype, shape, first and last + 1 byte of one tensor of a header, each checked by itself."""

    def refuse(code: int, cause: str) -> NoReturn:
        raise LissomError(code, f"tensor {_shown(name)} {cause}", place=str(path), remedy=_GET_AGAIN)

    if not name or len(name.encode("utf-8", "replace")) > 500:
        refuse(414, "has no name, or one of more than 500 bytes")
    if _controls(name) or {"..", ""} & set(re.split(r"[/\\]", name)):
        refuse(414, "has a name with control characters or path parts")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        refuse(412, "is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        refuse(415, f"has the unknown dtype {_shown(str(dtype))}")
    if not _naturals(shape) or len(shape) > 64:
        refuse(415, "has a shape that is not a list of at most 64 whole numbers from 0")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        refuse(413, "has a byte range that is not two rising whole numbers")
    needed, given = math.prod(shape) * DTYPE_BYTES[dtype], offsets[1] - offsets[0]
    if needed != given:
        refuse(413, f"needs {needed:.12g} bytes for its shape, its byte range has {given:.12g}")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _naturals(value: Any) -> bool:
    """Whether `value` is a list of whole numbers from 0 to 2^63 - 1; `true` is none."""
    return isinstance(value, list) and all(type(one) is int and 0 <= one < 2**63 for one in value)


def _check_cover(ranges: list[tuple[int, int, str]], size: int, path: Path) -> None:
    """Refuse byte ranges (begin, end, name), in rising order, that do not cover 0 to `size` exactly once."""
    reached = 0
    for begin, end, name in ranges:
        if begin != reached:
            cause = f"tensor {_shown(name)} starts at byte {begin}, the one before it ends at {reached}"
            raise LissomError(413, cause, place=str(path), remedy=_GET_AGAIN)
        if end > size:
            cause = f"tensor {_shown(name)} claims {end - begin} bytes, {size - begin} are left"
            raise LissomError(413, cause, place=str(path), remedy=_GET_AGAIN)
        reached = end
    if reached != size:
        raise LissomError(413, f"{size - reached} bytes belong to no tensor", place=str(path), remedy=_GET_AGAIN)


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a safetensors file, after `check_safetensors`, in memory of its own.

    The file is read, not mapped: saving over it later, or its removal, leaves the tensors as they are.
    """
    from safetensors import SafetensorError, safe_open

    check_safetensors(path)
    try:
        with safe_open(path, framework="pt", backend="pread") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a file, not a dict
    except SafetensorError as error:
        raise LissomError(412, f"it is not valid safetensors: {error}", place=str(path), remedy=_GET_AGAIN) from error


# A pickle of protocol 0 or 1 has no magic bytes: it starts with a container, or with what it imports and what follows.
_NAME = rb"[A-Za-z_][\w.]*\r?\n"
_IMPORTS = rb"\(?([SVIF][^\n]*\n)*[ci]" + _NAME + _NAME + rb"([().]|p\d|q[\x00-\x08])"
_OLD_PICKLE = re.compile(_IMPORTS + rb"|\([dlt]p\d+\r?\n|[\]})]q[\x00-\x08]")
_MAGIC = {
    b"PK\x03\x04": "a zip archive, as torch.save and Keras write it, and can hold a pickle",
    b"PK\x05\x06": "a zip archive, as torch.save and Keras write it, and can hold a pickle",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, as Keras writes it, and can name code",
    b"\x93NUMPY": "a NumPy file and can hold a pickle",
}


def refuse_pickle(path: Path) -> None:
    """Refuse a file that can run code when it is loaded, by its content whatever its name is, and by its name.

    Raises LissomError LSM-401 for pickles of every protocol, the zip, tar and legacy files of torch.save, Keras, HDF5
    and NumPy files.
    """
    with open_file(path) as file:
        start = file.read(512)
    kind = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "")
    header = start[4:9] == b"\0\0\0\0{"  # the length of a safetensors header may begin like a pickle
    if not kind and not header and ((start[:1] == b"\x80" and start[1:2] <= b"\x05") or _OLD_PICKLE.match(start)):
        kind = "a pickle and can run code"
    if not kind and start[257:262] == b"ustar":
        kind = "a tar archive, as early torch.save wrote it, and can hold a pickle"
    if not kind and path.suffix.lower() in PICKLE_SUFFIXES:
        kind = "of a kind that can hold a pickle and run code"
    if kind:
        raise LissomError(401, f"the file is {kind}", place=str(path), remedy=_CONVERT)


def inside(folder: Path, name: str, *, hard_links: bool = False) -> Path:
    """The path of `name` in `folder`, when it cannot lead anywhere else. `name` need not exist.

    name: relative, parts separated by `/`; it may come from a file that nobody vouches for.
    hard_links: allow a file with several names. Installers link packages that way, so it is right for the fixed names
        that the library itself asks for, and wrong for names that stand in a file.
    Raises LissomError LSM-421 for a name that points outside or is no plain name, LSM-422 for links on the way.
    """
    parts = PurePosixPath(name).parts
    foreign = name.startswith("/") or PureWindowsPath(name).drive or PureWindowsPath(name).root
    if foreign or not parts or ".." in re.split(r"[/\\]", name):
        raise LissomError(
            421, f"the name {_shown(name)} points outside the folder", place=str(folder), remedy=_GET_AGAIN
        )
    if _controls(name) or "\\" in name or any(len(part.encode("utf-8", "replace")) > NAME_LIMIT for part in parts):
        cause = f"the name {_shown(name)} has control characters, a backslash or more than {NAME_LIMIT} bytes"
        raise LissomError(421, cause, place=str(folder), remedy=_GET_AGAIN)
    root = folder.resolve()
    path = root
    for part in parts:
        path = path / part
        if path.is_symlink() and not _hub_link(root, path):
            raise LissomError(
                422, f"{_shown(name)} leads through a link", place=str(folder), remedy="Copy the file itself."
            )
    if not hard_links and path.is_file() and path.stat().st_nlink > 1 and not path.is_symlink():
        raise LissomError(422, f"{_shown(name)} is a hard link", place=str(folder), remedy="Copy the file itself.")
    return path


def _controls(text: str) -> bool:
    """Whether `text` holds control characters or half a surrogate pair."""
    return any(ord(one) < 32 or 127 <= ord(one) < 160 or 0xD800 <= ord(one) < 0xE000 for one in text)


def _hub_link(root: Path, path: Path) -> bool:
    """Whether `path` is a link of a hub snapshot: REPO/snapshots/REVISION/... -> REPO/blobs/..."""
    blobs = root.parent.parent / "blobs"
    return root.parent.name == "snapshots" and not blobs.is_symlink() and path.resolve().parent == blobs


def digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open_file(path) as file:
        return hashlib.file_digest(cast("BufferedReader", file), "sha256").hexdigest()


def digests(folder: Path, *, but: Iterable[str] = ()) -> dict[str, str]:
    """Relative name -> SHA-256 of every file in and under `folder`, sorted, but those named in `but`.

    Raises LissomError LSM-422 when something there is a symbolic link.
    """
    names = sorted(found.relative_to(folder).as_posix() for found in folder.rglob("*") if not found.is_dir())
    return {name: digest(inside(folder, name, hard_links=True)) for name in names if name not in set(but)}


def compare_digests(folder: Path, listed: Mapping[str, Any], manifest: str, *, but: Iterable[str] = ()) -> None:
    """Refuse `folder` unless every file that its manifest lists is there with the digest that stands beside its name.

    manifest: its name, for the message.  but: files whose content is not compared; the card, which people edit and
        nothing depends on, never is.
    Raises LissomError LSM-461 for a digest that differs, LSM-462 for a missing file, LSM-421 and 422 as `inside`.
    """
    for name, wanted in listed.items():
        file = inside(folder, name, hard_links=True)  # its content is known, so links give nothing away
        if not file.is_file():
            raise LissomError(462, f"{name} is missing", place=str(folder), remedy="Copy the whole folder again.")
        if name not in {"README.md", *but} and digest(file) != wanted:
            cause = f"digest of {name} does not match {manifest}"
            raise LissomError(461, cause, place=str(folder), remedy="It was damaged or changed. Copy it again.")
