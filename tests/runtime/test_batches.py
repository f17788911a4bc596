"""Batches by token budget: every row once, never over the budget, little padding."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissom.runtime import token_batches

LENGTHS = st.lists(st.integers(0, 600), max_size=200)


@given(lengths=LENGTHS, budget=st.integers(1, 5000))
def test_every_row_stands_in_one_batch_and_no_batch_is_over_the_budget(lengths: list[int], budget: int) -> None:
    batches = token_batches(lengths, budget)

    assert sorted(row for rows in batches for row in rows) == list(range(len(lengths)))
    for rows in batches:
        padded = len(rows) * max(1, *(lengths[row] for row in rows))
        assert padded <= budget or len(rows) == 1


@given(lengths=LENGTHS)
def test_a_budget_of_one_token_means_one_row_at_a_time(lengths: list[int]) -> None:
    assert all(len(rows) == 1 for rows in token_batches([length + 1 for length in lengths], 1))


def test_longest_rows_come_first_and_equal_rows_keep_their_order() -> None:
    assert token_batches([3, 9, 3, 4], 9) == [[1], [3, 0], [2]]


def test_no_rows_give_no_batches() -> None:
    assert token_batches([], 10) == []


def test_a_budget_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="a budget of 0 tokens holds no row"):
        token_batches([1], 0)
