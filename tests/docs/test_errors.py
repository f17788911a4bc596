"""docs/errors.md against the source: every code once, none too many, and one meaning each."""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from lissom.errors import _EXIT_BY_GROUP
from tests.conftest import ROOT
from tests.rules.source import SRC, files

PAGE = ROOT / "docs" / "errors.md"
RAISING = {"LissomError", "UnsupportedFamily", "GateNotMet", "fault", "refuse"}
WORDS = re.compile(r"\bLSM-(\d{3})\b")

SHARED = {
    201: "the output folder is not empty",
    203: "an output folder that must not be replaced",
    207: "an unknown command or option",
    215: "the reference is not among what is compared",
    302: "the recipe file cannot be read",
    314: "a value outside its range",
    315: "a value that is not accepted",
    317: "something that a step needs is not given",
    318: "layers or maps that the model has not, or sizes that do not fit",
    319: "an objective cannot work",
    401: "may hold a pickle",
    402: "missing or unreadable",
    421: "a name points outside its folder",
    431: "names code",
    432: "a size out of bounds",
    433: "transformers does not take the config",
    441: "lissom.json is none of ours",
    443: "a tensor is missing",
    444: "a tensor has no place",
    445: "a tensor of another shape",
    451: "an edit does not fit",
    452: "a stored record is none",
    461: "a digest differs",
    462: "a listed file is missing",
    463: "no manifest of lissom",
    501: "nothing within the limit",
    602: "the disk is full",
    603: "not allowed to write",
    713: "packed layers have no gradient",
    715: "a kind of model that a step cannot work with",
    732: "the device is not there for this engine",
    734: "a tokenizer without a fast version",
    735: "the graph is not there, or reads too much",
    737: "the model predicts no tokens of running text",
    741: "a kind of model that the target cannot hold",
    801: "the data is not there or is no data",
    809: "no rows",
    813: "labels that are no classes",
    818: "a column",
    821: "texts that have no labels",
    824: "no room for a text",
    826: "a model that does not answer what the data asks",
    829: "texts that do not show the range of an input",
    843: "nothing to compare",
    853: "there is no running text to predict",
    901: "NaN or infinity in weights or answers",
    902: "a loss that is not finite",
    911: "the graph answers otherwise than torch",
    912: "an axis is fixed or a shape does not run",
    913: "an output is missing or of another shape",
}
"""Codes that several files raise, and the one meaning they have there."""


def codes(tree: ast.Module, constants: Mapping[str, ast.expr]) -> Iterator[int]:
    """The codes that a file raises: numbers given to an error, by themselves or through names.

    constants: of the whole package, which a file may import.
    """
    given: dict[str, list[ast.expr]] = defaultdict(list)
    for name, value in constants.items():
        given[name].append(value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                for name in _names(target):
                    given[name].append(node.value)
        elif isinstance(node, ast.For):
            for name in _names(node.target):
                given[name].append(node.iter)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and _called(node) in RAISING:
            yield from _numbers(node.args[0], given, frozenset())


def _called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")


def _names(node: ast.AST) -> list[str]:
    return [one.id for one in ast.walk(node) if isinstance(one, ast.Name)]


def _numbers(node: ast.AST, given: dict[str, list[ast.expr]], seen: frozenset[str]) -> Iterator[int]:
    for one in ast.walk(node):
        if isinstance(one, ast.Constant) and type(one.value) is int and 200 <= one.value < 1000:
            yield one.value
        elif isinstance(one, ast.Name) and one.id not in seen:
            for value in given.get(one.id, ()):
                yield from _numbers(value, given, seen | {one.id})


def constants() -> dict[str, ast.expr]:
    """CONSTANT -> its value, for the whole numbers that stand at the top of a file."""
    found: dict[str, ast.expr] = {}
    for path in files():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and type(node.value.value) is int:
                found |= {name: node.value for target in node.targets for name in _names(target) if name.isupper()}
    return found


def raised() -> dict[int, set[Path]]:
    """Code -> the files that raise it. A code that is said as text ("LSM-609") counts as well."""
    found: dict[int, set[Path]] = defaultdict(set)
    shared = constants()
    for path in files():
        tree = ast.parse(path.read_text())
        for code in codes(tree, shared):
            found[code].add(path.relative_to(SRC / "lissom"))
        compared = {id(one) for node in ast.walk(tree) if isinstance(node, ast.Compare) for one in ast.walk(node)}
        for node in (one for one in ast.walk(tree) if id(one) not in compared):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and WORDS.fullmatch(node.value):
                found[int(node.value[4:])].add(path.relative_to(SRC / "lissom"))
    return found


def listed() -> list[tuple[int, str, str]]:
    """Code, meaning and remedy of each line of the page's tables."""
    lines = re.findall(r"^\| LSM-(\d{3}) \| (.+?) \| (.+?) \|$", PAGE.read_text(), re.MULTILINE)
    return [(int(code), meaning, remedy) for code, meaning, remedy in lines]


def test_every_code_is_on_the_page_once() -> None:
    found = [code for code, _, _ in listed()]
    assert [code for code, times in Counter(found).items() if times > 1] == []
    assert found == sorted(found)
    assert set(raised()) - set(found) == set(), "raised, and not on the page"
    assert set(found) - set(raised()) == set(), "on the page, and never raised"


def test_no_two_codes_mean_the_same() -> None:
    meanings = [meaning for _, meaning, _ in listed()]
    assert len(set(meanings)) == len(meanings)


def test_a_code_of_several_files_has_one_meaning() -> None:
    several = {code for code, paths in raised().items() if len(paths) > 1}
    assert several - set(SHARED) == set(), "say what the code means in all of these files, or give one a new code"


def test_codes_that_the_source_mentions_exist() -> None:
    said = {int(code) for path in files() for code in WORDS.findall(path.read_text())}
    assert said - set(raised()) == set()


def test_groups_have_the_exit_codes_of_the_page() -> None:
    rows = re.findall(r"^\| (\d) \| .+ \| (\d) \|$", PAGE.read_text(), re.MULTILINE)
    assert {int(group): int(code) for group, code in rows} == _EXIT_BY_GROUP


def test_the_collector_bites() -> None:
    source = """
MISFIT = 451
code = 502 if x else 501
kinds = (("a", 443),)
for key, number in (*kinds, ("b", 445)):
    raise LissomError(number, "x")
raise errors.LissomError(MISFIT, f"{512}")
raise GateNotMet(code, "x")
table.fault(812, 3)
x.clamp(0, 255)
"""
    assert sorted(codes(ast.parse(source), {})) == [443, 445, 451, 501, 502, 812]
