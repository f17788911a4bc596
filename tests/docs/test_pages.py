"""Generated parts are fresh, links and names lead somewhere, and no measured number stands there without its row."""

from __future__ import annotations

import ast
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import pytest

from lissom.bench.rows import append_row
from lissom.edits import EDITS
from lissom.measure import METRICS
from lissom.methods import METHODS
from lissom.recipe import Recipe
from lissom.train.during import DURING
from lissom.train.objectives import OBJECTIVES
from tests.bench.samples import row
from tests.conftest import ROOT
from tests.docs.pages import PAGES, blocks, generator, prose, title, without_code

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
MEASURED = re.compile(
    r"(?<![\w.])\d[\d.,]*\s?(?:texts/s|texts a second|times (?:as )?\w+er\b|MB\b|GB\b|ms\b|%|×|x\b|J\b)"
)
CONSTANT = {"95 %"}  # the level of every interval
SITES = {"https://github.com/lissom/lissom"}
PATH = re.compile(r"`((?:[\w-]+/)+[\w.-]*|[\w-]+\.(?:py|md|toml|yaml|jsonl))`")

HOMES = [ROOT / name for name in ("", "src/lissom", "src/lissom/train/objectives", "src/lissom/methods/pruning")]


def test_generated_parts_are_fresh() -> None:
    assert [title(path) for path in generator().stale()] == [], "run: python docs/generate.py"


def test_every_row_of_a_table_has_its_words() -> None:
    methods = (ROOT / "docs" / "methods.md").read_text()
    assert re.findall(r"^## (.+)$", methods, re.MULTILINE) == list(METHODS)
    for name in METHODS:
        assert f"<!-- generated: options {name} -->" in methods
    learning, _, meanwhile = (ROOT / "docs" / "distil.md").read_text().partition("## What acts while it learns")
    assert set(re.findall(r"^### (.+)$", learning, re.MULTILINE)) == set(OBJECTIVES)
    assert set(re.findall(r"^### (.+)$", meanwhile.partition("\n## ")[0], re.MULTILINE)) == set(DURING)
    for kind, names, text in (("objective", OBJECTIVES, learning), ("during", DURING, meanwhile)):
        for name in names:
            assert f"<!-- generated: {kind} {name} -->" in text
    how = (ROOT / "docs" / "how-it-works.md").read_text()
    assert re.findall(r"^\| `([A-Z]\w+)` \|", how, re.MULTILINE) == list(EDITS)
    assert all(f"`{name}`" in (ROOT / "docs" / "measuring.md").read_text() for name in METRICS)


@pytest.fixture
def with_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made = generator()
    machine = {"cpu": "A CPU", "threads": 2, "instructions": ["AVX2", "VNNI"]}
    versions = {"torch": "2.13.0", "onnxruntime": "1.32.0", "transformers": "5.23.0"}
    data = {"name": "bbc_news", "split": "test", "n": 500}
    for which, (subject, runtime) in enumerate([("original", "torch"), ("compressed", "onnxruntime")]):
        found = row(subject, which=which, runtime=runtime, machine=machine, versions=versions, data=data)
        append_row(tmp_path / "demo.jsonl", found)
    monkeypatch.setattr(made, "ROWS", tmp_path / "demo.jsonl")
    return made


def test_the_result_is_drawn_from_its_rows(with_rows: ModuleType) -> None:
    text = with_rows.result()
    assert "Compressed is 4.8 times smaller and 6.1 times faster than original" in text
    assert "| Throughput, texts/s | ↑ |" in text
    assert "A CPU, 2 threads, AVX2, VNNI; torch 2.13.0, onnxruntime 1.32.0, transformers 5.23.0;" in " ".join(
        text.split()
    )
    svg = with_rows.picture()
    assert "var(" not in svg
    assert svg.count("Accuracy against") == 3
    assert ET.fromstring(svg).get("width")  # noqa: S314 - we wrote it
    assert with_rows.picture() == svg


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(without_code(page)):
        place, _, anchor = target.partition("#")
        if place.startswith("http"):
            assert any(place.startswith(site) for site in SITES), target
            continue
        found = (page.parent / place).resolve() if place else page
        assert found.exists() or (found.name in ("demo.jsonl", "demo.svg")), target
        if anchor:
            heads = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, target


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_no_measured_number_without_its_row(page: Path) -> None:
    assert [one for one in MEASURED.findall(prose(page)) if one not in CONSTANT] == []


def test_the_number_rule_bites() -> None:
    for said in ("12.5 MB", "640 texts/s", "4.8 times smaller", "98 %", "3.1×", "5 ms"):
        assert MEASURED.search(f"it has {said} now"), said
    for said in ("2 GiB", "32 texts", "1,000 resamples", "version 0.1.0", "three times"):
        assert not MEASURED.search(f"it has {said} now"), said


def test_the_tests_that_security_names_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text())
    assert len(named) > 20
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text())
        assert name in {one.name for one in tree.body if isinstance(one, ast.FunctionDef)}, f"{path}::{name}"


@pytest.mark.parametrize("page", [ROOT / "CONTRIBUTING.md", ROOT / "docs" / "families.md"], ids=title)
def test_files_that_are_named_exist(page: Path) -> None:
    made = {"rows.jsonl", "results/demo.jsonl"}
    for name in set(PATH.findall(page.read_text())) - made:
        if "FAMILY" not in name:
            assert any((folder / name).exists() for folder in HOMES), name


def test_recipes_on_the_pages_read() -> None:
    written = [text for page in PAGES for text in blocks(page, "yaml")]
    assert written
    for text in [*written, (ROOT / "examples" / "recipe.yaml").read_text()]:
        Recipe.parse(text, "page").check_order()
