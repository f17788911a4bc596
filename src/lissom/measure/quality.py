"""How good the answers are, by the task: GLUE's choices, each a statistic that can be resampled.

Formulas agree with scikit-learn and scipy (tests compare them); they are written out because a weighted sum over
examples gives a thousand bootstrap resamples in one matrix product.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from lissom.errors import LissomError
from lissom.measure.hidden import TEXTS, hidden_tokens
from lissom.measure.loyalty import cosine
from lissom.measure.questions import best_answers, word_overlap
from lissom.measure.scores import Scores, additive, divide, ratio_of_sums
from lissom.measure.tagging import span_counts
from lissom.measure.windows import next_token_losses, read_through
from lissom.measure.written import Foreseen, foreseen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import datasets
    from numpy.typing import NDArray

    from lissom.data import Task
    from lissom.runtime import Runner, Text

Answers = Any  # logits (texts, classes) or (texts, words, tags), answer texts, losses or counts (examples, 2), Foreseen


def texts_of(rows: datasets.Dataset, task: Task) -> list[Text]:
    """What a runner reads: texts, pairs, word lists, (question, context), or (text, target); for embeddings the first
    texts of all pairs, then the second ones."""
    if task.kind == "tagging":
        return [list(words) for words in rows["tokens"]]
    if task.kind == "question_answering":
        return list(zip(rows["question"], rows["context"], strict=True))
    if task.kind == "embedding":
        return [text for name in ("text", "text_b") if name in rows.column_names for text in rows[name]]
    if task.kind == "text_to_text":
        return list(zip(rows["text"], rows["target"], strict=True))
    if "text_b" in rows.column_names:
        return list(zip(rows["text"], rows["text_b"], strict=True))
    return list(rows["text"])


def answer(runner: Runner, texts: list[Text], task: Task, tokens_per_batch: int | None = None) -> Answers:
    """The runner's answers, with classes in the order of `task.labels`.

    Raises LissomError LSM-826 when only one of the two is about embeddings, LSM-851 when model and data have different
    numbers of classes.
    """
    embeds, kind = runner.sentence is not None, task.kind.replace("_", " ")
    if embeds != (task.kind == "embedding"):
        cause = f"the model answers {'embeddings' if embeds else 'no embeddings'}, the data is for {kind}"
        raise LissomError(826, cause, remedy="Train a head first: lissom finetune MODEL --data ..." if embeds else "")
    if task.kind == "question_answering":
        return best_answers(runner, texts, tokens_per_batch)
    if task.kind == "language_modelling":
        return next_token_losses(runner, texts)
    if task.kind == "masked_language_modelling":
        return hidden_tokens(runner, texts)
    if task.kind == "text_to_text":
        return foreseen(runner, texts)
    logits = runner.predict(texts, tokens_per_batch=tokens_per_batch)
    if not task.labels:
        return logits
    order = _label_order(runner.labels, task.labels, logits.shape[-1])
    return logits[..., order]


def ask_for(kind: str) -> Callable[[Runner, Sequence[Text]], object]:
    """How a runner is asked where only its time or memory counts, for a kind of task."""
    if kind == "question_answering":
        return best_answers
    if kind == "text_to_text":
        return foreseen
    return read_through if kind.endswith("language_modelling") else lambda runner, texts: runner.predict(texts)


def scores_of(answers: Answers, rows: datasets.Dataset, task: Task) -> list[Scores]:
    """Every quality statistic of the task, the one that judges it (`task.metric`) first.

    Raises LissomError LSM-852 when the rows have no labels.
    """
    found = {one.name: one for one in _SCORES[task.kind](answers, rows, task)}
    return sorted(found.values(), key=lambda one: one.name != task.metric)


def _classified(logits: NDArray[Any], rows: datasets.Dataset, task: Task) -> list[Scores]:
    gold, said = np.asarray(_column(rows, "label"), np.int64), logits.argmax(-1)
    classes = logits.shape[-1]
    f1 = f'F1 of the label "{task.labels[1]}".' if classes == 2 and task.labels else "Macro F1, mean over the labels."
    return [
        accuracy(gold, said),
        additive("f1", _counts(gold, said, classes), _binary_f1 if classes == 2 else _macro_f1, f1),
        additive("mcc", _counts(gold, said, classes), _matthews, "Matthews correlation (Gorodkin 2004)."),
    ]


def _regressed(logits: NDArray[Any], rows: datasets.Dataset, task: Task) -> list[Scores]:
    gold, said = np.asarray(_column(rows, "label"), np.float64), logits[:, 0].astype(np.float64)
    return [pearson(gold, said), spearman(gold, said)]


def _tagged(logits: NDArray[Any], rows: datasets.Dataset, task: Task) -> list[Scores]:
    gold = [np.asarray(tags, np.int64) for tags in _column(rows, "tags")]
    outside = task.labels.index("O") if "O" in task.labels else 0
    said = []
    for one, tags in zip(logits, gold, strict=True):
        cut = np.isnan(one[: len(tags)]).any(-1)  # words beyond max_length get no answer: outside of every span
        said.append(np.where(cut, outside, np.nan_to_num(one[: len(tags)], nan=-np.inf).argmax(-1)))
    right = np.array([[(a == b).sum(), len(b)] for a, b in zip(said, gold, strict=True)])
    found = [additive("accuracy", right, ratio_of_sums, "Share of words with the right tag; examples are sentences.")]
    if any(label[:2] in ("B-", "I-") for label in task.labels):
        counts = np.array([span_counts(a.tolist(), b.tolist(), task.labels) for a, b in zip(gold, said, strict=True)])
        how = "F1 of whole spans with the right type and both ends, as conlleval counts them, over all sentences."
        found.append(additive("f1", counts, _span_f1, how))
    return found


def _answered(answers: list[str], rows: datasets.Dataset, task: Task) -> list[Scores]:
    golds = [one["text"] for one in _column(rows, "answers")]
    overlap = np.array([[word_overlap(said, gold)] for said, gold in zip(answers, golds, strict=True)])
    how = "SQuAD's F1: words shared with the best of the given answers, without case, articles and punctuation."
    return [additive("f1", np.hstack([overlap, np.ones_like(overlap)]), ratio_of_sums, how)]


def _embedded(vectors: NDArray[Any], rows: datasets.Dataset, task: Task) -> list[Scores]:
    """Nothing for texts without labels: they are compared with the reference alone."""
    if task.metric == "cosine":
        return []
    gold, said = np.asarray(_column(rows, "label"), np.float64), cosine(*np.split(vectors, 2))
    how = "correlation of the cosines of the texts of pairs with their labels."
    found = {"Spearman rank": spearman(gold, said), "Pearson": pearson(gold, said)}
    return [dataclasses.replace(one, how=f"{name} {how}") for name, one in found.items()]


def _modelled(losses: NDArray[Any], rows: datasets.Dataset, task: Task) -> list[Scores]:
    how = (
        "Exponential of the mean next-token loss over windows of the running text; first tokens of windows not counted."
    )
    return [additive("perplexity", losses, lambda sums: np.exp(ratio_of_sums(sums)), how)]


def _written(answers: Foreseen, rows: datasets.Dataset, task: Task) -> list[Scores]:
    how = f"of the tokens of the target, each given those before it, in at most {TEXTS} pairs, which are the examples."
    losses, right = answers.counts[:, [0, 2]], answers.counts[:, [1, 2]]
    return [
        additive("perplexity", losses, lambda sums: np.exp(ratio_of_sums(sums)), f"Exponential of the mean loss {how}"),
        additive("accuracy", right, ratio_of_sums, f"Share named {how}"),
    ]


def _unhidden(counts: NDArray[Any], rows: datasets.Dataset, task: Task) -> list[Scores]:
    how = (
        "Share of hidden tokens that the model names: 15 % of each text's, always the same ones, all behind the mask "
        f"token, in at most {TEXTS} texts, which are the examples."
    )
    return [additive("accuracy", counts, ratio_of_sums, how)]


_SCORES: dict[str, Callable[[Answers, datasets.Dataset, Task], list[Scores]]] = {
    "classification": _classified,
    "regression": _regressed,
    "tagging": _tagged,
    "question_answering": _answered,
    "language_modelling": _modelled,
    "masked_language_modelling": _unhidden,
    "text_to_text": _written,
    "embedding": _embedded,
}


def accuracy(gold: NDArray[Any], said: NDArray[Any]) -> Scores:
    """Share of equal labels. gold, said: (n,)."""
    rows = np.stack([gold == said, np.ones(len(gold))], axis=1)
    return additive("accuracy", rows, ratio_of_sums, "Share of texts with the right label.")


def pearson(gold: NDArray[np.float64], said: NDArray[np.float64]) -> Scores:
    """Pearson correlation. gold, said: (n,)."""
    x, y = gold - gold.mean(), said - said.mean()  # centred once, so that the sums of squares keep their digits
    rows = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)
    return additive("pearson", rows, _correlation, "Pearson correlation of answers and labels.")


def spearman(gold: NDArray[np.float64], said: NDArray[np.float64]) -> Scores:
    """Spearman correlation: Pearson of the ranks, equal values sharing the mean rank. gold, said: (n,)."""

    def value(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = _ranks(gold, weights), _ranks(said, weights)
        sums = [weights, weights * x, weights * y, weights * x * x, weights * y * y, weights * x * y]
        return _correlation(np.stack([one.sum(1) for one in sums], axis=1))

    return Scores(name="spearman", n=len(gold), how="Spearman rank correlation of answers and labels.", value=value)


def _ranks(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean rank of each value among all draws, centred: (times, n). A value drawn twice is a tie with itself."""
    order = np.argsort(values, kind="stable")
    _, starts, group = np.unique(values[order], return_index=True, return_inverse=True)
    together = np.add.reduceat(weights[:, order], starts, axis=1)
    middle = np.cumsum(together, axis=1) - together / 2 - weights.sum(1, keepdims=True) / 2
    ranks = np.empty_like(weights)
    ranks[:, order] = middle[:, group]
    return ranks


