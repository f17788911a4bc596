"""Early exit in a graph: its thresholds as an input with a default, and the proof at every operating point.

Beside what `lissom.export.parity` proves for the graph as nobody leaves it, torch and the graph must agree where texts
leave: at each stored point, where everybody leaves at the first exit, and where half of the texts leave at each exit;
for whole batches, and for one text at a time as for the batch. They must leave at the same exits, but where torch's own
score is as near to the threshold as `TIE`; of the others the answers must agree as those of a float32 graph. Graphs
with int8 layers are held to it with their activations left unrounded: rounding alone may move a text across a
threshold.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from lissom.edits import exits_of
from lissom.errors import LissomError
from lissom.export import graph as graphs
from lissom.export import parity
from lissom.nn.exit_rules import EVERYBODY, NOBODY
from lissom.nn.exits import Exits

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from lissom.export.onnx import Forward

INPUT = "exit_thresholds"
OUTPUTS = ("exit_layer",)
TIE = 1e-3


def settings(model: nn.Module) -> dict[str, Tensor]:
    """What a graph of `model` takes beside its texts: name and default."""
    exits = exits_of(model)
    return {} if exits is None or exits.rule is None else {INPUT: exits.thresholds()}


def at(forward: Forward, thresholds: Tensor | float) -> Forward:
    """`forward` with other thresholds, a number for all exits or one each; the model is the same."""
    made = copy.copy(forward)
    made.settings = {INPUT: torch.zeros_like(forward.settings[INPUT]) + thresholds}
    return made


def whole(forward: Forward) -> Forward:
    """`forward` where nobody leaves, without the outputs of exits; one without exits as it is."""
    if not forward.settings:
        return forward
    made = at(forward, NOBODY)
    made.outputs = tuple(name for name in forward.outputs if name not in OUTPUTS)
    return made


def about(model: nn.Module) -> dict[str, Any]:
    """What a manifest says for those who choose a point: nothing for a model without exits."""
    exits = exits_of(model)
    if exits is None or exits.rule is None:
        return {}
    points = {name: list(one) for name, one in exits.points.items()}
    said = {"input": INPUT, "layers": list(exits.layers), "depth": exits.depth, "rule": exits.rule}
    return {"exits": {**said, "use": exits.use, "points": points}}


def check(shipped: parity.Graph, path: Path, forward: Forward, given: list[dict[str, Tensor]]) -> dict[str, Any]:
    """Compare a graph with torch where texts leave; see the head of this module.

    shipped: what is compared.  path: the ONNX file it was made of.
    Returns figures by point. Raises LissomError LSM-911 where they differ, LSM-912 where it does not run.
    """
    bare = graphs.unrounded(path.read_bytes())
    if bare is not None:
        shipped, forward = dataclasses.replace(shipped, file=bare), parity.unrounded(forward)
    exits = cast("Exits", exits_of(forward.model))
    scores = [_scores(forward, one) for one in given]
    halves = torch.cat(scores, 1).median(1).values
    points = {name: torch.tensor(one) for name, one in exits.points.items()}
    points |= {"(everybody leaves)": torch.full_like(halves, EVERYBODY), "(halves leave)": halves}
    single = [{name: one[row : row + 1] for name, one in given[2].items()} for row in range(len(given[2]["input_ids"]))]
    figures = {}
    for name, thresholds in points.items():
        here = at(forward, thresholds)
        theirs, alone = shipped.answers(here, given), shipped.answers(here, single)
        ours = parity.torch_answers(here, given)
        pairs = zip(theirs, ours, scores, strict=True)
        largest = max(_agree(a, b, score, thresholds, f"{shipped.place}, {name}") for a, b, score in pairs)
        joined = [np.concatenate([one[i] for one in alone]) for i in range(2)]
        one = _agree(joined, theirs[2], scores[2], thresholds, f"{shipped.place}, {name}, one text at a time")
        layers = float(np.concatenate([one[1] for one in theirs]).mean())
        figures[name] = {"largest_difference": largest, "one_at_a_time": one, "mean_layers": layers}
    return figures


def _scores(forward: Forward, batch: dict[str, Tensor]) -> Tensor:
    """(exits, rows): the scores of all exits in torch, as if nobody left."""
    exits = cast("Exits", exits_of(forward.model))
    exits.collecting = True
    try:
        with torch.inference_mode():
            states = forward.model(**batch)["exit_states"]
            return exits.scores(states)
    finally:
        exits.collecting = False


def _agree(theirs: parity.Answers, ours: parity.Answers, scores: Tensor, thresholds: Tensor, place: str) -> float:
    """The largest difference of the rows that left at the same layer; see `check`."""
    same = theirs[1] == ours[1]
    near = ((scores - thresholds[:, None]).abs() < TIE).any(0).numpy()
    if not (same | near).all():
        row = int((~(same | near)).argmax())
        cause = f"a text leaves after layer {theirs[1][row]}, in torch after layer {ours[1][row]}"
        raise LissomError(911, cause, place=place, remedy=parity.REMEDY)
    return parity.agree([theirs[0][same]], [ours[0][same]], place, parity.ABSOLUTE)
