"""The one way by which a model or tokenizer that somebody else wrote comes in."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lissom import files
from lissom.anatomy import is_bare, note_sentence
from lissom.errors import LissomError, nearest
from lissom.store.classes import model_class
from lissom.store.config import first_line, read_config
from lissom.store.record import record_from_json
from lissom.store.saving import FORMAT, MANIFEST, WEIGHTS
from lissom.store.skeleton import check_implied, own_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_log = logging.getLogger(__name__)

INDEX = "model.safetensors.index.json"
_IN_A_LAYER = re.compile(r"\.\d+\.")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")
_READ_BY_TOKENIZERS = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken"})
_VOCABULARIES = frozenset({"vocab", "merges"})  # what tokenizers take as content or as the name of a file
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def load(
    source: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    device: str = "cpu",
    auto_class: str | None = None,
) -> PreTrainedModel:
    """A model in eval mode, from a lissom folder, any other model folder, or a hub id.

    Safetensors only; no code of the checkpoint is run. A lissom folder must match its digests and hold exactly the
    tensors that its structure has. Any other folder must hold those of its structure, but for a pooler, and what it
    holds beyond them is named in a warning.

    revision: branch, tag or commit on the hub.  dtype: None means the dtype it was saved in.
    auto_class: such as "AutoModelForSequenceClassification"; None means the class it was saved from.
    Raises LissomError LSM-401 for pickles, 402 to 423 for broken files, 404 for a folder without weights, 431 to 434
    for configs, 436 for a bare encoder whose sentence-transformers files ask for more than pooling, 441 to 446 for
    structures that do not fit, 461, 462 for digests, 703 for a hub id that cannot be had.
    """
    folder = _local(source, revision)
    manifest = _manifest(folder)
    given = _check_weights(folder)
    config = read_config(_config_entries(folder), str(folder / "config.json"))
    kind = _class(auto_class or manifest.get("class") or _architecture(config))
    try:
        if not hasattr(config, "quantization_config"):  # else the quantizer compares every tensor
            _check_implied(kind, config, given, folder)
        with _no_bar():
            model, info = kind.from_pretrained(
                str(folder),
                config=config,
                dtype=dtype or "auto",
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # named below
            )
    except (LissomError, MemoryError):
        raise
    except Exception as error:
        raise LissomError(446, f"transformers cannot load it: {first_line(error)}", place=str(folder)) from error
    _check_complete(info, folder, ours=bool(manifest), another_head=auto_class is not None)
    if manifest:
        record_from_json(manifest).attach(model)
    own_memory(model)
    sentence = files.read_sentence(folder) if is_bare(model) else None
    if sentence is not None:
        note_sentence(model, sentence)
    made: PreTrainedModel = model.to(device)
    return made


def load_tokenizer(source: str | Path, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub id; no code of the checkpoint is run.

    Raises LissomError LSM-435 when there is none or transformers cannot read it, LSM-421 when its settings name a file
    elsewhere, LSM-422 when one of its files is a link, and as `load` for files and hub ids.
    """
    from transformers import AutoTokenizer

    folder = _local(source, revision)
    _manifest(folder, but=WEIGHTS)
    for one in sorted({*folder.glob("*"), *folder.glob("additional_chat_templates/*")}):
        if one.suffix in _READ_BY_TOKENIZERS:  # which of them it opens is the business of its class
            files.inside(folder, one.relative_to(folder).as_posix(), hard_links=True)
    path = files.inside(folder, "tokenizer_config.json", hard_links=True)
    if not any(files.inside(folder, name, hard_links=True).exists() for name in _TOKENIZERS):
        # transformers would make one with an empty vocabulary
        raise LissomError(435, "there is no tokenizer", place=str(folder), remedy="Save it beside the model.")
    entries = files.read_json(path) if path.exists() else {}
    entries = entries if isinstance(entries, dict) else {}
    for key in _VOCABULARIES & entries.keys():
        if isinstance(entries[key], str):  # transformers would open it, wherever it is
            raise LissomError(421, f'"{key}" is the path of a file, not its content', place=str(path))
    templates = entries.get("chat_template")
    for one in templates if isinstance(templates, list) else ():
        # transformers writes a template to a file of this name when the tokenizer is saved again
        files.inside(folder, str(one.get("name", "") if isinstance(one, dict) else ""))
    try:
        made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        cause = f"transformers cannot read the tokenizer: {first_line(error)}"
        raise LissomError(435, cause, place=str(folder), remedy="Save it again beside the model.") from error
    return made


