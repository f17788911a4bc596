"""What the package never does: unpickle, evaluate text, start a shell, unpack, trust remote code, call out."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.rules.source import dotted, files, imports, module_name, names

IMPORTS = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal",  # run code when read
    "requests", "urllib", "urllib3", "http", "httpx", "aiohttp", "ftplib", "smtplib", "socketserver",  # network
    "tarfile", "shutil.unpack_archive", "telnetlib", "xmlrpc",
}  # fmt: skip
CALLS = {
    "eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "builtins.compile",
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "shutil.unpack_archive",
    "torch.load", "torch.jit.load", "torch.hub.load", "torch.save", "torch.package.PackageImporter",
    "pandas.read_pickle", "numpy.fromregex",
}  # fmt: skip
YAML = {
    "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.full_load_all", "yaml.unsafe_load", "yaml.unsafe_load_all",
    "yaml.Loader", "yaml.FullLoader", "yaml.UnsafeLoader", "yaml.CLoader", "yaml.CFullLoader", "yaml.CUnsafeLoader",
    "yaml.safe_load", "yaml.safe_load_all",  # safe, but lets duplicate keys and alias bombs pass
}  # fmt: skip
KEYWORDS = ("shell", "trust_remote_code", "allow_pickle", "weights_only")
ONNX = {"onnx.load", "onnx.load_model", "onnx.load_from_string", "onnx.load_model_from_string"}

ALLOWED = {
    "lissom.strict_yaml": YAML
    - {"yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.UnsafeLoader", "yaml.CUnsafeLoader"},
    **dict.fromkeys(("lissom.export", "lissom.runtime", "lissom.files"), ONNX),
    **dict.fromkeys(("lissom.measure.graph", "lissom.measure.size"), frozenset({"onnx.load"})),
}
"""Package -> what only it may use: the one strict YAML loader, those that read the graphs they check, and the two that
count in a graph which a runner has opened before."""


def offences(source: str, module: str) -> list[str]:
    """Every banned thing in a file, in the order of lines."""
    tree = ast.parse(source)
    known = names(tree)
    allowed = {one for package, some in ALLOWED.items() if f"{module}.".startswith(f"{package}.") for one in some}
    banned = (CALLS | YAML | ONNX) - allowed
    found = [(0, f"import {full}") for _, full in imports(tree) if banned_import(full) or full in banned]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and dotted(node, known) in banned:
            found.append((node.lineno, dotted(node, known)))
        elif isinstance(node, ast.Attribute) and node.attr == "extractall":
            found.append((node.lineno, "extractall"))
        elif isinstance(node, ast.keyword) and node.arg in KEYWORDS and not is_false(node.value):
            found.append((node.value.lineno, str(node.arg)))
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value in KEYWORDS and not is_false(value):
                    found.append((node.lineno, str(key.value)))
    return [what for _, what in sorted(set(found))]


def banned_import(full: str) -> bool:
    return any(f"{full}.".startswith(f"{one}.") for one in IMPORTS)


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


@pytest.mark.parametrize("path", files(), ids=module_name)
def test_nothing_banned(path: Path) -> None:
    assert offences(path.read_text(), module_name(path)) == []


BAD = [
    ("import torch\ntorch.load(p)", "torch.load"),
    ("import torch as t\nt.load(p, weights_only=False)", "torch.load"),
    ("from torch import load\nload(p)", "torch.load"),
    ("def f():\n    import pickle", "import pickle"),
    ("from pickle import loads as harmless", "import pickle.loads"),
    ("import yaml\nyaml.load(t, Loader=yaml.Loader)", "yaml.Loader"),
    ("from yaml import UnsafeLoader", "import yaml.UnsafeLoader"),
    ("import yaml\nyaml.safe_load(t)", "yaml.safe_load"),
    ("eval('1')", "eval"),
    ("run = exec", "exec"),
    ("import subprocess\nsubprocess.run('ls', shell=True)", "shell"),
    ("subprocess.run('ls', shell=flag)", "shell"),
    ("import os\nos.system('ls')", "os.system"),
    ("from os import system as s\ns('ls')", "os.system"),
    ("archive.extractall()", "extractall"),
    ("AutoModel.from_pretrained(x, trust_remote_code=True)", "trust_remote_code"),
    ("AutoModel.from_pretrained(x, **{'trust_remote_code': True})", "trust_remote_code"),
    ("import numpy as np\nnp.load(p, allow_pickle=True)", "allow_pickle"),
    ("import onnx\nonnx.load(p)", "onnx.load"),
    ("import requests", "import requests"),
    ("import urllib.request", "import urllib.request"),
    ("from http.client import HTTPConnection", "import http.client.HTTPConnection"),
]


@pytest.mark.parametrize(("source", "what"), BAD)
def test_the_ban_bites(source: str, what: str) -> None:
    assert what in offences(source, "lissom.somewhere")


def test_what_is_not_banned() -> None:
    source = """
import ast, torch, yaml, onnx, numpy
model.eval(); torch.compile; executor.exec_module; re.compile("x"); ast.literal_eval("1")
subprocess.run(["ls"], shell=False); AutoModel.from_pretrained(x, trust_remote_code=False)
loader.load(path); numpy.load
"""
    assert offences(source, "lissom.somewhere") == []
    assert offences("import onnx\nonnx.load(p)", "lissom.export.onnx") == []
    assert offences("import yaml\nyaml.unsafe_load(p)", "lissom.strict_yaml") == ["yaml.unsafe_load"]
