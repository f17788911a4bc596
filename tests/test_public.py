"""The public names: lazy, callable, and still modules where a module has a verb's name."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import lissom
from lissom.doctor import _problems


def test_every_public_name_is_there():
    assert all(getattr(lissom, name) is not None for name in lissom.__all__)
    assert set(lissom.__all__) <= set(dir(lissom))
    with pytest.raises(AttributeError, match="no attribute 'compres'"):
        _ = lissom.compres


@pytest.mark.parametrize("name", ["compress", "export", "measure", "plan"])
def test_a_verb_is_function_and_module(name):
    verb = getattr(lissom, name)
    module = sys.modules[f"lissom.{name}"]
    function = getattr(module, name)
    assert verb is module
    assert inspect.signature(verb) == inspect.signature(function)
    with pytest.raises(TypeError, match="required positional argument"):
        verb()


def test_import_loads_nothing_heavy():
    code = "import sys, lissom; print([name for name in ('torch', 'transformers', 'pydantic') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("instructions", "versions", "words"),
    [
        (["AVX2"], {}, "no int8 dot products"),
        (["VNNI"], {"transformers": "4.57.0"}, "transformers 4.57.0 is too old"),
    ],
)
def test_doctor_names_what_does_not_fit(instructions, versions, words):
    assert any(words in problem for problem in _problems({"instructions": instructions}, versions))
