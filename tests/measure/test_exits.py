"""Layers and operations of texts that leave early, against counts by hand, in torch and in the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lissom.edits import AddExits, Editor, SetExits, exits_of
from lissom.export import export
from lissom.measure import measure
from lissom.measure.exits import exit_layers, leaving, words
from lissom.measure.flops import flops, model_flops
from lissom.nn.exit_rules import EVERYBODY, NOBODY
from lissom.runtime import OnnxRunner, Runner, TorchRunner
from tests import tiny
from tests.edits.test_exits import halves
from tests.measure.fakes import Fake, reviews
from tests.runtime import made

HIDDEN, WIDTH, CLASSES = 32, 48, 2
TEXTS = ["good film", "a very bad film", "the end is near and far"]


def classifier(first: float, second: float):
    """Three layers with exits after one and two, each of a dense layer and a map."""
    model = tiny.model("bert", "AutoModelForSequenceClassification", num_labels=CLASSES)
    editor = Editor(model)
    editor.apply(AddExits(layers=(1, 2), head="pooled"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for one in exits_of(model).parameters():
            one.copy_(torch.randn(one.shape, generator=generator) * 0.4)
    editor.apply(SetExits(rule="confidence", points={"one": (first, second)}, use="one"))
    return model


def by_hand(tokens: int, layers: int, exits: int) -> int:
    """Of a text that is answered after `layers` layers and met `exits` exits; the model's own head always runs."""
    block = 2 * tokens * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * WIDTH) + 4 * tokens * tokens * HIDDEN
    head = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * CLASSES
    return layers * block + (exits + 1) * head


class Leaving(Fake):
    """Answers good texts after one layer, others after three."""

    exits = (1, 3)

    def exit_layers(self, texts):
        return np.array([1 if str(text).startswith("good") else 3 for text in texts])


def test_the_mean_and_the_distribution() -> None:
    counts = leaving(Leaving(), ["good", "bad", "good 2", "good 3"])
    assert counts == {1: 3, 3: 1}
    reading = exit_layers(Leaving(), counts, 0)
    assert reading.value == (3 * 1 + 1 * 3) / 4
    assert 1 <= reading.low <= 1.5 <= reading.high <= 3
    assert "of 3, by the thresholds in use. Of 4 texts 75.0% after 1, 25.0% after 3." in reading.how


@pytest.mark.parametrize(("leave", "exits"), [(1, 1), (2, 2), (3, 2)])
def test_operations_by_hand(leave: int, exits: int) -> None:
    reading = model_flops(classifier(NOBODY, NOBODY), 10, leave)
    assert reading.value == by_hand(10, leave, exits)
    assert ", agrees (" in reading.how


def test_a_count_without_texts_is_that_of_all_layers() -> None:
    """What `plan` shows, which knows no texts, is not smaller for thresholds by which an unknown text would leave."""
    model = classifier(EVERYBODY, EVERYBODY)
    assert model_flops(model, 10).value == by_hand(10, 3, 2)
    assert model_flops(model.to("meta"), 10).value == by_hand(10, 3, 2)


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_operations_are_averaged_by_where_texts_leave(engine: str, tmp_path: Path) -> None:
    model = classifier(NOBODY, EVERYBODY)
    tokenizer = made.tokenizer()
    if engine == "onnx":
        export(model, "onnx", tmp_path / "out", tokenizer=tokenizer)
        runner: Runner = OnnxRunner(tmp_path / "out", threads=1)
    else:
        runner = TorchRunner(model, tokenizer)
    assert runner.exits == (1, 2, 3)
    assert leaving(runner, TEXTS) == {2: 3}
    tokens = sorted(len(one.ids) for one in runner.encode(TEXTS))[1]
    assert flops(runner, TEXTS, {1: 1, 3: 3}).value == (by_hand(tokens, 1, 1) + 3 * by_hand(tokens, 3, 2)) / 4
    (row,) = measure({"it": runner}, reviews(), metrics=["exit_layers", "flops"])
    assert row.reading("exit_layers").value == 2
    assert row.reading("flops").value == by_hand(4, 2, 2)
    assert row.reading("flops").how.startswith("Mean by the layers after which texts are answered. Of 20 texts 100.0%")


def test_texts_come_back_in_their_order(tmp_path: Path) -> None:
    model = classifier(NOBODY, NOBODY)
    runner = TorchRunner(model, made.tokenizer())
    texts = [f"{word} {more}" for word in made.WORDS for more in ("film", "the end is near and far")]
    padded = {name: torch.from_numpy(one) for name, one in runner.pad(runner.encode(texts)).items()}
    exits_of(model).points = {"one": tuple(halves(model, padded).tolist())}
    together = runner.exit_layers(texts).tolist()
    assert len(set(together)) > 1
    assert together == [int(runner.exit_layers([text])[0]) for text in texts]
    export(model, "onnx", tmp_path / "out", tokenizer=made.tokenizer())
    assert OnnxRunner(tmp_path / "out", threads=1).exit_layers(texts).tolist() == together


def test_a_model_that_nobody_leaves_shows_no_such_reading() -> None:
    runner = TorchRunner(tiny.model("bert", "AutoModelForSequenceClassification", num_labels=2), made.tokenizer())
    (quiet,) = measure({"it": runner}, reviews(), rounds=1, speed_texts=2)
    (asked,) = measure({"it": runner}, reviews(), metrics=["exit_layers"])
    assert quiet.reading("exit_layers") is None
    assert asked.reading("exit_layers").how == "Not taken: texts do not leave this subject before its last layer."
    assert words({2: 1}) == "Of 1 texts 100.0% after 2."
