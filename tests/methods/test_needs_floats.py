"""Steps that change weights in floating point refuse packed models before any work, and `inspect` says so."""

from __future__ import annotations

import pytest

from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods import METHODS, Given
from lissom.plan import describe
from tests import tiny

FLOATING = ("svd", "kronecker", "prune_weights", "sparsegpt", "obert", "prune_hidden")


@pytest.fixture(scope="module")
def packed() -> Editor:
    editor = Editor(tiny.model("bert", "AutoModelForSequenceClassification"))
    METHODS["int8"]().apply(editor, Given())
    return editor


@pytest.mark.parametrize("name", FLOATING)
def test_they_refuse_a_packed_model(name: str, packed: Editor):
    with pytest.raises(LissomError, match=r"LSM-713 .*floating point.*Begin with the model as it was before"):
        METHODS[name]().check(packed.anatomy(), Given())


def test_inspect_asks_each_step(packed: Editor):
    said = describe(packed.model)["methods"]
    for name in (*FLOATING, "gptq", "tune", "prune_units"):
        assert said[name].startswith("no: "), name
    assert said["prune_heads"] == "yes"
    whole = describe(tiny.model("bert", "AutoModelForSequenceClassification"))["methods"]
    assert whole["gptq"] == whole["tune"] == whole["obert"] == "yes, with data"
    assert whole["svd"] == "yes"
