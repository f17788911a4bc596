"""Checked rows: every text readable, every label known, every fault named by file, row and column."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lissom.data.labels import MISSING, Value, index_labels, is_number, plain, too_many_missing
from lissom.data.read import Table, is_missing, shown
from lissom.data.task import Kind
from lissom.errors import LissomError

Columns = dict[str, list[Any]]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Normalised columns of every split, and what they are for."""

    kind: Kind
    labels: tuple[str, ...]
    splits: dict[str, Columns]
    notes: tuple[str, ...] = ()


def text_rows(tables: Mapping[str, Table], mapping: Mapping[str, str]) -> Rows:
    """Texts alone. Blank rows separate paragraphs in running text; they are left out and counted."""
    splits, notes = {}, []
    for split, table in tables.items():
        cells = table.columns[mapping["text"]]
        keep = [row for row, cell in enumerate(cells) if not is_missing(cell)] if "text_b" not in mapping else None
        splits[split] = _texts(table, mapping, keep)
        if keep is not None and len(keep) < len(cells):
            notes.append(f"{len(cells) - len(keep)} blank rows of {table.place} were left out.")
        if not splits[split]["text"]:
            raise LissomError(809, "holds no texts", place=table.place)
    return Rows("language_modelling", (), splits, tuple(notes))


def labelled_rows(
    tables: Mapping[str, Table],
    mapping: Mapping[str, str],
    declared: Sequence[str] | None,
    model_labels: Sequence[str] | None,
) -> Rows:
    """Texts or pairs with one label each: a class, or a number to predict.

    A split without any label (or with -1 alone) stays unlabelled. Single rows of class -1 are left out and counted.
    """
    column = mapping.get("label", "")
    values = _values(tables, column)
    declared = declared or next((table.names[column] for table in tables.values() if column in table.names), None)
    if not values and model_labels is None:
        rows = text_rows(tables, mapping)
        return dataclasses.replace(rows, notes=(*rows.notes, "No split has labels."))
    every = {value for found in values.values() for value in found}
    splits: dict[str, Columns] = {}
    if is_number(every, declared, model_labels):
        for split, table in tables.items():
            splits[split] = _texts(table, mapping) | _numbers(table, column, values.get(split))
        return Rows("regression", (), splits)
    keep, notes = _without_missing(tables, values, column, declared, coded=bool(declared or model_labels))
    every = {value for split, kept in keep.items() for value in map(values[split].__getitem__, kept)}
    labels, index = index_labels(every, sum(map(len, keep.values())), declared, model_labels)
    for split, table in tables.items():
        splits[split] = _texts(table, mapping, keep.get(split))
        if split in values:
            cells = zip(keep[split], map(values[split].__getitem__, keep[split]), strict=True)
            splits[split]["label"] = _indices(index, cells, labels, table, column)
    _two_classes(tables, splits, column, labels)
    return Rows("classification", labels, splits, tuple(notes))


def tagged_rows(
    tables: Mapping[str, Table],
    mapping: Mapping[str, str],
    declared: Sequence[str] | None,
    model_labels: Sequence[str] | None,
) -> Rows:
    """Lists of words, each word with a tag."""
    column = mapping.get("tags", "")
    splits: dict[str, Columns] = {}
    tags: dict[str, list[list[Value]]] = {}
    for split, table in tables.items():
        splits[split] = {"tokens": list(_tokens(table, mapping["tokens"]))}
        if column in table.columns and not all(cell is None for cell in table.columns[column]):
            tags[split] = list(_tags(table, column, splits[split]["tokens"]))
    declared = declared or next((table.names[column] for table in tables.values() if column in table.names), None)
    if not tags:
        cause = "no split has tags"
        raise LissomError(812, cause, place=", ".join(table.place for table in tables.values()))
    every = {value for found in tags.values() for row in found for value in row}
    labels, index = index_labels(every, sum(len(row) for one in tags.values() for row in one), declared, model_labels)
    for split, found in tags.items():
        splits[split]["tags"] = [
            _indices(index, ((row, value) for value in values), labels, tables[split], column)
            for row, values in enumerate(found)
        ]
    return Rows("tagging", labels, splits)


