import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissom.bench.pareto import pareto


@pytest.mark.parametrize(
    ("points", "better", "front"),
    [
        ([], ["higher"], []),
        ([(1, 1)], ["higher", "higher"], [True]),
        ([(0.9, 10), (0.9, 20), (0.8, 30), (0.7, 5)], ["higher", "higher"], [False, True, True, False]),
        ([(0.9, 10), (0.9, 20), (0.8, 30), (0.7, 5)], ["higher", "lower"], [True, False, False, True]),
        ([(1, 2), (1, 2)], ["higher", "lower"], [True, True]),
        ([(3, 1, 1), (1, 3, 1), (1, 1, 3), (1, 1, 1)], ["higher"] * 3, [True, True, True, False]),
    ],
)
def test_by_hand(points, better, front):
    assert pareto(points, better) == front


def test_a_point_of_another_length_is_refused():
    with pytest.raises(ValueError, match="zip"):
        pareto([(1, 2), (1,)], ["higher", "higher"])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_every_point_off_the_front_is_beaten_by_one_on_it(points):
    front = pareto(points, ["higher", "lower"])
    best = [point for point, on in zip(points, front, strict=True) if on]
    assert best
    for point, on in zip(points, front, strict=True):
        beaten = any(a >= point[0] and b <= point[1] and (a, b) != point for a, b in best)
        assert on != beaten