@contextlib.contextmanager
def _no_bar() -> Iterator[None]:
    """Keep the bar of transformers off the terminal: a load takes a moment, and progress is the caller's to show."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    if shown:
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _local(source: str | Path, revision: str | None) -> Path:
    """The folder of a path or hub id, which is fetched into the cache if need be."""
    folder = Path(source).expanduser()
    if not folder.exists():
        files.recover(folder)
    if folder.is_dir():
        return folder.resolve()
    if folder.exists():
        remedy = "Name the folder it lies in." if folder.is_file() else "Name a folder."
        raise LissomError(402, "it is no model folder", place=str(source), remedy=remedy)
    if isinstance(source, Path) or not _HUB_ID.fullmatch(source):
        raise LissomError(402, "there is no such model folder", place=str(source), remedy="Check the path.")
    return _fetch(source, revision)


def _fetch(name: str, revision: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=_WANTED, ignore_patterns=["*/*", "consolidated*"])
        )
    except Exception as error:
        if constants.HF_HUB_OFFLINE:
            cause, remedy = (
                "it is no folder and not in the cache, and HF_HUB_OFFLINE is set",
                "Unset it, or give a folder.",
            )
        elif isinstance(error, LocalEntryNotFoundError):  # not even asked
            cause, remedy = "it is no folder, and the hub cannot be reached", "Check the path, or the network."
        else:
            cause, remedy = f"it is no folder, and the hub does not give it: {first_line(error)}", "Check the name."
        raise LissomError(703, cause, place=name, remedy=remedy) from error


def _config_entries(folder: Path) -> Any:
    path = files.inside(folder, "config.json", hard_links=True)
    if not path.exists():
        raise LissomError(402, "there is no config.json", place=str(folder), remedy="Name a model folder.")
    return files.read_json(path, limit_mb=10)


def _manifest(folder: Path, *, but: str = "") -> dict[str, Any]:
    """The content of `lissom.json`, after the files it lists, but one, were compared with their digests.

    {} for a folder that has none.
    """
    path = files.inside(folder, MANIFEST, hard_links=True)
    if not path.exists():
        return {}
    entries = files.read_json(path)
    if not isinstance(entries, dict):
        raise LissomError(441, "it is no description of a lissom folder", place=str(path))
    listed, number = entries.get("files"), entries.get("format")
    if isinstance(number, int) and number > FORMAT:
        cause = f"it has format {number}, this lissom reads up to {FORMAT}"
        raise LissomError(441, cause, place=str(path), remedy="Upgrade lissom.")
    exported = entries.get("export")
    if isinstance(exported, dict) and exported.get("target") == "compressed-tensors" and isinstance(listed, dict):
        files.compare_digests(folder, listed, MANIFEST, but=[but])
        return {}  # beside the digests, an ordinary folder of transformers
    if "export" in entries:
        raise LissomError(
            441, "this is an exported folder", place=str(folder), remedy="Name the model that it was exported from."
        )
    if number != FORMAT or not isinstance(listed, dict) or not {"config.json", WEIGHTS} <= listed.keys():
        raise LissomError(441, "it is no description of a lissom folder", place=str(path))
    files.compare_digests(folder, listed, MANIFEST, but=[but])
    return entries


def _check_implied(kind: Any, config: Any, given: int, folder: Path) -> None:
    """Refuse a config whose model is far larger than the files, before transformers makes room for it.

    given: number of values in the files.
    """
    import torch

    with torch.device("meta"):
        empty = (kind.from_config if hasattr(kind, "from_config") else kind._from_config)(copy.deepcopy(config))
    check_implied(empty, given, str(folder))


def _check_weights(folder: Path) -> int:
    """Refuse a folder without sound safetensors. Returns the number of values in them."""
    for name, what in (("adapter_config.json", "an adapter"), (".metadata", "a distributed checkpoint")):
        if (folder / name).exists():
            raise LissomError(
                404, f"{name} says that this is {what}", place=str(folder), remedy="Save it as a whole model first."
            )
    single, index = (files.inside(folder, name, hard_links=True) for name in (WEIGHTS, INDEX))
    if single.exists():
        return _values(files.check_safetensors(single))
    if not index.exists():
        for path in sorted(folder.iterdir()):
            if path.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".keras"} and path.is_file():
                files.refuse_pickle(path)
        raise LissomError(404, f"there are no weights: neither {WEIGHTS} nor {INDEX}", place=str(folder))
    entries = files.read_json(index)
    places = entries.get("weight_map") if isinstance(entries, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise LissomError(423, "weight_map does not lead from tensors to file names", place=str(index))
    total = 0
    for name in sorted(set(places.values())):
        shard = files.inside(folder, name)
        if shard.suffix != ".safetensors":
            raise LissomError(401, f"shard {name} is not safetensors and could run code", place=str(index))
        found = files.check_safetensors(shard)
        lost = next((tensor for tensor, home in places.items() if home == name and tensor not in found), None)
        if lost is not None:
            raise LissomError(423, f'tensor "{lost}" is not in {name}', place=str(index))
        total += _values(found)
    return total


def _values(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> int:
    return sum(math.prod(shape) for _, shape in tensors.values())


def _architecture(config: Any) -> str:
    """The class that a plain folder names; bare models for one that names none."""
    names = getattr(config, "architectures", None)
    return str(names[0]) if isinstance(names, list) and names else "AutoModel"


def _class(name: Any) -> Any:
    """The class of transformers with this name: a model, or an auto class. Never a dotted path.

    Raises LissomError LSM-441.
    """
    import transformers

    kind = model_class(name) if isinstance(name, str) and name.isidentifier() else None
    auto = isinstance(name, str) and name.startswith("AutoModel") and hasattr(kind, "from_pretrained")
    model = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    if not (auto or model):
        known = [one for one in dir(transformers) if "For" in one or one.endswith("Model")]
        raise LissomError(441, f"transformers has no model class {str(name)[:80]!r}", remedy=nearest(str(name), known))
    return kind


def _check_complete(info: dict[str, Any], folder: Path, *, ours: bool, another_head: bool) -> None:
    """Refuse a load in which a tensor was missing, left over or of another shape; transformers draws those at random.

    A pooler may be missing from a folder that is not ours: many encoders are published without one. With another head
    only what belongs to a layer is asked for. Tensors that are left over are a matter for a warning then.
    """
    missing = [str(name) for name in info["missing_keys"]]
    if another_head:
        missing = [name for name in missing if _IN_A_LAYER.search(name)]
    elif not ours:
        missing = [name for name in missing if "pooler" not in name]
    wrong = [str(one[0]) if isinstance(one, tuple) else str(one) for one in info["mismatched_keys"]]
    rest = [str(name) for name in info["unexpected_keys"]]
    if rest and not ours and not another_head:
        _log.warning("%s: not used: %d tensors, such as %s", folder, len(rest), min(rest))
    kinds = (
        (missing, 443, "is missing"),
        (rest if ours and not another_head else [], 444, "has no place in the model"),
        (wrong, 445, "has another shape than the model wants"),
    )
    for names, code, what in kinds:
        if names:
            cause = f'tensor "{min(names)}" {what} ({len(names)} in all)'
            raise LissomError(code, cause, place=str(folder / WEIGHTS))
