"""What a data set asks of a model, and its splits with normalised columns."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from lissom.errors import LissomError

if TYPE_CHECKING:
    import datasets

Kind = Literal[
    "classification",
    "regression",
    "tagging",
    "question_answering",
    "language_modelling",
    "masked_language_modelling",  # running text for a model that names hidden tokens; the model says so, not the data
    "text_to_text",  # a text, and the one that is to be written: a summary, a translation
    "embedding",  # texts, or pairs with their similarity, for a model without a head; the model says so too
]

WHOLE = "all"  # the one split of data that came without splits

# GLUE's own choice, by the set's name; of two figures the first one that GLUE lists or that tells more.
# Source: Wang et al. 2019, table 1.
_METRICS = {"cola": "mcc", "mrpc": "f1", "qqp": "f1", "stsb": "pearson"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked. labels: names in the order of the model's outputs; empty where there are none."""

    kind: Kind
    labels: tuple[str, ...] = ()
    metric: str

    @property
    def column(self) -> str:
        """The column that answers are compared with; that of the texts where they need no other."""
        if "language_modelling" in self.kind or self.metric == "cosine":
            return "text"
        columns = {"tagging": "tags", "question_answering": "answers", "text_to_text": "target"}
        return columns.get(self.kind, "label")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """A task and its splits.

    splits: by name. Columns: `text`, for pairs also `text_b`, and `label` (int64, an index into `task.labels`, or
        float64); or `tokens` and `tags`; or `question`, `context` and `answers`; or `text` and `target`; or `text`
        alone. A split without labels has no `label` or `tags` column. Data without splits has the one split "all".
    columns: normalised name -> name in the source.
    digest: sha256 of the normalised contents; the same data in another file format has the same.
    notes: what a person should know: rows left out, texts in two splits, columns that were not used.
    """

    name: str
    task: Task
    splits: dict[str, datasets.Dataset]
    columns: dict[str, str]
    digest: str
    notes: tuple[str, ...] = ()

    def split(self, name: str) -> datasets.Dataset:
        """The rows of a split; data without splits answers for every name. Raises LissomError 817."""
        if name in self.splits:
            return self.splits[name]
        if list(self.splits) == [WHOLE]:
            return self.splits[WHOLE]
        cause = f'there is no split "{name}"'
        raise LissomError(817, cause, place=self.name, remedy=f"There is: {', '.join(self.splits)}.")

    def labelled(self, name: str) -> bool:
        """Whether the rows of a split hold what answers are compared with. Raises LissomError 817."""
        return self.task.column in self.split(name).column_names

    def for_embedding(self) -> Data:
        """The same rows for a model that answers embeddings; as they are where they ask for something else.

        Texts and pairs without labels ask that embeddings stay where they are (`cosine`), pairs with a number each that
        their cosines rank as the numbers do (`spearman`, as for STS-B).
        """
        scored = self.task.kind == "regression" and "text_b" in self.columns
        if not scored and self.task.kind != "language_modelling":
            return self
        return dataclasses.replace(self, task=Task(kind="embedding", metric="spearman" if scored else "cosine"))

    def with_validation(self, seed: int, share: float = 0.1) -> Data:
        """This data, with a validation split cut from train (from everything, for data without splits) if it has none.

        share: of the rows that are taken, 0 to 1. Classes keep their shares where each has two rows or more.
        `test` is never touched. Raises LissomError 817 when there is no train split, 809 when it has one row.
        """
        if "validation" in self.splits:
            return self
        rows = self.split("train")
        count = len(rows)
        taken = max(1, round(share * count))
        if taken >= count:
            raise LissomError(809, f"{count} rows are too few to cut a validation split from", place=self.name)
        train, validation = _cut(rows, taken, seed, len(self.task.labels) if self.task.kind == "classification" else 0)
        splits = {
            "train": rows.select(train),
            "validation": rows.select(validation),
            **{name: one for name, one in self.splits.items() if name not in ("train", WHOLE)},
        }
        note = f"No validation split: {taken} of {count} rows of train were set aside for it (seed {seed})."
        return dataclasses.replace(self, splits=splits, digest=digest(splits), notes=(*self.notes, note))


def metric(kind: Kind, name: str, labels: tuple[str, ...]) -> str:
    """The name of the reading that judges this task.

    name: of the data set; its last part is compared with GLUE's sets.
    """
    if kind == "tagging":
        spans = any(re.match(r"[BI]-", label) for label in labels)
        return "f1" if spans else "accuracy"
    usual = {
        "classification": "accuracy",
        "regression": "pearson",
        "question_answering": "f1",
        "language_modelling": "perplexity",
        "masked_language_modelling": "accuracy",
        "text_to_text": "perplexity",
        "embedding": "cosine",
    }[kind]
    glue = _METRICS.get(re.sub(r"[^a-z]", "", re.split(r"[/:]", name.lower())[-1]), usual)
    fits = (glue == "pearson") == (kind == "regression") and (glue != "f1" or len(labels) == 2)
    return glue if fits and kind in ("classification", "regression") else usual


def digest(splits: Mapping[str, datasets.Dataset]) -> str:
    """sha256 over the rows of all splits, in order, as canonical JSON."""
    found = hashlib.sha256()
    for name in sorted(splits):
        found.update(f"{name}\n".encode())
        for row in splits[name]:
            found.update(json.dumps(row, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode())
            found.update(b"\n")
    return found.hexdigest()


def _cut(rows: datasets.Dataset, taken: int, seed: int, classes: int) -> tuple[list[int], list[int]]:
    """Row numbers of what stays and what is taken, both in order; stratified when `classes` are given and it can be."""
    import numpy as np
    from sklearn.model_selection import train_test_split

    labels = None
    if classes and "label" in rows.column_names:
        counts = np.bincount(rows["label"][:], minlength=classes)
        if counts[counts > 0].min() >= 2 and min(taken, len(rows) - taken) >= (counts > 0).sum():
            labels = rows["label"][:]
    stays, goes = train_test_split(range(len(rows)), test_size=taken, random_state=seed, stratify=labels)
    return sorted(stays), sorted(goes)