def question_rows(tables: Mapping[str, Table], mapping: Mapping[str, str]) -> Rows:
    """Questions on a paragraph; answers are spans of it, none when it cannot be answered."""
    splits: dict[str, Columns] = {}
    for split, table in tables.items():
        splits[split] = {role: _readable(table, mapping[role]) for role in ("question", "context")}
        cells = zip(table.columns[mapping["answers"]], splits[split]["context"], strict=True)
        splits[split]["answers"] = [
            _answer(table, row, mapping["answers"], cell, context) for row, (cell, context) in enumerate(cells)
        ]
    return Rows("question_answering", (), splits)


def written_rows(tables: Mapping[str, Table], mapping: Mapping[str, str]) -> Rows:
    """Texts, each with the one that is to be written."""
    remedy = f"If it is a class, name it: --column label={mapping['target']}."
    splits: dict[str, Columns] = {}
    for split, table in tables.items():
        for row, cell in enumerate(table.columns[mapping["target"]]):
            if not isinstance(cell, str) and not is_missing(cell):
                raise table.fault(814, row, mapping["target"], f"{shown(cell)} is no text", remedy)
        splits[split] = {role: _readable(table, mapping[role]) for role in ("text", "target")}
    return Rows("text_to_text", (), splits)


def _texts(table: Table, mapping: Mapping[str, str], keep: Sequence[int] | None = None) -> Columns:
    return {role: _readable(table, mapping[role], keep) for role in ("text", "text_b") if role in mapping}


def _readable(table: Table, column: str, keep: Sequence[int] | None = None) -> list[str]:
    """The texts of a column (of its rows `keep`), each checked."""
    cells = table.columns[column]
    rows = range(len(cells)) if keep is None else keep
    return [_text(table, row, column, cells[row]) for row in rows]


def _text(table: Table, row: int, column: str, cell: object, what: str = "text") -> str:
    if is_missing(cell):
        cause = f"the {what} is empty" if isinstance(cell, str) else f"the {what} is missing"
        raise table.fault(810, row, column, cause, "Fill it in or leave the row out.")
    if not isinstance(cell, str):
        raise table.fault(814, row, column, f"{shown(cell)} is no {what}", "Give it in quotes.")
    if "\0" in cell:
        raise table.fault(814, row, column, f"the {what} holds a NUL character", "Take it out.")
    if not cell.isascii():
        try:
            cell.encode()
        except UnicodeEncodeError as broken:
            cause = f"the {what} holds half a surrogate pair at character {broken.start + 1}"
            raise table.fault(814, row, column, cause, "It was cut or decoded wrongly; take it out.") from None
    return cell


def _plain_column(table: Table, column: str) -> list[Value | None]:
    found: list[Value | None] = []
    for row, cell in enumerate(table.columns[column]):
        try:
            found.append(plain(cell))
        except ValueError as cause:
            raise table.fault(813, row, column, f"the label {cause}") from None
    return found


def _values(tables: Mapping[str, Table], column: str) -> dict[str, list[Value]]:
    """The labels of every split that has any; in such a split no label may be missing."""
    values: dict[str, list[Value]] = {}
    for split, table in tables.items():
        found = _plain_column(table, column) if column in table.columns else []
        if all(value is None or value == MISSING for value in found):
            continue
        if None in found:
            cause = "the label is missing"
            remedy = "Add it, leave the row out, or leave the whole split without labels."
            raise table.fault(812, found.index(None), column, cause, remedy)
        values[split] = [value for value in found if value is not None]
    return values


def _numbers(table: Table, column: str, values: Sequence[Value] | None) -> Columns:
    if values is None:
        return {}
    for row, value in enumerate(values):
        if isinstance(value, str):
            raise table.fault(813, row, column, f"the label {shown(value)} is no number")
    return {"label": [float(value) for value in values]}


