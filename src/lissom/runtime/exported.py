"""What engines share that read an exported folder: its manifest, its tokenizer, and what its config says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lissom.errors import LissomError
from lissom.files import Sentence, compare_digests, read_json, read_sentence
from lissom.runtime.runner import Arrays, embed, usable_length

if TYPE_CHECKING:
    from collections.abc import Set

    from tokenizers import Tokenizer

HIDDEN = ("last_hidden_state", "token_embeddings")
KNOWN_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})


def verify(folder: Path) -> None:
    """Compare the files with lissom's manifest; a folder that something else wrote has none.

    Raises LissomError LSM-461 to 463 when a file is not the one that was exported.
    """
    path = folder / "lissom.json"
    manifest = read_json(path) if path.is_file() else {}
    listed = manifest.get("files") if isinstance(manifest, dict) else None
    if path.is_file() and not isinstance(listed, dict):
        raise LissomError(463, "lissom.json lists no files", place=str(folder), remedy="Export the model again.")
    compare_digests(folder, listed or {}, path.name)


def open_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer in `folder`, or None."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    return Tokenizer.from_file(str(path)) if path.is_file() else None


def read_about(folder: Path, *, max_length: int | None, width: Any, outputs: Set[str]) -> dict[str, Any]:
    """What a Runner takes from the files beside the graph, `max_length` to `exits`, by the names of its arguments.

    width: the last axis of the graph's first answer.  outputs: names of all of them.
    Raises LissomError LSM-211 when more tokens are asked for than the model reads, 436 as `read_sentence`.
    """
    config = read_json(folder / "config.json")
    reading = folder / "tokenizer_config.json"
    settings = read_json(reading) if reading.is_file() else {}
    limit = settings.get("model_max_length")
    sentence = (read_sentence(folder) or Sentence()) if _hidden(outputs) else None
    limits = [int(limit)] if isinstance(limit, int | float) and limit <= 10**6 else []
    limits += [sentence.max_length] if sentence is not None and sentence.max_length else []
    return {
        "sentence": sentence,
        "max_length": usable_length(max_length, min(limits, default=None), config.get("max_position_embeddings")),
        "pad_id": int(config.get("pad_token_id") or 0),
        "labels": _labels(config, width),
        "truncation_side": settings.get("truncation_side", "right"),
        "exits": _exits(folder) if "exit_layer" in outputs else (),
    }


def check_inputs(names: Set[str], graph: Path) -> None:
    """Raise LissomError LSM-735 when the graph reads something that no tokenizer gives."""
    unknown = sorted(names - KNOWN_INPUTS)
    if unknown:
        raise LissomError(
            735,
            f"the graph reads {', '.join(unknown)}, which no tokenizer gives",
            place=str(graph),
            remedy="Export the model without a cache.",
        )


def answers(outputs: Arrays, batch: Arrays, sentence: Sentence | None) -> Arrays:
    """What `Runner.forward` returns, from a graph's outputs by name and the batch that it read."""
    name = _hidden(outputs.keys())
    if name is not None and sentence is not None:
        return {"embeddings": embed(outputs[name].astype(np.float32), batch["attention_mask"], sentence)}
    return {name: array.astype(np.float32, copy=False) for name, array in outputs.items()}


def _exits(folder: Path) -> tuple[int, ...]:
    """The layers after which texts are answered, by what the exporter wrote; empty where it wrote nothing of use."""
    path = folder / "lissom.json"
    about: Any = read_json(path) if path.is_file() else {}
    for name in ("export", "exits"):
        about = about.get(name) if isinstance(about, dict) else None
    if not isinstance(about, dict):
        return ()
    layers, depth = about.get("layers"), about.get("depth")
    found = (*layers, depth) if isinstance(layers, list) else ()
    return found if all(type(one) is int for one in found) else ()


def _hidden(outputs: Set[str]) -> str | None:
    """The output that holds states, where there is no other answer."""
    return None if "logits" in outputs else next((name for name in HIDDEN if name in outputs), None)


def usable_cores() -> int:
    """How many cores this process may use, which in a container is fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _labels(config: dict[str, Any], width: Any) -> tuple[str, ...]:
    """Class names. A config leaves them out when there are two without a name."""
    if not any("Classification" in str(name) for name in config.get("architectures") or []):
        return ()
    names = config.get("id2label")
    if isinstance(names, dict):
        return tuple(str(names[number]) for number in sorted(names, key=int))
    return tuple(f"LABEL_{number}" for number in range(width if isinstance(width, int) else 2))
