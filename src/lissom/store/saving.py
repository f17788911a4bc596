"""Write a model folder that loads again, bit for bit, or nothing."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lissom.anatomy import sentence_of
from lissom.edits import Record
from lissom.errors import LissomError
from lissom.files import digests, new_folder, write_json, write_sentence, write_text
from lissom.nn.shared import Place, place_of
from lissom.store.classes import OURS, model_class
from lissom.store.config import METHOD
from lissom.store.record import record_to_json
from lissom.store.skeleton import declared_ties, edited_ties, shapes, skeleton
from lissom.store.zeros import sparse_maps, without_zeros

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FORMAT = 1
MANIFEST = "lissom.json"
WEIGHTS = "model.safetensors"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")


def save(
    model: PreTrainedModel,
    folder: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    base: str | None = None,
    recipe: Mapping[str, Any] | None = None,
    rows: Sequence[Mapping[str, Any]] = (),
    card: str | None = None,
    force: bool = False,
) -> Path:
    """Save a model, edited or not, as a lissom folder. Returns its path.

    A model whose final config alone gives its structure (layers dropped, say) loads with plain transformers; otherwise
    `config.json` carries the edits and loading needs `import lissom` first. So it does where linear maps have many
    zeros, which are not stored. `model.save_pretrained` writes the weights
    too, but not the edits: use it only for a model that is not edited.

    base: hub id of the original model, with `@REVISION` if known; by default what the config remembers, if it is an id.
    recipe: the resolved recipe, as plain JSON values.
    rows: measured rows as plain JSON values; they go into `rows.jsonl`, which `lissom report` reads.
    card: Markdown with the measured results, for the model card.
    force: replace a folder that exists and is not empty. Until the new one is complete the old one stays whole.
    Raises LissomError LSM-201 to 203 and LSM-602, 603 as `files.new_folder`, LSM-441 when the class is neither
    transformers' nor lissom's own, LSM-442 when the structure does not follow from the record.
    """
    name = type(model).__name__
    if model_class(name) is not type(model):
        raise LissomError(441, f"{name} is not a class of transformers", remedy="Only such models can be saved.")
    record = Record.of(model)
    ties, zeros = None if any(edit.acts for edit in record.edits) else _ties_from_config(model), sparse_maps(model)
    implied = ties is not None
    if ties is None:
        ties = _ties_from_record(model, record)
    base = base or _remembered(model)
    with new_folder(Path(folder), force=force) as out:
        write_json(out / "config.json", final_config(model, None if implied else record, zeros))
        tensors, ties = without_zeros(model.state_dict(), ties, zeros)
        write_weights(tensors, out / WEIGHTS, ties)
        if model.can_generate():
            model.generation_config.save_pretrained(out)
        if tokenizer is not None:
            tokenizer.save_pretrained(out)
        if hasattr(model.config, "_sentence"):
            write_sentence(sentence_of(model), out, model.config.get_text_config().hidden_size)
        if rows:
            write_text(out / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        write_text(out / "README.md", _card(name, base, card or "", plain=implied and not zeros))
        write_json(out / MANIFEST, _manifest(name, base, record, recipe, digests(out)))
    return Path(folder)


def _ties_from_config(model: PreTrainedModel) -> dict[str, str] | None:
    """Declared ties of the model that the final config alone builds; None when that is not this model's structure."""
    empty = skeleton(model, Record())
    ties = declared_ties(empty)
    if shapes(empty) != shapes(model):
        return None
    return None if _untied(model, ties) else ties


def _ties_from_record(model: PreTrainedModel, record: Record) -> dict[str, str]:
    """Ties of the model that a loader builds from the record."""
    empty = skeleton(model, record)
    wanted, found = shapes(empty), shapes(model)
    if wanted != found:
        name = next(name for name in sorted(wanted.keys() | found.keys()) if wanted.get(name) != found.get(name))
        there, here = (side.get(name, ("no tensor",))[0] for side in (wanted, found))
        cause = f"the edits on record give {there}, the model has {here}"
        raise LissomError(442, cause, place=name, remedy="Change a model's structure through an Editor only.")
    ties = {**declared_ties(empty), **edited_ties(empty)}
    lost = _untied(model, ties)
    if lost:
        cause = f"it is the same tensor as {lost[1]}, and no edit on record says so"
        raise LissomError(442, cause, place=lost[0], remedy="Share layers by an edit, or give each its own copy.")
    return ties


