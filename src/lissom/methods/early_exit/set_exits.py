"""Set exits: choose the rule by which texts leave, and thresholds that keep as much quality as is wished.

All texts of the validation split are answered by all exits. For a wish, one threshold for all exits falls from where
nobody leaves, as long as the score of what is then answered keeps the wished share of the teacher's: the lowest one
before the first that does not is taken. Without labels, the share of texts that are answered as the last layer does.
Thresholds between which no text changes its exit are one.

By agreement no quality is judged and no label read: a wish is the probability with which a text gets the class of the
last layer, and holds for new texts too; see `lissom.stats.exits.ExitTable.agreeing`. It asks for validation texts that
chose nothing before: not the epoch of a `tune` of several epochs either.

Sources of the rules: see `lissom.nn.exit_rules`. Choosing on validation data, and stopping at the first failure:
Teerapittayanon et al. 2016 (BranchyNet), section 3.3; Schuster et al. 2022 (CALM), section 4.2, but without its
statistical test. Agreement: Schuster et al. 2021 (CAT), section 4.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field

from lissom import edits
from lissom.anatomy import Anatomy
from lissom.data import encode
from lissom.data.batches import pad
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Stage
from lissom.nn.exit_rules import NOBODY, RULES
from lissom.stats.exits import ExitTable, exit_table
from lissom.train.score import scored

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_log = logging.getLogger("lissom")
_ROWS = 64  # a forward
_STEPS = 400  # thresholds that are tried at most
_Share = Annotated[float, Field(gt=0, le=2)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetExits(Method):
    """Choose the rule and thresholds of a model with exits, as named operating points."""

    name: ClassVar[str] = "set_exits"
    stage: ClassVar[Stage] = Stage.DYNAMIC
    speed: ClassVar[str] = "faster in torch and ONNX Runtime by the layers that texts leave out, at any batch size"
    source: ClassVar[str] = "FastBERT, DeeBERT and PABEE (2020); PCEE-BERT (2022); BERxiT (2021); Sun et al. 2021"

    rule: Annotated[
        Literal["confidence", "entropy", "patience", "patience_confidence", "vote", "learned"],
        Field(description="how sure an answer is; learned asks the judge of `add_exits`"),
    ] = "confidence"
    constant: Annotated[
        float | None,
        Field(
            ge=0,
            le=100,
            description="of patience: how near two numbers are that agree; of patience_confidence: how sure an exit is "
            "that counts; of vote: power of the exits so far",
        ),
    ] = None
    keep: Annotated[
        dict[str, _Share],
        Field(description="names of operating points, and the share of the teacher's quality that each keeps"),
    ] = dataclasses.field(default_factory=lambda: {"accurate": 0.995, "balanced": 0.99, "fast": 0.97})
    by: Annotated[
        Literal["quality", "agreement"],
        Field(
            description="what `keep` asks for: quality on the validation texts; or the probability of the last layer's "
            "class, which is guaranteed for new texts too"
        ),
    ] = "quality"
    use: Annotated[str, Field(description="the point that holds where nobody asks for another")] = "balanced"
    threshold: Annotated[
        float | None, Field(description="one for all exits, instead of `keep`; the point is called fixed")
    ] = None

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-715 for a model that texts cannot leave early, LSM-317 without validation texts, LSM-315 for a
        point in use that has no wish."""
        edits.exit_stack(anatomy)
        if self.threshold is not None:
            return
        if self.by == "agreement" and cast("Any", anatomy.model.config).num_labels == 1:
            cause = "by agreement compares classes, and the model gives a number"
            raise LissomError(715, cause, place="by", remedy="Use by: quality.")
        if self.use not in self.keep:
            raise LissomError(315, f"use names {self.use!r}, and keep has {', '.join(self.keep)}", place="use")
        if given.data is None or given.tokenizer is None or "validation" not in given.data.splits:
            cause = "thresholds are chosen on validation texts, and there are none"
            raise LissomError(317, cause, remedy="Give --data with a validation split, or a threshold.")

    def apply(self, editor: Editor, given: Given) -> dict[str, Any]:
        """Set rule and points. Gives back what each point did on the validation texts.

        Raises LSM-715 for a model without exits, or whose exits the rule cannot judge.
        """
        exits = edits.exits_of(editor.model)
        cause = "the model has no exits" if exits is None else edits.rule_misfit(editor.model, self.rule)
        if exits is None or cause:
            remedy = "Put `add_exits` before it, with judge: true for the rule learned; numbers need patience."
            raise LissomError(715, cause, place="set_exits", remedy=remedy)
        if self.threshold is not None:
            editor.apply(self._edit({"fixed": self.threshold}, len(exits.layers), "fixed"))
            return {"points": {"fixed": {"threshold": self.threshold}}}
        editor.apply(self._edit(dict.fromkeys(self.keep, NOBODY), len(exits.layers), self.use))
        found = self._judge(editor, given)
        points = {name: one["threshold"] for name, one in found.items()}
        for name, one in found.items():
            if not one["met"]:
                _log.warning(
                    "the point %s keeps %.3f, not %s, even where nobody leaves", name, one["kept"], one["wish"]
                )
        editor.apply(self._edit(points, len(exits.layers), self.use))
        return {"points": found}

    def preview(self, editor: Editor, given: Given) -> None:
        """The rule, at a point where nobody leaves."""
        exits = edits.exits_of(editor.model)
        if exits is not None:
            editor.apply(self._edit({"fixed": NOBODY}, len(exits.layers), "fixed"))

    def _edit(self, points: dict[str, float], count: int, use: str) -> edits.SetExits:
        every = {name: (float(one),) * count for name, one in points.items()}
        return edits.SetExits(rule=self.rule, constant=self.constant, points=every, use=use)

    def _judge(self, editor: Editor, given: Given) -> dict[str, dict[str, Any]]:
        """For each wish the threshold, and the quality and layers that it leaves."""
        batches, labels = _validation(editor, given)
        table = exit_table(editor.model, batches)
        if self.by == "agreement":
            return {name: _agreeing(table, wish) for name, wish in self.keep.items()}
        metric = "" if given.data is None else given.data.task.metric
        reference = 1.0
        if labels is not None:  # without a teacher: what the last layer answers
            whole = table.logits[-1] if given.teacher is None else _asked(given.teacher, batches)
            reference = scored(metric, whole, labels)
        tried: list[dict[str, Any]] = []
        for threshold in self._candidates(table):
            left = table.leave(torch.full((len(table.scores),), threshold))
            answers = table.answers(left)
            quality = _alike(answers, table) if labels is None else scored(metric, answers, labels)
            kept = quality / reference if reference > 0 else 0.0  # a share of less than nothing means nothing
            tried.append({"threshold": threshold, "kept": kept, "layers": table.mean_layers(left)})
        return {name: _lowest(tried, wish) for name, wish in self.keep.items()}

    def _candidates(self, table: ExitTable) -> list[float]:
        """Thresholds to try, from where nobody leaves downwards."""
        scores = torch.unique(table.scores)  # ascending
        if len(scores) > _STEPS and not RULES[self.rule].whole:
            scores = scores[torch.linspace(0, len(scores) - 1, _STEPS).round().long()]
        return [NOBODY, *scores.flip(0).tolist()]


