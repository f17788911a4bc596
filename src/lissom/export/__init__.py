"""Files for other runtimes: one module a target, each proving its own output against torch before anything is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lissom.errors import LissomError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lissom.runtime import Runner

__all__ = ["TARGETS", "Artifact", "Target", "export"]

_ZEROS = "Zeros among the weights are stored and computed like other numbers here: no dense engine gets faster by them."
_CACHE = "The setting of kv_cache is lissom's own and is not in this folder: the cache stays whole there."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Artifact:
    """An exported folder that passed its parity check.

    files: every file in `folder`, its manifest `lissom.json` among them.
    parity: the figures of the check, as the manifest holds them. See `lissom.export.parity`.
    notes: what a person should know before using it.
    """

    folder: Path
    files: tuple[Path, ...]
    parity: dict[str, Any]
    notes: tuple[str, ...] = ()

    def runner(self, *, threads: int | None = None, max_length: int | None = None) -> Runner:
        """The runner that answers with these files."""
        from lissom.runtime import open_runner

        return open_runner(self.folder, threads=threads, max_length=max_length)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """An export format.

    does: one line for people.
    write: fills an empty folder from a model and its tokenizer and returns what the manifest should hold about it,
        with the figures of the check under "parity", and under "notes" what a person should know. It raises
        LissomError, and nothing is kept, when the check fails.
    """

    does: str
    write: Callable[[PreTrainedModel, PreTrainedTokenizerBase | None, Path], dict[str, Any]]


def _onnx(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> dict[str, Any]:
    from lissom.export.onnx import write

    return write(model, tokenizer, folder)


def _openvino(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> dict[str, Any]:
    from lissom.export.openvino import write

    return write(model, tokenizer, folder)


def _compressed_tensors(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path
) -> dict[str, Any]:
    from lissom.export.compressed_tensors import write

    return write(model, tokenizer, folder)


TARGETS = {
    "onnx": Target(does="ONNX Runtime, onnxruntime-web and transformers.js; int8 layers stay int8", write=_onnx),
    "openvino": Target(does="OpenVINO on CPUs; wants static int8, runs dynamic int8 slowly", write=_openvino),
    "compressed-tensors": Target(
        does="vLLM and plain transformers: 4 and 8 bits in groups, int8", write=_compressed_tensors
    ),
}
"""Every export format, by the name that `--to` takes."""


def export(
    model: PreTrainedModel | str | Path,
    target: str,
    folder: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    force: bool = False,
) -> Artifact:
    """Write `model` into `folder` for another runtime, run the result there, and keep it only if it answers as torch.

    model: a transformers model (any device and dtype; it is not changed), or a folder or hub id with its tokenizer.
    target: a key of TARGETS.  tokenizer: goes into the folder; for a folder or hub id the one found there is taken.
    Raises LissomError LSM-218 for an unknown target, LSM-201 to 203 when `folder` must not be written, LSM-741 to 744
    when the target cannot hold this model, LSM-738 or 739 when its engine is not installed, LSM-911 to 913 when the
    result does not answer as torch does.
    """
    from lissom.edits import PackCache, Record
    from lissom.files import digests, new_folder, write_json
    from lissom.store.zeros import sparse_maps

    if target not in TARGETS:
        raise LissomError(218, f'no export target is called "{target}"', remedy=nearest(target, TARGETS))
    if isinstance(model, str | Path):
        from lissom.store import load, load_tokenizer

        tokenizer = tokenizer or load_tokenizer(model)
        model = load(model)
    folder = Path(folder)
    with new_folder(folder, force=force) as made:
        about = TARGETS[target].write(model, tokenizer, made)
        if sparse_maps(model):
            about["notes"] = (*about.get("notes", ()), _ZEROS)
        if any(isinstance(edit, PackCache) for edit in Record.of(model).edits):
            about["notes"] = (*about.get("notes", ()), _CACHE)
        manifest = {"format": 1, "export": {"target": target, **about}, "files": digests(made)}
        write_json(made / "lissom.json", manifest)
    files = tuple(sorted(path for path in folder.rglob("*") if path.is_file()))
    return Artifact(folder=folder, files=files, parity=about["parity"], notes=tuple(about.get("notes", ())))
