"""Hostile files from seeds: what a broken download or an attacker puts where sound ones should be."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from typing import Any

GOOD = {
    "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "I8", "shape": [4], "data_offsets": [24, 28]},
}
DATA = bytes(range(28))


def pack(header: Any, data: bytes = DATA, *, length: int | None = None) -> bytes:
    """A safetensors file with this header (JSON value or raw bytes), data and claimed header length."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def _with(name: str = "b", /, **changes: Any) -> bytes:
    """The good file with fields of one tensor changed."""
    return pack(GOOD | {name: GOOD[name] | changes})


def _named(name: str) -> bytes:
    """The good file with its second tensor renamed."""
    return pack({"a.weight": GOOD["a.weight"], name: GOOD["b"]})


SAFETENSORS: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "LSM-411"),
    "seven bytes": (b"\x10\0\0\0\0\0\0", "LSM-411"),
    "only a length": (struct.pack("<Q", 10), "LSM-411"),
    "length 0": (pack(GOOD, length=0), "LSM-411"),
    "length 1": (pack(GOOD, length=1), "LSM-411"),
    "length 2^63": (pack(GOOD, length=2**63), "LSM-411"),
    "length 2^64 - 1": (pack(GOOD, length=2**64 - 1), "LSM-411"),
    "length beyond the file": (pack(GOOD, length=10_000), "LSM-411"),
    "length one too long": (pack(GOOD, b"", length=len(json.dumps(GOOD)) + 1), "LSM-411"),
    "length too short": (pack(GOOD, length=20), "LSM-405"),
    "header cut in a word": (pack(b'{"a'), "LSM-405"),
    "bad UTF-8": (pack(b'{"\xff\xfe": 1}'), "LSM-405"),
    "UTF-16": (pack(json.dumps(GOOD).encode("utf-16")), "LSM-412"),
    "a list": (pack([]), "LSM-412"),
    "a number": (pack(b"12"), "LSM-412"),
    "text before the object": (pack(b" {}"), "LSM-412"),
    "two objects": (pack(b"{}{}"), "LSM-405"),
    "zero bytes after the object": (pack(b"{}\0\0\0"), "LSM-405"),
    "100 000 levels": (pack(b'{"a":' + b"[" * 100_000), "LSM-406"),
    "100 000 closed levels": (pack(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "LSM-406"),
    "200 levels": (pack(b'{"a":' + b"[" * 200 + b"]" * 200 + b"}"), "LSM-406"),
    "four million lists": (pack(b'{"a":[' + b"[]," * 2_000_000 + b"0]}"), "LSM-406"),
    "key twice": (pack(b'{"b": {}, "b": {}}'), "LSM-407"),
    "field twice": (pack(b'{"b": {"dtype": "I8", "dtype": "F32"}}'), "LSM-407"),
    "NaN": (pack(b'{"b": NaN}'), "LSM-407"),
    "1e999": (pack(b'{"b": 1e999}'), "LSM-407"),
    "a number of 10 000 digits": (pack(b'{"b": ' + b"9" * 10_000 + b"}"), "LSM-405"),
    "entry is no object": (pack({"b": 3}), "LSM-412"),
    "no offsets": (pack({"b": {"dtype": "I8", "shape": [4]}}), "LSM-412"),
    "extra field": (_with(code="os.system"), "LSM-412"),
    "metadata of numbers": (pack(GOOD | {"__metadata__": {"a": 1}}), "LSM-412"),
    "metadata is a list": (pack(GOOD | {"__metadata__": []}), "LSM-412"),
    "unknown dtype": (_with(dtype="F99"), "LSM-415"),
    "dtype is a number": (_with(dtype=8), "LSM-415"),
    "dtype is a list": (_with(dtype=["I8"]), "LSM-415"),
    "shape is text": (_with(shape="4"), "LSM-415"),
    "shape of text": (_with(shape=["4"]), "LSM-415"),
    "shape of true": (_with(shape=[True, 4]), "LSM-415"),
    "shape of floats": (_with(shape=[4.0]), "LSM-415"),
    "negative shape": (_with(shape=[-4]), "LSM-415"),
    "two negatives": (_with(shape=[-2, -2]), "LSM-415"),
    "1000 dimensions": (_with(shape=[1] * 1000 + [4]), "LSM-415"),
    "product wraps to 4": (_with(shape=[2**62 + 1, 4]), "LSM-413"),
    "product wraps to 0": (_with(shape=[2**32, 2**32], data_offsets=[24, 24]), "LSM-413"),
    "shape too large": (_with(shape=[5]), "LSM-413"),
    "shape too small": (_with(shape=[3]), "LSM-413"),
    "wider dtype": (_with(dtype="F64"), "LSM-413"),
    "negative offset": (_with(data_offsets=[-4, 0]), "LSM-413"),
    "swapped offsets": (_with(data_offsets=[28, 24]), "LSM-413"),
    "one offset": (_with(data_offsets=[24]), "LSM-413"),
    "three offsets": (_with(data_offsets=[24, 26, 28]), "LSM-413"),
    "huge offsets": (_with(data_offsets=[2**63 - 5, 2**63 - 1]), "LSM-413"),
    "offsets over 2^63": (_with(data_offsets=[2**64, 2**64 + 4]), "LSM-413"),
    "overlap": (_with(data_offsets=[20, 24]), "LSM-413"),
    "same bytes twice": (pack(GOOD | {"c": GOOD["b"]}), "LSM-413"),
    "gap": (pack(GOOD | {"b": GOOD["b"] | {"data_offsets": [25, 29]}}, DATA + b"x"), "LSM-413"),
    "does not start at 0": (pack({"b": GOOD["b"]}), "LSM-413"),
    "truncated data": (pack(GOOD, DATA[:-1]), "LSM-413"),
    "no data": (pack(GOOD, b""), "LSM-413"),
    "data nobody owns": (pack(GOOD, DATA + b"hidden"), "LSM-413"),
    "name goes up": (_named("../b"), "LSM-414"),
    "name goes up inside": (_named("a/../../b"), "LSM-414"),
    "name goes up with backslash": (_named("..\\b"), "LSM-414"),
    "absolute name": (_named("/etc/passwd"), "LSM-414"),
    "name with NUL": (_named("b\0c"), "LSM-414"),
    "name with escape codes": (_named("b\x1b[2J"), "LSM-414"),
    "name with half a pair": (_named("b\ud800"), "LSM-414"),
    "no name": (_named(""), "LSM-414"),
    "name of 10 000 bytes": (_named("b" * 10_000), "LSM-414"),
}


def mutations(good: bytes, seed: int, count: int) -> Iterator[bytes]:
    """`count` copies of a file with a few bytes flipped, set, removed, inserted or cut off."""
    chance = random.Random(seed)
    for _ in range(count):
        raw = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(raw)) if raw else 0
            match chance.randrange(5):
                case 0:
                    raw[at : at + 1] = bytes([chance.randrange(256)])
                case 1:
                    raw[at : at + 1] = bytes(one ^ (1 << chance.randrange(8)) for one in raw[at : at + 1])
                case 2:
                    del raw[at : at + chance.randint(1, 8)]
                case 3:
                    raw[at:at] = chance.choice([b"0", b"9" * 20, b"-", b"[", b'"', b"\0", b"{", b",", b"1e9"])
                case _:
                    del raw[at:]
        yield bytes(raw)
