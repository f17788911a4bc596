"""How good a model is on validation rows: one number, higher is better, by which the best weights are chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from lissom.data.batches import Row, pad
from lissom.data.encode import IGNORED
from lissom.edits import exits_of

if TYPE_CHECKING:
    import datasets
    from torch import Tensor
    from transformers import PreTrainedModel

    from lissom.data import Task
    from lissom.nn.exits import Exits

_ROWS = 64  # a forward


def as_shown(task: Task, score: float | None) -> tuple[str, float | None]:
    """Name and value by which a person is told a validation score: one that is minus a loss becomes the loss."""
    if task.metric in _SCORES and task.kind != "question_answering":
        return task.metric, score
    return "loss", None if score is None else -score


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validation:
    """Scores a model on rows with labels.

    metric: accuracy, f1, mcc, pearson or spearman; for others, and for span and next-token tasks, the score is minus
        the loss of the model's class. f1 is that of class 1; for tags the micro-average over all tags but "O".
    outside: the number of the tag "O".
    exits: whether all exits of the model are scored, and the score is the mean of theirs and the last layer's.
    """

    rows: Sequence[Row]
    metric: str
    pad_id: int = 0
    outside: int | None = None
    exits: bool = False

    @classmethod
    def of(cls, task: Task, rows: datasets.Dataset, pad_id: int, *, exits: bool = False) -> Validation:
        """The judge of a task on its encoded validation rows."""
        outside = task.labels.index("O") if "O" in task.labels else None
        return cls(rows=rows.to_list(), metric=task.metric, pad_id=pad_id, outside=outside, exits=exits)

    def __call__(self, model: PreTrainedModel) -> float:
        """The score of `model`, which is left in eval mode."""
        model.eval()  # type: ignore[no-untyped-call]
        if self.metric not in _SCORES or "labels" not in self.rows[0]:
            return -self._loss(model)
        if self.exits:
            return self._mean_of_exits(model)
        answers, labels = [], []
        for batch, logits in self._answers(model):
            kept = batch["labels"] != IGNORED
            answers.append(logits[kept] if logits.dim() == 3 else logits)
            labels.append(batch["labels"][kept])
        return scored(self.metric, torch.cat(answers), torch.cat(labels), self.outside)

    def _mean_of_exits(self, model: PreTrainedModel) -> float:
        """The mean of the scores of all exits and the last layer, each asked about all rows."""
        exits = cast("Exits", exits_of(model))
        answers, labels = [], []
        exits.collecting = True
        try:
            for batch in self._batches():
                inputs = {name: one.to(model.device) for name, one in batch.items() if name != "labels"}
                with torch.no_grad():
                    said = model(**inputs)
                    found = [exits.answer(number, state) for number, state in enumerate(said["exit_states"])]
                answers.append(torch.stack([*found, said["logits"]]).float().cpu())
                labels.append(batch["labels"])
        finally:
            exits.collecting = False
        every, wanted = torch.cat(answers, 1), torch.cat(labels)
        return float(np.mean([scored(self.metric, one, wanted) for one in every]))

    def _answers(self, model: PreTrainedModel) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        for batch in self._batches():
            inputs = {name: one.to(model.device) for name, one in batch.items() if name != "labels"}
            with torch.no_grad():
                yield batch, model(**inputs)["logits"].float().cpu()

    def _loss(self, model: PreTrainedModel) -> float:
        """Mean over rows; over tokens for lists of labels."""
        total, count = 0.0, 0
        for batch in self._batches():
            with torch.no_grad():
                loss = float(model(**{name: one.to(model.device) for name, one in batch.items()})["loss"])
            labels = batch.get("labels")
            weight = len(batch["input_ids"]) if labels is None or labels.dim() == 1 else int((labels != IGNORED).sum())
            if weight:  # the mean over no token is NaN
                total, count = total + loss * weight, count + weight
        return total / max(count, 1)

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        order = sorted(range(len(self.rows)), key=lambda i: len(self.rows[i]["input_ids"]))
        for start in range(0, len(order), _ROWS):
            yield pad([self.rows[i] for i in order[start : start + _ROWS]], self.pad_id)


def scored(metric: str, answers: Tensor, labels: Tensor, outside: int | None = None) -> float:
    """The score of `answers` (rows, classes) by `labels` (rows,), higher is better. metric, outside: see `Validation`.

    A metric that is none of accuracy, f1, mcc, pearson and spearman counts as accuracy.
    """
    found, wanted = answers.numpy(), labels.numpy()
    guesses = found[:, 0] if metric in ("pearson", "spearman") else found.argmax(axis=-1)
    return _SCORES.get(metric, _accuracy)(guesses, wanted, outside)


def _accuracy(guesses: np.ndarray, wanted: np.ndarray, outside: int | None) -> float:
    return float(np.mean(guesses == wanted))


def _f1(guesses: np.ndarray, wanted: np.ndarray, outside: int | None) -> float:
    if outside is None:
        right, claimed, there = (guesses == 1) & (wanted == 1), guesses == 1, wanted == 1
    else:
        claimed, there = guesses != outside, wanted != outside
        right = (guesses == wanted) & there
    return 2 * float(right.sum()) / max(float(claimed.sum() + there.sum()), 1.0)


def _mcc(guesses: np.ndarray, wanted: np.ndarray, outside: int | None) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(wanted, guesses))


def _pearson(guesses: np.ndarray, wanted: np.ndarray, outside: int | None) -> float:
    if guesses.std() == 0 or wanted.std() == 0:  # not defined: no relation shown
        return 0.0
    return float(np.corrcoef(guesses, wanted)[0, 1])


def _spearman(guesses: np.ndarray, wanted: np.ndarray, outside: int | None) -> float:
    from scipy.stats import rankdata

    return _pearson(rankdata(guesses), rankdata(wanted), outside)


_SCORES = {"accuracy": _accuracy, "f1": _f1, "mcc": _mcc, "pearson": _pearson, "spearman": _spearman}
