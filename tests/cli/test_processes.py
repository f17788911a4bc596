"""Commands under `torchrun`: all processes train, and one of them writes and speaks."""

from __future__ import annotations

import json

from lissom.cli import run
from lissom.cli.output import Output, first
from lissom.store import load
from tests.cli.test_verbs import compressed, place, recipe_and_data  # noqa: F401 fixtures
from tests.train.test_processes import together


def test_two_processes_compress_into_one_folder(place):  # noqa: F811
    arguments = [*recipe_and_data(place), "--out", place / "both", "--json"]
    done = together("lissom", "compress", place / "model", *arguments)
    document = json.loads(done.stdout)
    tune = next(step for step in document["steps"] if step["name"] == "tune")
    assert tune["did"]["rows_per_step"] == 64  # 32 in each process
    assert tune["did"]["steps"] == 2
    assert load(place / "both").config.num_hidden_layers == 2
    assert not (place / ".both.unfinished").exists()
    assert not [one.name for one in place.iterdir() if one.name.startswith(".both.lissom-")]


def test_who_speaks(monkeypatch, capsys):
    assert first()
    assert Output().first
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert not first()
    silent = Output(json=True)
    silent.result({"model": "out"}, "out")
    silent.note("done")
    silent.finish()
    assert capsys.readouterr() == ("", "")
    silent.error("broken")
    assert capsys.readouterr() == ("", "broken\n"), "an error may be that of this process alone"


def test_what_does_not_train_is_done_by_the_first_alone(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert run(["recipes"]) == 0
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "0")
    assert run(["recipes"]) == 0
    assert "demo" in capsys.readouterr().out
