"""The Python of README, docs and examples runs as it stands."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

import lissom
from tests.conftest import ROOT
from tests.docs.pages import PAGES, blocks, title

WITH_PYTHON = [page for page in PAGES if blocks(page, "python") and page.name != "README.md"]


def test_the_readme_leaves_a_model_and_an_export(place: Path) -> None:
    assert lissom.load(place / "out").config.num_hidden_layers == 4
    assert lissom.open_runner(place / "exported").labels == ("sport", "business")


@pytest.mark.parametrize("page", WITH_PYTHON, ids=title)
def test_blocks_run(page: Path, reader: Path) -> None:
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)  # noqa: S102 - that is the test


def test_the_example_compresses_or_says_that_it_may_not(reader: Path) -> None:
    main = runpy.run_path(str(ROOT / "examples" / "compress.py"))["main"]
    code = main("teacher", "data", "kept")
    assert code in (0, 5)
    assert (reader / "kept").exists() == (code == 0)