def _correlation(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """sums: (times, 6) of 1, x, y, xx, yy, xy."""
    n, x, y, xx, yy, xy = sums.T
    spread = (n * xx - x * x) * (n * yy - y * y)
    safe = np.where(spread > 1e-12 * (n * xx * n * yy), spread, 0)
    return divide(n * xy - x * y, np.sqrt(safe))


def _counts(gold: NDArray[Any], said: NDArray[Any], classes: int) -> NDArray[np.float64]:
    """One-hot rows (n, 3 * classes): right, said, gold."""
    one_hot = np.eye(classes)
    return np.hstack([one_hot[gold] * (gold == said)[:, None], one_hot[said], one_hot[gold]])


def _macro_f1(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the classes that occur in gold or answers."""
    right, said, gold = np.split(sums, 3, axis=1)
    return np.asarray(np.nanmean(divide(2 * right, said + gold), axis=1))


def _binary_f1(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return _span_f1(sums[:, 1::2])


def _span_f1(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """sums: (times, 3) of right, said, gold. 0 where nothing was there and nothing was said."""
    right, said, gold = sums.T
    return divide(2 * right, said + gold, empty=0)


def _matthews(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """0 where gold or answers have one class only, as scikit-learn has it."""
    right, said, gold = np.split(sums, 3, axis=1)
    n = said.sum(1)
    top = right.sum(1) * n - (said * gold).sum(1)
    spread = (n * n - (said * said).sum(1)) * (n * n - (gold * gold).sum(1))
    return divide(top, np.sqrt(spread), empty=0)


def _column(rows: datasets.Dataset, name: str) -> Any:
    if name not in rows.column_names:
        raise LissomError(
            852, f"this split has no {name}s to compare answers with", remedy="Measure on a split with labels."
        )
    return rows[name]


def _label_order(ours: tuple[str, ...], wanted: tuple[str, ...], classes: int) -> list[int]:
    """Which column of the logits answers for each label of the data: by name if all names match, else by place."""
    if classes != len(wanted):
        raise LissomError(
            851,
            f"the model has {classes} classes, the data {len(wanted)} labels ({', '.join(wanted)})",
            remedy="Give data with the model's labels.",
        )
    folded = [name.casefold() for name in ours]
    names = [name.casefold() for name in wanted]
    return [folded.index(name) for name in names] if sorted(folded) == sorted(names) else list(range(classes))
