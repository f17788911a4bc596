"""What a reader never meets: long files, unfinished work, and the paths of someone's machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.rules.source import ROOT, files, module_name

LINES = 450
UNFINISHED = re.compile(r"\b(?:TODO|FIXME|XXX|HACK|raise NotImplementedError)\b")
MACHINE = re.compile(r"(?<![\w.}/])/(tmp|work|home|root|mnt|Users|private|scratch)/")
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".jsonl", ".txt", ".j2", ".css", ".js", ".html", ".cfg", ""}
FOLDERS = ("src", "tests", "docs", "examples", "benchmarks", "results")


def texts() -> list[Path]:
    """Everything that someone may read in the repository."""
    inside = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    return sorted(
        path
        for path in (*ROOT.iterdir(), *inside)
        if path.is_file() and path.suffix in TEXT and "__pycache__" not in path.parts and path != Path(__file__)
    )


@pytest.mark.parametrize("path", files(), ids=module_name)
def test_a_file_can_be_read_in_one_go(path: Path) -> None:
    assert len(path.read_text().splitlines()) < LINES


@pytest.mark.parametrize("path", files(), ids=module_name)
def test_nothing_is_left_unfinished(path: Path) -> None:
    assert UNFINISHED.findall(path.read_text()) == []


def test_no_path_of_a_machine() -> None:
    found = {str(path.relative_to(ROOT)): MACHINE.findall(path.read_text(errors="replace")) for path in texts()}
    assert {name: hits for name, hits in found.items() if hits} == {}


def test_the_patterns_bite() -> None:
    assert MACHINE.search('open("/tmp/x")')
    assert MACHINE.search("see /home/someone/x")
    assert not MACHINE.search("https://example.org/work/x")
    assert not MACHINE.search("tests/work/x")
    assert UNFINISHED.search("# TODO: later")
    assert UNFINISHED.search("raise NotImplementedError")
    assert not UNFINISHED.search("TODOS")
