"""What is said of processors by their instructions; none of them is asked."""

from __future__ import annotations

import pytest

from lissom.doctor import _problems
from lissom.forms import forms, overflows, warnings
from lissom.measure.machine import INSTRUCTIONS
from lissom.methods import METHODS
from lissom.plan import plan
from lissom.recipe import Recipe
from tests import tiny

SERVERS = {
    "Sapphire Rapids": ("AVX2", "AVX-512", "VNNI", "BF16", "AMX"),
    "Ice Lake": ("AVX2", "AVX-512", "VNNI"),
    "Alder Lake": ("AVX2", "VNNI"),
    "Skylake": ("AVX2", "AVX-512"),
    "Haswell": ("AVX2",),
    "Graviton 3": ("NEON", "DOTPROD", "I8MM", "BF16"),
    "old": (),
}


def test_they_are_instructions_that_the_machine_record_names():
    assert set().union(*SERVERS.values()) <= set(INSTRUCTIONS)


@pytest.mark.parametrize(
    ("server", "int8", "bf16"),
    [
        ("Sapphire Rapids", "products in AMX: faster", "products in AMX: faster in torch and OpenVINO"),
        ("Ice Lake", "products in VNNI: faster", "no bf16 products: saves space only"),
        ("Alder Lake", "products in VNNI: faster", "no bf16 products"),
        ("Graviton 3", "products in I8MM: faster", "products in BF16: faster"),
        ("Haswell", "no int8 products: saves space, hardly any time; ONNX Runtime adds", "no bf16 products"),
        ("old", "no int8 products: saves space, hardly any time", "no bf16 products"),
    ],
)
def test_what_is_fast(server: str, int8: str, bf16: str):
    found = forms(SERVERS[server])
    assert found["int8"].startswith(int8)
    assert found["bf16"].startswith(bf16)
    assert "one text or token at a time" in found["4-bit groups"]


def test_who_overflows():
    assert {name for name, has in SERVERS.items() if overflows(has)} == {"Skylake", "Haswell"}


def test_seven_bits_are_asked_for_where_eight_overflow():
    eight, seven = (METHODS["int8"](bits=bits) for bits in (8, 7))
    assert warnings((eight,), SERVERS["Ice Lake"]) == []
    assert warnings((seven, METHODS["rtn"]()), SERVERS["Haswell"]) == []
    (said,) = warnings((METHODS["rtn"](bits=8), eight), SERVERS["Haswell"])
    assert said.endswith("Write int8: {bits: 7}.")
    assert any("int8: {bits: 7}" in one for one in _problems({"instructions": SERVERS["Haswell"]}, {}))


def test_plan_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lissom.measure.machine._cpuinfo", lambda: {"flags": "sse4_2 avx2"})
    found = plan(tiny.model("bert"), Recipe("one", (METHODS["int8"](),)))
    assert any(note.startswith("int8 with 8 bits: ") for note in found.notes)
    assert found.as_dict()["forms"] == forms(("AVX2",))