def _agreeing(table: ExitTable, wish: float) -> dict[str, Any]:
    """The threshold that guarantees the wish, and what it does on the texts of `table`."""
    threshold = table.agreeing(wish)
    if threshold == NOBODY:
        count = len(table.scores[0])
        _log.warning("%d validation texts cannot guarantee that %s of texts agree: nobody leaves there", count, wish)
    left = table.leave(torch.full((len(table.scores),), threshold))
    kept = _alike(table.answers(left), table)
    return {"threshold": threshold, "kept": kept, "layers": table.mean_layers(left), "wish": wish, "met": kept >= wish}


def _lowest(tried: list[dict[str, Any]], wish: float) -> dict[str, Any]:
    """The last of `tried` before the first that misses the wish; the first of all where that one misses it."""
    best = tried[0]
    for one in tried:
        if one["kept"] < wish:
            break
        best = one
    return {**best, "wish": wish, "met": best["kept"] >= wish}


def _alike(answers: Tensor, table: ExitTable) -> float:
    """Share of the texts with the answer of the last layer; for numbers 1 - the variance that is lost."""
    last = table.logits[-1]
    if last.shape[-1] == 1:
        return float(1 - (answers - last).square().mean() / last.var().clamp_min(1e-12))
    return float((answers.argmax(-1) == last.argmax(-1)).double().mean())


def _validation(editor: Editor, given: Given) -> tuple[list[dict[str, Tensor]], Tensor | None]:
    """Batches of the validation split without labels, and the labels (texts,) if there are any."""
    data, tokenizer = cast("Any", given.data), cast("Any", given.tokenizer)
    rows = encode(data.split("validation"), tokenizer, data.task, given.max_length)
    labels = torch.tensor(rows["labels"]) if "labels" in rows.column_names else None
    listed = (rows.remove_columns("labels") if labels is not None else rows).to_list()
    order = sorted(range(len(listed)), key=lambda row: len(listed[row]["input_ids"]))
    batches = list(_padded([listed[row] for row in order], int(tokenizer.pad_token_id or 0), given.device))
    return batches, None if labels is None else labels[order]


def _padded(rows: list[Any], pad_id: int, device: str) -> Iterator[dict[str, Tensor]]:
    for start in range(0, len(rows), _ROWS):
        yield {name: one.to(device) for name, one in pad(rows[start : start + _ROWS], pad_id).items()}


def _asked(teacher: PreTrainedModel, batches: list[dict[str, Tensor]]) -> Tensor:
    """The teacher's logits (texts, classes)."""
    with torch.no_grad():
        found = [teacher(**{name: one.to(teacher.device) for name, one in batch.items()}) for batch in batches]
    return torch.cat([one["logits"].float().cpu() for one in found])
