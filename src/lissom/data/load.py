"""A data set from a folder, a file, an object or the hub, checked row by row and brought to one form."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lissom.data.columns import map_columns
from lissom.data.read import SUFFIXES, Table, read_object, read_table, suffix
from lissom.data.rows import Rows, labelled_rows, question_rows, tagged_rows, text_rows, written_rows
from lissom.data.task import WHOLE, Data, Task, digest, metric
from lissom.errors import LissomError
from lissom.files import inside, read_json

if TYPE_CHECKING:
    import datasets

log = logging.getLogger(__name__)

_SPLITS = {
    "train": "train",
    "validation": "validation",
    "validation_matched": "validation",  # MNLI
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "test_matched": "test",
}
_HUB_READERS = ("parquet", "json", "csv", "text", "arrow", "cache")  # the last one reads what was loaded before


@dataclasses.dataclass(frozen=True)
class _Source:
    name: str
    tables: dict[str, Table]
    labels: tuple[str, ...] | None = None  # as meta.json names them


def load_data(
    source: str | Path | datasets.DatasetDict | datasets.Dataset | Mapping[str, Any],
    *,
    columns: Mapping[str, str] | None = None,
    model_labels: Sequence[str] | None = None,
) -> Data:
    """Read, check and normalise a data set.

    source: a folder with train, validation (or dev, val) and test as .jsonl, .jsonl.gz, .csv or .parquet, and
        optionally `meta.json` with `name` and `label_names`; one such file, which then stands for every split; a
        `datasets` object; a dict of columns, or of splits that are dicts of columns; or a `datasets` id of the hub,
        with its configuration after a colon ("nyu-mll/glue:cola"). HF_HUB_OFFLINE is honoured.
    columns: normalised name -> name in the source, where the usual names do not fit.
    model_labels: the labels of the model that will read the data, in the order of its outputs; labels are brought
        into that order. One label alone means a regression.
    Notes about rows left out and the like are logged as warnings and kept in `Data.notes`.
    Raises LissomError 801 to 828 for the first fault, with file, row (a line of the file, from 1) and column; 402 to
    422 for a file that cannot or must not be opened.
    """
    found = _gather(source)
    names = dict.fromkeys(name for table in found.tables.values() for name in table.columns)
    mapping = map_columns(list(names), columns, found.name)
    for table in found.tables.values():
        absent = next((at for role, at in mapping.items() if at not in table.columns and role not in _OPTIONAL), None)
        if absent is not None:
            cause = f'there is no column "{absent}", which another split has'
            raise LissomError(818, cause, place=table.place, remedy=f"It has: {', '.join(table.columns)}.")
    rows = _rows(found, mapping, model_labels)
    splits = {name: _dataset(one) for name, one in rows.splits.items()}
    notes = (*_notes(found, mapping, names), *rows.notes, *_unlabelled(rows.splits), *_overlaps(rows.splits))
    for note in notes:
        log.warning("%s: %s", found.name, note)
    return Data(
        name=found.name,
        task=Task(kind=rows.kind, labels=rows.labels, metric=metric(rows.kind, found.name, rows.labels)),
        splits=splits,
        columns=mapping,
        digest=digest(splits),
        notes=notes,
    )


_OPTIONAL = ("label", "tags")


def _rows(found: _Source, mapping: Mapping[str, str], model_labels: Sequence[str] | None) -> Rows:
    if "tokens" in mapping:
        return tagged_rows(found.tables, mapping, found.labels, model_labels)
    if "answers" in mapping:
        return question_rows(found.tables, mapping)
    if "target" in mapping:
        return written_rows(found.tables, mapping)
    if "label" in mapping or model_labels is not None:
        return labelled_rows(found.tables, mapping, found.labels, model_labels)
    return text_rows(found.tables, mapping)


def _gather(source: Any) -> _Source:
    import datasets

    if isinstance(source, datasets.Dataset):
        return _Source("data", {WHOLE: read_object(source, "data")})
    if isinstance(source, Mapping):
        whole = not all(isinstance(one, Mapping | datasets.Dataset) for one in source.values())
        splits = {WHOLE: source} if whole else _named(source, "data")
        return _Source("data", {name: read_object(one, "data" if whole else name) for name, one in splits.items()})
    if not isinstance(source, str | Path):
        cause = f"data must be a folder, a file, a datasets object, a dict or a hub id, not {type(source).__name__}"
        raise LissomError(801, cause)
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.exists():
        return _file(path)
    if isinstance(source, Path) or suffix(path) or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?(:[\w.-]+)?", source):
        raise LissomError(801, "there is no such file or folder", place=str(source))
    return _hub(source)


def _named(splits: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Splits under their normalised names; unknown names stay."""
    named: dict[str, Any] = {}
    for name, one in splits.items():
        final = _SPLITS.get(name, name)
        if final in named:
            raise LissomError(803, f'"{name}" is a second split {final}', place=place, remedy="Leave one of them out.")
        named[final] = one
    return {name: named[name] for name in sorted(named, key=_rank)}


def _rank(name: str) -> tuple[int, str]:
    order = ("train", "validation", "test")
    return (order.index(name) if name in order else len(order), name)


def _folder(folder: Path) -> _Source:
    root = folder.resolve()
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        stem = path.name.lower().removesuffix(suffix(path))
        if not suffix(path) or stem not in _SPLITS:
            continue
        split = _SPLITS[stem]
        if split in files:
            cause = f"{files[split].name} and {path.name} are both the split {split}"
            raise LissomError(803, cause, place=folder.name, remedy="Leave one of them out.")
        files[split] = inside(folder, path.name, hard_links=True)
    if not files:
        cause = "no data here"
        remedy = f"Expected train, validation or test as {', '.join(SUFFIXES)}."
        raise LissomError(802, cause, place=str(folder), remedy=remedy)
    tables = {split: read_table(files[split]) for split in sorted(files, key=_rank)}
    name, labels = _meta(root / "meta.json")
    return _Source(name or root.name, tables, labels)