def _without_missing(
    tables: Mapping[str, Table],
    values: Mapping[str, Sequence[Value]],
    column: str,
    declared: Sequence[str] | None,
    *,
    coded: bool,
) -> tuple[dict[str, list[int]], list[str]]:
    """The rows of each labelled split that have a class, and a note for each split that lost some to -1.

    coded: labels are known to count from 0, so that -1 is no class; else their values tell.
    """
    rest = {value for found in values.values() for value in found} - {MISSING}
    coded = coded or (len(rest) > 1 and rest == set(range(len(rest))))
    keep, notes = {}, []
    for split, found in values.items():
        keep[split] = [row for row, value in enumerate(found) if value != MISSING or not coded]
        lost = len(found) - len(keep[split])
        if lost and not declared and too_many_missing(lost, len(found)):
            cause = f"{lost} of {len(found)} labels are -1, which may be a class or mean no label"
            remedy = "Name the classes: label_names in meta.json, or texts as labels."
            raise tables[split].fault(813, found.index(MISSING), column, cause, remedy)
        if lost:
            notes.append(f"{lost} of {len(found)} rows of {tables[split].place} have no label (-1) and were left out.")
    return keep, notes


def _indices(
    index: Mapping[Value, int], cells: Iterable[tuple[int, Value]], labels: Sequence[str], table: Table, column: str
) -> list[int]:
    """The index of each label; `cells` are rows and values."""
    found = []
    for row, value in cells:
        if value not in index:
            listed = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
            whole = "" if isinstance(value, str) else f" or an index from 0 to {len(labels) - 1}"
            raise table.fault(
                811, row, column, f"label {shown(value)} is not one of {listed}{whole}", "Correct the row."
            )
        found.append(index[value])
    return found


def _two_classes(
    tables: Mapping[str, Table], splits: Mapping[str, Columns], column: str, labels: Sequence[str]
) -> None:
    """Nothing can be learned from one class; a small test split may well hold only one."""
    learned = "train" if "train" in splits else next(iter(splits))
    found = sorted(set(splits[learned].get("label", (0, 1))))
    if len(labels) < 2 or (learned == "train" and len(found) < 2):
        name = labels[found[0]]
        place = f'{tables[learned].place} column "{column}"'
        raise LissomError(816, f'all rows have one label, "{name}"', place=place, remedy="Add rows of another class.")


def _tokens(table: Table, column: str) -> Iterator[list[str]]:
    for row, cell in enumerate(table.columns[column]):
        if not isinstance(cell, list) or not cell:
            raise table.fault(815, row, column, f"{shown(cell)} is no list of words")
        yield [_text(table, row, column, word, "word") for word in cell]


def _tags(table: Table, column: str, tokens: Sequence[Sequence[str]]) -> Iterator[list[Value]]:
    for row, (cell, words) in enumerate(zip(table.columns[column], tokens, strict=True)):
        if not isinstance(cell, list):
            raise table.fault(815, row, column, f"{shown(cell)} is no list of tags")
        if len(cell) != len(words):
            raise table.fault(815, row, column, f"{len(words)} words have {len(cell)} tags", "Give each word one tag.")
        found: list[Value] = []
        for one in cell:
            value = plain(one) if isinstance(one, str | int) else None
            if value is None:
                raise table.fault(812, row, column, f"{shown(one)} is no tag")
            found.append(value)
        yield found


def _answer(table: Table, row: int, column: str, cell: object, context: str) -> dict[str, list[Any]]:
    """One row's answers as two lists; both {"text": [...], "answer_start": [...]} and [{"text", "start"}] are read."""
    if isinstance(cell, dict):
        texts, starts = cell.get("text"), cell.get("answer_start", cell.get("start"))
    elif isinstance(cell, list) and all(isinstance(one, dict) for one in cell):
        texts = [one.get("text") for one in cell]
        starts = [one.get("answer_start", one.get("start")) for one in cell]
    else:
        raise table.fault(828, row, column, f"{shown(cell)} holds no answers", 'Give {"text": [...], "start": [...]}.')
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        raise table.fault(828, row, column, "the lists text and start differ in length, or one is not there")
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not isinstance(start, int) or not text or start < 0:
            raise table.fault(828, row, column, f"{shown(text)} at {shown(start)} is no answer")
        if context[start : start + len(text)] != text:
            cause = f"the context does not hold {shown(text)} at character {start}"
            raise table.fault(828, row, column, cause, "Starts count characters from 0.")
    return {"text": list(texts), "answer_start": list(starts)}
