"""The direction of imports, and where names may stand. What is here keeps the package readable file by file."""

from __future__ import annotations

import ast
import sys

import pytest

from lissom.anatomy import FAMILIES
from tests.rules.source import SRC, files, imports, module_name

LAYERS = (
    {"errors"},
    {"files", "strict_yaml"},
    {"nn"},
    {"bilstm"},
    {"anatomy"},
    {"edits"},
    {"data"},
    {"store", "stats"},
    {"train"},
    {"methods"},
    {"recipe"},
    {"runtime"},
    {"export", "measure", "gate"},
    {"bench", "trial"},
    {"compress", "forms"},
    {"plan", "check", "doctor"},
    {"search", "demo"},
    {"cli"},
    {"__main__"},
)
PARTS = {"bridge": "store"}
"""Module -> the package whose part it is: the bridge stands outside because importing `store` would load torch."""
LEVEL = {name: level for level, group in enumerate(LAYERS) for name in group}

MODULES = {
    module_name(path): frozenset(
        full for _, full in imports(ast.parse(path.read_text()), module_name(path), package=path.stem == "__init__")
    )
    for path in files()
}


def layer(module: str) -> str:
    """`edits` for `lissom.edits.depth`."""
    name = module.split(".")[1]
    return PARTS.get(name, name)


def offences(module: str, imported: frozenset[str]) -> list[str]:
    """What a module imports from its own level or from above."""
    here = layer(module)
    found = []
    for name in sorted(one for one in imported if one.startswith("lissom.") and one != "lissom.__version__"):
        there = layer(name)
        if there != here and LEVEL.get(there, len(LAYERS)) >= LEVEL[here]:
            found.append(f"{module} imports {name}")
    return found


def inside(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


def test_every_module_has_a_place() -> None:
    assert {layer(module) for module in MODULES if "." in module} <= set(LEVEL)


@pytest.mark.parametrize("module", [module for module in MODULES if module != "lissom"])
def test_imports_go_down(module: str) -> None:
    assert offences(module, MODULES[module]) == []


def test_the_direction_test_bites() -> None:
    bad = frozenset({"lissom.edits.Editor", "lissom.anatomy.dissect", "lissom.nn.Int8Linear", "lissom.unheard_of"})
    assert offences("lissom.anatomy.slot", bad) == [
        "lissom.anatomy.slot imports lissom.edits.Editor",
        "lissom.anatomy.slot imports lissom.unheard_of",
    ]
    relative = ast.parse("from ..edits import Editor\nfrom . import parts\nimport lissom.cli.main as x")
    assert [full for _, full in imports(relative, "lissom.anatomy.slot")] == [
        "lissom.edits.Editor",
        "lissom.anatomy.parts",
        "lissom.cli.main",
    ]


def test_method_families_do_not_know_each_other() -> None:
    folders = [path.name for path in (SRC / "lissom/methods").iterdir() if path.is_dir() and path.name != "__pycache__"]
    for module, imported in MODULES.items():
        own = module.split(".")[2] if module.startswith("lissom.methods.") else ""
        if own in folders:
            others = [f"lissom.methods.{one}" for one in folders if one != own]
            assert [name for name in imported for other in others if inside(name, other)] == [], module


def test_nn_knows_torch_only() -> None:
    for module in (one for one in MODULES if inside(one, "lissom.nn")):
        roots = {name.split(".")[0] for name in MODULES[module] if not inside(name, "lissom.nn")}
        assert roots - set(sys.stdlib_module_names) <= {"torch"}, module


def test_measuring_knows_no_methods() -> None:
    for module in (one for one in MODULES if inside(one, "lissom.measure")):
        assert not [name for name in MODULES[module] if inside(name, "lissom.methods")], module


def test_start_up_imports_nothing_heavy() -> None:
    """Also held at run time by the command line's own tests; this names the import."""
    heavy = {"torch", "transformers", "datasets", "onnx", "onnxruntime", "sklearn", "scipy", "pandas", "altair"}
    for name in ("lissom", "lissom.errors", "lissom.cli"):
        path = SRC.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        top = ast.Module([node for node in ast.parse(path.read_text()).body if not _checked_only(node)], [])
        at_import = [node for node in top.body if isinstance(node, ast.Import | ast.ImportFrom)]
        roots = {full.split(".")[0] for _, full in imports(ast.Module(at_import, []))}
        assert not roots & heavy, name


def _checked_only(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def test_files_have_names_that_lead_somewhere() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}
    assert not [path for path in files() if vague & set(path.relative_to(SRC).with_suffix("").parts)]


ALLOWED = {
    ("lissom.anatomy.families", None): "the one table of families",
}
"""(module, constant) in which a family's name may stand, and why; None allows all of them."""


def family_names(tree: ast.AST) -> list[str]:
    """String constants that are a model type or a family's name."""
    known = set(FAMILIES) | {family.name for family in FAMILIES.values()}
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value in known]


@pytest.mark.parametrize("path", files(), ids=module_name)
def test_families_are_named_in_one_file(path: object) -> None:
    module = module_name(path)
    if (module, None) not in ALLOWED:
        found = family_names(ast.parse(path.read_text()))
        assert [name for name in found if (module, name) not in ALLOWED] == []


def test_the_family_test_bites() -> None:
    assert family_names(ast.parse('if config.model_type in {"bert", "x"}: kind = "gpt2"')) == ["gpt2", "bert"]
