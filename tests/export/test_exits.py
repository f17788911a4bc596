"""Early exit in one graph: real compaction, thresholds that a caller may set, and the proof."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from lissom.edits import Editor, SetExits
from lissom.errors import LissomError
from lissom.export import export, parity
from lissom.export.exits import INPUT
from lissom.nn.exit_rules import EVERYBODY, NOBODY
from tests import tiny
from tests.edits.test_exits import POINTS, made
from tests.export.made import only_graph, operators, packed


def exported(folder: Path, rule: str = "confidence", *, int8: bool = False, **changes: object):
    """A model whose texts leave, and the session of its graph."""
    editor = made(**changes)
    editor.apply(SetExits(rule=rule, points=POINTS, use="many"))
    model = packed(editor.model) if int8 else editor.model
    artifact = export(model, "onnx", folder, tokenizer=tiny.tokenizer())
    return model, artifact, onnxruntime.InferenceSession(str(only_graph(folder)))


def run(session, inputs, thresholds=None):
    feeds = {name: inputs[name].numpy() for name in ("input_ids", "attention_mask")}
    chosen = {} if thresholds is None else {INPUT: np.full(2, thresholds, np.float32)}
    return dict(zip(("logits", "exit_layer"), session.run(["logits", "exit_layer"], feeds | chosen), strict=True))


@pytest.mark.parametrize("variant", ["bert", "mpnet"])
def test_one_file_serves_every_threshold(variant: str, tmp_path: Path) -> None:
    model, artifact, session = exported(tmp_path / "out", variant=variant)
    assert [one.name for one in session.get_inputs()] == ["input_ids", "attention_mask"]  # a plain caller needs no more
    assert [one.name for one in session.get_overridable_initializers()] == [INPUT]
    for rows in (1, 32):
        inputs = tiny.batch(model, rows=rows)
        for threshold in (None, EVERYBODY, 0.4, 0.5, NOBODY):
            found = run(session, inputs, threshold)
            chosen = {} if threshold is None else {INPUT: torch.full((2,), threshold)}
            with torch.inference_mode():
                wanted = model(**inputs, **chosen)
            assert found["exit_layer"].tolist() == wanted["exit_layer"].tolist()
            np.testing.assert_allclose(found["logits"], wanted["logits"].numpy(), atol=1e-5)
    ordinary = Editor(model).model
    ordinary.exits.rule = None
    np.testing.assert_allclose(run(session, inputs, NOBODY)["logits"], ordinary(**inputs)["logits"].detach(), atol=1e-5)
    assert {"few", "many", "(everybody leaves)", "(halves leave)"} == set(artifact.parity["exits"])
    assert max(one["one_at_a_time"] for one in artifact.parity["exits"].values()) < 1e-4


def test_rows_leave_in_the_graph(tmp_path: Path) -> None:
    exported(tmp_path / "out")
    found = operators(only_graph(tmp_path / "out"))
    assert found["NonZero"] == 4  # who goes and who stays, at two exits
    assert found["ScatterND"] >= 5  # answers and layers at both, and the states at the end
    assert found["If"] == found["Loop"] == 0


@pytest.mark.parametrize("rule", ["patience", "vote", "learned", "patience_confidence"])
def test_rules_with_a_memory(rule: str, tmp_path: Path) -> None:
    model, _, session = exported(tmp_path / "out", rule)
    inputs = tiny.batch(model, rows=9)
    with torch.inference_mode():
        wanted = model(**inputs, exit_thresholds=torch.tensor([1.0, 1.0]))
    assert run(session, inputs, 1.0)["exit_layer"].tolist() == wanted["exit_layer"].tolist()


def test_int8_layers_and_empty_batches(tmp_path: Path) -> None:
    model, artifact, session = exported(tmp_path / "out", int8=True)
    inputs = tiny.batch(model, rows=5)
    assert run(session, inputs, EVERYBODY)["exit_layer"].tolist() == [1] * 5
    assert run(session, inputs, NOBODY)["exit_layer"].tolist() == [3] * 5
    assert "rounding_noise" in artifact.parity


def test_a_number_leaves_by_patience(tmp_path: Path) -> None:
    editor = made(num_labels=1)
    editor.apply(SetExits(rule="patience", constant=0.5, points={"one": (1.0, 1.0)}, use="one"))
    export(editor.model, "onnx", tmp_path / "out", tokenizer=tiny.tokenizer())


def test_the_folder_says_what_points_there_are(tmp_path: Path) -> None:
    exported(tmp_path / "out")
    said = json.loads((tmp_path / "out" / "lissom.json").read_text())["export"]["exits"]
    assert said == {
        "input": INPUT,
        "layers": [1, 2],
        "depth": 3,
        "rule": "confidence",
        "use": "many",
        "points": {name: list(one) for name, one in POINTS.items()},
    }


def test_without_a_rule_it_is_an_ordinary_graph(tmp_path: Path) -> None:
    artifact = export(made().model, "onnx", tmp_path / "out", tokenizer=tiny.tokenizer())
    assert "exits" not in artifact.parity
    assert operators(only_graph(tmp_path / "out"))["NonZero"] == 0


def test_a_graph_that_lets_others_leave_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = parity.Graph.answers

    def late(self, forward, given):
        """Every text one layer later than it left."""
        made = real(self, forward, given)
        return [[one[0], one[1] + 1] if len(one) == 2 else one for one in made]

    monkeypatch.setattr(parity.Graph, "answers", late)
    with pytest.raises(LissomError, match=r"LSM-911 onnx/model\.onnx, few: a text leaves after layer"):
        exported(tmp_path / "out")


def test_openvino_refuses(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    editor = made()
    editor.apply(SetExits(rule="confidence", points=POINTS, use="many"))
    with pytest.raises(LissomError, match=r"LSM-741 texts leave this BertForSequenceClassification early.*onnx"):
        export(editor.model, "openvino", tmp_path / "out", tokenizer=tiny.tokenizer())
