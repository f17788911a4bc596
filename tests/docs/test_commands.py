"""Every lissom command in the pages and examples is one that the command line knows; the light ones run."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import click
import pytest

from lissom.cli import run
from lissom.cli.group import VERBS, group
from lissom.cli.output import Output
from tests.conftest import ROOT
from tests.docs.pages import PAGES, blocks, commands, title

SHELL = {title(page): "\n".join(blocks(page, "sh")) for page in PAGES} | {
    "examples/gate-in-ci.sh": (ROOT / "examples" / "gate-in-ci.sh").read_text()
}
COMMANDS = [(name, words) for name, text in SHELL.items() for words in commands(text)]
LIGHT = ("doctor", "inspect", "recipes", "plan", "report", "predict", "check")
MAKE = {"demo", "test", "lint", "format"}


def named(case: tuple[str, list[str]]) -> str:
    return f"{case[0]}: lissom {' '.join(case[1])}"


def without_redirect(words: list[str]) -> tuple[list[str], str | None]:
    return (words[: words.index(">")], words[-1]) if ">" in words else (words, None)


@pytest.mark.parametrize("case", COMMANDS, ids=named)
def test_it_parses(case: tuple[str, list[str]]) -> None:
    words, _ = without_redirect(case[1])
    assert words[0] in VERBS
    verb = group.get_command(click.Context(group), words[0])
    assert verb is not None
    verb.make_context(words[0], words[1:], obj=Output())


def test_the_parser_bites() -> None:
    assert commands(
        '# lissom x\necho a | lissom predict out --input -\nlissom recipes demo > "my file.yaml"\nmake x'
    ) == [
        ["predict", "out", "--input", "-"],
        ["recipes", "demo", ">", "my file.yaml"],
    ]
    with pytest.raises(click.NoSuchOption):
        test_it_parses(("", ["recipes", "--redy"]))


LIGHT_ONES = [case for case in COMMANDS if case[1][0] in LIGHT or (case[1][0] == "measure" and "--metrics" in case[1])]


def test_light_commands_run(reader: Path) -> None:
    ran = []
    for page, words in LIGHT_ONES:
        if words in ran:
            continue
        ran.append(words)
        arguments, target = without_redirect(words)
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            code = run(arguments)
        if target is not None:
            (reader / target).write_text(said.getvalue())
        assert code == 0 or (code == 5 and words[0] == "check"), (page, words, said.getvalue())
    assert {words[0] for words in ran} == {*LIGHT, "measure"}
    assert (reader / "mine.yaml").read_text().startswith("lissom: 1")
    assert (reader / "report.html").read_text().startswith("<!doctype html>")


def test_make_knows_the_targets_of_the_pages() -> None:
    lines = [line for text in SHELL.values() for line in text.splitlines() if line.startswith("make ")]
    rules = {line.partition(":")[0] for line in (ROOT / "Makefile").read_text().splitlines() if ":" in line}
    assert {line.removeprefix("make ") for line in lines} == MAKE
    assert rules >= MAKE