def _file(path: Path) -> _Source:
    if not suffix(path):
        raise LissomError(802, f"is no data file; they end in {', '.join(SUFFIXES)}", place=path.name)
    table = read_table(path)
    name, labels = _meta(path.resolve().parent / "meta.json")
    return _Source(name or path.name.split(".", maxsplit=1)[0], {WHOLE: table}, labels)


def _meta(path: Path) -> tuple[str, tuple[str, ...] | None]:
    """Name and label names from `meta.json`, as far as it has them."""
    if not path.is_file():
        return "", None
    meta = read_json(inside(path.parent, path.name, hard_links=True), limit_mb=1)
    if not isinstance(meta, dict):
        raise LissomError(822, "is no object with named values", place=path.name)
    name, labels = meta.get("name", ""), meta.get("label_names")
    if not isinstance(name, str):
        raise LissomError(822, "name is no text", place=path.name)
    if labels is None:
        return name, None
    if not isinstance(labels, list) or not labels or not all(isinstance(one, str) and one.strip() for one in labels):
        raise LissomError(822, "label_names must be a list of texts", place=path.name)
    if len({one.casefold() for one in labels}) < len(labels):
        raise LissomError(822, "a name stands twice in label_names", place=path.name)
    return name, tuple(labels)


def _hub(name: str) -> _Source:
    """A set of the hub or its cache, by the plain readers of `datasets` only: it has others that run or fetch more."""
    import datasets

    repository, _, configuration = name.partition(":")
    reached = _reached()
    try:
        with contextlib.nullcontext() if reached else _cache_alone():
            builder = datasets.load_dataset_builder(repository, configuration or None)
            kind = type(builder).__module__.rsplit(".", maxsplit=1)[-1]
            if (
                builder.repo_id is None or kind not in _HUB_READERS
            ):  # "csv" is a reader itself, which takes what lies around
                raise ValueError(f"it is no set of {', '.join(_HUB_READERS[:-1])} files")
            builder.download_and_prepare()
            found = builder.as_dataset()
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, datasets.exceptions.DatasetsError) as broken:
        cause = f"no such file or folder, and the hub does not give it: {(str(broken) or repr(broken)).splitlines()[0]}"
        remedy = 'Some sets need a configuration: "nyu-mll/glue:cola".'
        if not reached:
            cause = "no such file or folder, not in the cache of the hub, and the hub cannot be reached"
            remedy = "Check the path, or the network."
        raise LissomError(801, cause[:400].rstrip("."), place=name, remedy=remedy) from None
    splits = {split: found[split] for split in found if split in _SPLITS} or dict(found)
    return _Source(name, {split: read_object(one, split) for split, one in _named(splits, name).items()})


def _reached() -> bool:
    """Whether the hub answers at all, within seconds; `datasets` itself would ask for half a minute."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return True  # nothing is asked then: `datasets` says so at once
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception:  # noqa: BLE001  of whatever client and proxy
        return False
    return True


@contextlib.contextmanager
def _cache_alone() -> Iterator[None]:
    """`datasets` takes what it loaded before and asks nobody."""
    import datasets
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def _notes(found: _Source, mapping: Mapping[str, str], names: Mapping[str, None]) -> list[str]:
    notes = []
    if list(found.tables) == [WHOLE]:
        notes.append("One table without splits: it answers for every split, so nothing measured on it is held out.")
    rest = [name for name in names if name not in mapping.values()]
    if rest and not {"label", "tags", "answers"} & set(mapping):
        notes.append(f"No label column was found. Columns that were not used: {', '.join(rest)}.")
    return notes


def _unlabelled(splits: Mapping[str, Mapping[str, list[Any]]]) -> list[str]:
    """A note for every split that lacks the labels that another one has; its column may just be misspelt."""
    labelled = [name for name, columns in splits.items() if not {"label", "tags"}.isdisjoint(columns)]
    return [f"{name} has no labels." for name in splits if labelled and name not in labelled]


def _overlaps(splits: Mapping[str, Mapping[str, list[Any]]]) -> list[str]:
    """A note for every two splits that share texts: what is measured on them would be too good."""
    keys = {name: _keys(columns) for name, columns in splits.items() if name in ("train", "validation", "test")}
    pairs = [(one, other) for one in keys for other in keys if _rank(one) < _rank(other)]
    shared = {pair: len(keys[pair[0]] & keys[pair[1]]) for pair in pairs}
    return [f"{count} texts of {other} also stand in {one}." for (one, other), count in shared.items() if count]


def _keys(columns: Mapping[str, list[Any]]) -> set[tuple[Any, ...]]:
    content = [columns[role] for role in ("text", "text_b", "question", "context") if role in columns]
    if "tokens" in columns:
        content = [[tuple(tokens) for tokens in columns["tokens"]]]
    return set(zip(*content, strict=True))


def _dataset(columns: Mapping[str, list[Any]]) -> datasets.Dataset:
    import datasets

    text, number = datasets.Value("string"), datasets.Value("int64")
    features: dict[str, Any] = {
        "tokens": datasets.List(text),
        "tags": datasets.List(number),
        "answers": {"text": datasets.List(text), "answer_start": datasets.List(number)},
        "label": number if all(isinstance(one, int) for one in columns.get("label", ())) else datasets.Value("float64"),
    }
    kinds = datasets.Features({name: features.get(name, text) for name in columns})
    return datasets.Dataset.from_dict(dict(columns), features=kinds)
