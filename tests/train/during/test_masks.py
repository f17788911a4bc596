"""Which scores are the lowest, how much is removed by when, and how units spread over weights."""

import itertools

import pytest
import torch

from lissom.errors import LissomError
from lissom.train.during.masks import Along, Schedule, Squares, check_shares, even, lowest, lowest_of


def test_the_lower_half_of_two_by_two():
    found = lowest(torch.tensor([[3.0, 1.0], [2.0, 4.0]]), 0.5)
    assert found.tolist() == [[False, True], [True, False]]


def test_the_count_is_exact_whatever_is_equal():
    scores = torch.zeros(7, 11)
    for share, count in ((0.0, 0), (0.5, 39), (0.9, 69), (0.999, 77)):  # 38.5, 69.3 and 76.9, rounded half up
        assert int(lowest(scores, share).sum()) == count


def test_costs_count_not_units():
    scores, costs = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([4, 1, 2, 1])
    assert lowest(scores, 0.5, costs).tolist() == [True, False, False, False]  # 4 of 8
    assert lowest(scores, 0.6, costs).tolist() == [True, True, False, False]  # 5 is nearer to 4.8 than 4
    assert lowest(scores, 0.75, costs).tolist() == [True, True, True, False]  # 5 and 7 are as near to 6


def test_equal_units_go_evenly():
    gone = lowest(torch.zeros(12), 1 / 3, torch.ones(12)).nonzero().flatten().tolist()
    assert len(gone) == 4
    assert all(after - before >= 2 for before, after in itertools.pairwise(gone))
    assert sorted(even(100).tolist()) == list(range(100))


def test_each_alone_or_all_together():
    scores = [torch.tensor([1.0, 2.0]), torch.tensor([30.0, 40.0])]
    alone, together = (lowest_of(scores, 0.5, together=one) for one in (False, True))
    assert [one.tolist() for one in alone] == [[True, False], [True, False]]
    assert [one.tolist() for one in together] == [[True, True], [False, False]]


def test_the_cubic_schedule():
    schedule = Schedule(0.8, warmup=0.2, cooldown=0.3, refreshes=10)
    wanted = {0.0: 0.0, 0.2: 0.0, 0.45: 0.8 * (1 - 0.5**3), 0.6: 0.8 * (1 - 0.2**3), 0.7: 0.8, 1.0: 0.8}
    for progress, share in wanted.items():
        schedule.move(progress)
        assert schedule.share == pytest.approx(share)
        assert schedule.settled == (progress >= 0.7)


def test_a_mask_is_chosen_now_and_then_and_when_all_is_removed():
    schedule = Schedule(0.8, warmup=0.0, cooldown=0.35, refreshes=4)
    due = [step for step in range(21) if schedule.move(step / 20)]
    assert due == [0, 5, 10, 13, 15, 20]
    again = Schedule(0.8, warmup=0.0, cooldown=0.35, refreshes=4)
    schedule.move(0.8)
    again.load(schedule.state())
    assert not again.move(0.85), "a run that goes on does not choose anew"
    assert again.move(1.0)


def test_no_time_left():
    with pytest.raises(LissomError) as caught:
        check_shares(0.5, 0.6)
    assert str(caught.value) == (
        "LSM-318 while: warmup 0.5 and cooldown 0.6 are more than the whole run. Lower one of them."
    )


def test_squares_at_the_edge_are_cut():
    squares = Squares(3, 5, 2)
    assert squares.units() == (2, 3)
    found = squares(torch.arange(6).view(2, 3))
    assert found.tolist() == [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]


def test_units_along_rows_and_columns():
    values = torch.tensor([2.0, 3.0])
    index = torch.tensor([0, 2, 1])  # the one in the middle has no unit
    assert Along(index, 0, torch.Size([3, 2]))(values).tolist() == [[2, 2], [1, 1], [3, 3]]
    assert Along(index, 1, torch.Size([2, 3]))(values).tolist() == [[2, 1, 3], [2, 1, 3]]
