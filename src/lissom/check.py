"""The gate of a CI job: what was measured of an artifact, held against conditions, with nothing measured again."""

from __future__ import annotations

from pathlib import Path

from lissom.bench.rows import read_rows
from lissom.errors import LissomError
from lissom.files import compare_digests, inside, read_json
from lissom.gate import Verdict, evaluate, parse

MANIFEST, ROWS = "lissom.json", "rows.jsonl"


def check(folder: str | Path, gate: str) -> tuple[Verdict, ...]:
    """A verdict for each condition of `gate` ("keep>=0.99,size_mb<=20") on the readings stored in `folder`.

    The files must match their digests. A reading that is not there counts as not met; nothing is raised for that.
    Raises LissomError 205 for what is no gate, 402 for no folder, 461 to 463 for a damaged one or no artifact, and what
    `read_rows` raises.
    """
    conditions = parse(gate)
    if ROWS not in verify(Path(folder)):
        return evaluate(conditions, ())
    rows = read_rows([Path(folder) / ROWS])
    return evaluate(conditions, rows[-1]["readings"])  # the reference, where there is one, stands before


def verify(folder: Path) -> dict[str, str]:
    """File name -> sha256 of everything that the artifact's manifest lists, after each was compared.

    Raises LissomError 461 (a digest differs), 462 (a file is missing), 463 (there is no manifest).
    """
    if not folder.is_dir():
        raise LissomError(402, "there is no such folder", place=str(folder), remedy="Check the path.")
    path = inside(folder, MANIFEST)
    if not path.is_file():
        remedy = "Name a folder that lissom wrote."
        raise LissomError(463, f"there is no {MANIFEST}: not an artifact of lissom", place=str(folder), remedy=remedy)
    manifest = read_json(path)
    listed = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(listed, dict) or not listed:
        raise LissomError(
            463, f"{MANIFEST} lists no files", place=str(folder), remedy="Name a folder that lissom wrote."
        )
    compare_digests(folder, listed, MANIFEST)
    return listed
