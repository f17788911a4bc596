"""Gates: what they say, and that what is missing is not met."""

from __future__ import annotations

import pytest

from lissom.errors import GateNotMet, LissomError
from lissom.gate import evaluate, parse, require

READINGS = [
    {"name": "keep", "value": 0.985, "low": 0.97, "high": 1.0},
    {"name": "size_mb", "value": 21.5, "low": None, "high": None},
    {"name": "energy_j", "value": None, "low": None, "high": None},
]


def outcome(gate):
    return evaluate(parse(gate), READINGS)


def test_conditions_are_separated_by_commas():
    assert [str(one) for one in parse(" keep >= 0.99 ,size_mb<20")] == ["keep>=0.99", "size_mb<20"]


@pytest.mark.parametrize("gate", ["keep>=0.985", "keep>0.98,size_mb<=21.5", "size_mb==21.5", "size_mb<2.2e1"])
def test_met(gate):
    verdicts = outcome(gate)
    assert all(verdict.met for verdict in verdicts)
    require(verdicts)


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("keep>=0.99", "LSM-501 the gate is not met: keep is 0.985 (95 % interval 0.97 to 1), >= 0.99 is asked for."),
        ("size_mb<21.5", "LSM-501 the gate is not met: size_mb is 21.5, < 21.5 is asked for."),
        ("accuracy>=0.9", "LSM-502 the gate is not met: accuracy was not measured (there is: keep, size_mb)."),
        ("energy_j<=3", "LSM-502 the gate is not met: energy_j was not measured (there is: keep, size_mb)."),
        ("f1>0,keep>1", "LSM-501 the gate is not met: f1 was not measured (there is: keep, size_mb); keep is 0.985"),
    ],
)
def test_not_met(gate, message):
    with pytest.raises(GateNotMet) as caught:
        require(outcome(gate))
    assert message in str(caught.value)
    assert caught.value.exit_code == 5


def test_nothing_measured_is_not_met():
    with pytest.raises(GateNotMet, match=r"keep was not measured \(there is: nothing\)"):
        require(evaluate(parse("keep>=0"), []))


@pytest.mark.parametrize(
    "gate", ["", "keep", "keep=>1", "keep>=", "keep>=nan", "keep>=inf", "0.9<=keep", "keep>=1;a<2", ","]
)
def test_what_is_no_gate_is_refused(gate):
    with pytest.raises(
        LissomError, match=r'LSM-205 ".*" is no condition.*Write it as in --gate "keep>=0\.99,size_mb<=20"'
    ):
        parse(gate)
