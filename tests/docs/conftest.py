"""A folder as the pages assume it: my-model, teacher, data, recipe.yaml, texts.txt, and what the README makes of it."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from pathlib import Path

import pytest

from lissom.cli import run
from lissom.store import save
from tests import tiny
from tests.conftest import ROOT
from tests.docs.pages import blocks
from tests.train.tiny_rows import WORDS, tokenizer

LABELS = ("sport", "business")


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder; `out` and `exported` are made by running the README."""
    folder = tmp_path_factory.mktemp("reader")
    model = tiny.model(
        "bert",
        "AutoModelForSequenceClassification",
        num_labels=2,
        id2label=dict(enumerate(LABELS)),
        label2id={name: i for i, name in enumerate(LABELS)},
        max_position_embeddings=160,
        num_hidden_layers=6,
    )
    save(model, folder / "my-model", tokenizer=tokenizer())
    shutil.copytree(folder / "my-model", folder / "teacher")
    shutil.copy(ROOT / "examples" / "recipe.yaml", folder)
    (folder / "texts.txt").write_text("the ball\nbank of money\n")
    _write_data(folder / "data")
    with contextlib.chdir(folder):
        for block in blocks(ROOT / "README.md", "python"):
            exec(compile(block, "README.md", "exec"), {})  # noqa: S102 - that is the test
        about = ["--vs", "teacher", "--data", "data", "--metrics", "accuracy,keep,size_mb", "--max-length", "32"]
        assert run(["measure", "out", *about, "--out", "rows.jsonl", "-q"]) == 0
    return folder


@pytest.fixture
def reader(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder, as the working folder."""
    copy = tmp_path / "reader"
    shutil.copytree(place, copy)
    monkeypatch.chdir(copy)
    return copy


def _write_data(folder: Path) -> None:
    folder.mkdir()
    generator = random.Random(0)
    for split, count in (("train", 32), ("validation", 16), ("test", 24)):
        rows = []
        for i in range(count):
            words = [WORDS[4 + 3 * (i % 2)], *generator.choices(WORDS[7:], k=4), split, str(i)]
            rows.append({"text": " ".join(words), "label": LABELS[i % 2]})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
