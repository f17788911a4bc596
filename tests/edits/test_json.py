"""Edits from untrusted files: only known kinds, known fields, exact types; every refusal says where."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lissom.edits import EDITS, Edit, Factorize, KeepHeads, KeepLayers, Pack, ShareLayers, edit_from_json
from lissom.errors import LissomError

DEEP: Any = 0
for _ in range(100_000):
    DEEP = [DEEP]

REFUSED = [
    ("text", None, "unknown kind of edit 'None'"),
    (None, None, "unknown kind of edit 'None'"),
    ([], None, "unknown kind of edit 'None'"),
    ({}, None, "unknown kind of edit 'None'"),
    ({"edit": 1}, None, "unknown kind of edit '1'"),
    ({"edit": ["KeepLayers"]}, None, "unknown kind of edit"),
    ({"edit": "KeepLayer", "keep": [0]}, None, "unknown kind of edit 'KeepLayer'"),
    ({"edit": "x" * 1000}, None, "unknown kind of edit '" + "x" * 40 + "'"),
    ({"edit": "KeepLayers"}, "edits.KeepLayers.keep", "Field required"),
    ({"edit": "KeepLayers", "keep": [0], "kep": 1}, "edits.KeepLayers.kep", "Unexpected keyword argument"),
    ({"edit": "KeepLayers", "keep": [0], "k" * 90: 1}, "edits.KeepLayers." + "k" * 40, "Unexpected keyword argument"),
    ({"edit": "KeepLayers", "keep": [True]}, "edits.KeepLayers.keep.0", "Input should be a valid integer"),
    ({"edit": "KeepLayers", "keep": [1.0]}, "edits.KeepLayers.keep.0", "Input should be a valid integer"),
    ({"edit": "KeepLayers", "keep": ["1"]}, "edits.KeepLayers.keep.0", "Input should be a valid integer"),
    ({"edit": "KeepLayers", "keep": [None]}, "edits.KeepLayers.keep.0", "Input should be a valid integer"),
    ({"edit": "KeepLayers", "keep": [float("nan")]}, "edits.KeepLayers.keep.0", "Input should be a"),
    ({"edit": "KeepLayers", "keep": 1}, "edits.KeepLayers.keep", "Input should be a valid"),
    ({"edit": "KeepLayers", "keep": {"0": 0}}, "edits.KeepLayers.keep", "Input should be a valid"),
    ({"edit": "KeepLayers", "keep": [0], "stack": 1}, "edits.KeepLayers.stack", "Input should be a valid string"),
    ({"edit": "KeepHeads", "heads": [[0]], "cross": 1}, "edits.KeepHeads.cross", "Input should be a valid boolean"),
    ({"edit": "KeepHeads", "heads": [0]}, "edits.KeepHeads.heads.0", "Input should be a valid"),
    ({"edit": "Factorize", "ranks": {"a": True}}, "edits.Factorize.ranks.a", "Input should be a valid integer"),
    ({"edit": "Factorize", "ranks": [["a", 1]]}, "edits.Factorize.ranks", "Input should be a"),
    ({"edit": "Pack", "linears": "a"}, "edits.Pack.linears", "Input should be a valid"),
    ({"edit": "KeepLayers", "keep": DEEP}, "edits.KeepLayers", "the values are nested too deeply"),
]


@pytest.mark.parametrize(("value", "place", "cause"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_what_is_refused(value: Any, place: str | None, cause: str) -> None:
    with pytest.raises(LissomError) as caught:
        edit_from_json(value)
    assert caught.value.code == "LSM-452"
    assert caught.value.place == (place or "")
    assert caught.value.cause.startswith(cause)


def test_a_misspelt_kind_names_the_nearest() -> None:
    with pytest.raises(LissomError, match='Did you mean "KeepLayers"'):
        edit_from_json({"edit": "KeepLayer"})


numbers = st.lists(st.integers(0, 9), max_size=4).map(tuple)
names = st.text(max_size=8)
edits = st.one_of(
    st.builds(KeepLayers, stack=names, keep=numbers),
    st.builds(ShareLayers, stack=names, source=numbers),
    st.builds(KeepHeads, stack=names, heads=st.lists(numbers, max_size=3).map(tuple), cross=st.booleans()),
    st.builds(Factorize, ranks=st.dictionaries(names, st.integers(-1, 10**12))),
    st.builds(Pack, linears=st.lists(names).map(tuple), embeddings=st.lists(names).map(tuple), static=st.booleans()),
)


@settings(max_examples=200, deadline=None)
@given(edit=edits)
def test_json_and_back(edit: Edit) -> None:
    assert edit_from_json(json.loads(json.dumps(edit.to_json()))) == edit


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
fields = st.dictionaries(
    st.sampled_from(["stack", "keep", "source", "heads", "neurons", "ranks", "linears"]), json_values, max_size=3
)


def defaults(kind: type[Edit]) -> dict[str, Any]:
    """The fields that may be left out."""
    missing = dataclasses.MISSING
    plain = {f.name: f.default for f in dataclasses.fields(kind) if f.default is not missing}
    made = {f.name: f.default_factory() for f in dataclasses.fields(kind) if f.default_factory is not missing}
    return json.loads(json.dumps({**plain, **made}))


DEFAULTS: dict[str, dict[str, Any]] = {name: defaults(kind) for name, kind in EDITS.items()}


@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from(sorted(EDITS)), entries=fields)
def test_any_json_is_an_edit_or_refused(kind: str, entries: dict[str, Any]) -> None:
    value = {"edit": kind, **entries}
    with contextlib.suppress(LissomError):  # anything else escapes
        made = json.loads(json.dumps(edit_from_json(value).to_json()))
        assert made == {**DEFAULTS[kind], **value}