def _untied(model: PreTrainedModel, ties: Mapping[str, str]) -> list[str]:
    """The first names that are one and the same tensor in the model and would not be after loading; or none."""
    groups: dict[Place, list[str]] = {}
    for name, tensor in model.state_dict().items():
        if tensor.numel():
            groups.setdefault(place_of(tensor), []).append(name)
    left = ([name for name in names if name not in ties] for names in groups.values())
    return next((names for names in left if len(names) > 1), [])


def write_weights(state: Mapping[str, Tensor], path: Path, ties: Mapping[str, str]) -> None:
    """Write every tensor once; a name is left out only where loading puts the same tensor in its place."""
    from safetensors.torch import save_file

    kept: dict[str, Tensor] = {}
    for name, tensor in state.items():
        source = ties.get(name)
        if source is None or place_of(tensor) != place_of(state[source]):
            kept[name] = tensor.detach().cpu()
    seen: set[int] = set()
    for name, tensor in kept.items():
        start = tensor.untyped_storage().data_ptr()
        # safetensors wants each tensor whole and alone in its memory
        kept[name] = tensor.clone().contiguous() if start in seen else tensor.contiguous()
        seen.add(start)
    save_file(kept, path, metadata={"format": "pt"})


def final_config(
    model: PreTrainedModel, record: Record | None, zeros: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """The content of `config.json`: the config as it is now, and the record if a loader needs it.

    zeros: the maps that are stored without their zeros, see `lissom.store.zeros`.
    """
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = str(model.dtype).removeprefix("torch.")
    entries: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    entries = {key: value for key, value in entries.items() if not key.startswith("_")}  # such as local paths
    entries.pop("quantization_config", None)
    if record is not None or zeros:
        record = record or Record()
        short = Record(edits=tuple(edit.shape() for edit in record.edits), restore=record.restore)
        more = {"zeros": dict(zeros)} if zeros else {}
        entries["quantization_config"] = {"quant_method": METHOD, **record_to_json(short), **more}
    return entries


def _remembered(model: PreTrainedModel) -> str | None:
    """The hub id that the model was loaded from; None when it was a local path, which is nobody else's business."""
    name = str(getattr(model.config, "_name_or_path", "") or "")
    return name if _HUB_ID.fullmatch(name) and not Path(name).exists() else None


def _manifest(
    name: str, base: str | None, record: Record, recipe: Mapping[str, Any] | None, files: dict[str, str]
) -> dict[str, Any]:
    model_id, _, revision = (base or "").partition("@")
    packages = ("lissom", "torch", "transformers", "safetensors")
    return {
        "format": FORMAT,
        "class": name,
        "base": {"model": model_id, "revision": revision or None} if base else None,
        **record_to_json(record),
        "recipe": recipe,
        "versions": {"python": platform.python_version(), **{one: _version(one) for one in packages}},
        "files": files,
    }


def _version(package: str) -> str:
    if package == "lissom":
        from lissom import __version__

        return __version__
    return importlib.metadata.version(package)


def _card(name: str, base: str | None, body: str, *, plain: bool) -> str:
    """The model card: front matter from a YAML dumper, how to load, then the caller's Markdown."""
    import yaml

    front: dict[str, Any] = {"library_name": "transformers", "tags": ["lissom", "model-compression"]}
    if base:
        front["base_model"] = base.partition("@")[0]
    how = f"Plain transformers loads this model: `{name}.from_pretrained(FOLDER)`."
    if name in OURS:
        how = f"Run `import lissom` before `AutoModel{name[name.index('For') :]}.from_pretrained(FOLDER)`."
    elif not plain:
        how = f"Run `import lissom` before `{name}.from_pretrained(FOLDER)`."
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n{how}\n\n{body}".rstrip() + "\n"
