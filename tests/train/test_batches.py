import pytest
import torch

from lissom.data.batches import pad
from lissom.train.sampler import GroupedByLength, TokenBudget


def test_padding_is_right_sided_with_its_own_filler():
    rows = [
        {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "token_type_ids": [0, 0, 1], "labels": [1, 2, 3]},
        {"input_ids": [8], "attention_mask": [1], "token_type_ids": [1], "labels": [4]},
    ]
    batch = pad(rows, pad_id=9)
    assert {name: one.tolist() for name, one in batch.items()} == {
        "input_ids": [[5, 6, 7], [8, 9, 9]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "token_type_ids": [[0, 0, 1], [1, 0, 0]],
        "labels": [[1, 2, 3], [4, -100, -100]],
    }


def test_numbers_keep_their_kind():
    assert pad([{"labels": 1}, {"labels": 2}], 0)["labels"].dtype == torch.int64
    assert pad([{"labels": 0.5}, {"labels": 2.0}], 0)["labels"].dtype == torch.float32


def test_the_order_depends_on_seed_and_epoch_only():
    lengths = [3, 9, 4, 8, 5, 7, 6] * 20
    sampler = GroupedByLength(lengths, 4, seed=1)
    first = list(sampler)
    torch.manual_seed(99)
    assert list(sampler) == first
    assert sorted(first) == list(range(len(lengths))) == list(range(len(sampler)))
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(GroupedByLength(lengths, 4, seed=2)) != first


def test_batches_hold_rows_of_about_one_length():
    lengths = torch.randint(2, 60, (800,), generator=torch.Generator().manual_seed(0)).tolist()
    order = list(GroupedByLength(lengths, 8, seed=0))
    spread = [max(part) - min(part) for at in range(0, 800, 8) if (part := [lengths[i] for i in order[at : at + 8]])]
    assert sum(spread) / len(spread) < 6


LENGTHS = torch.randint(2, 60, (800,), generator=torch.Generator().manual_seed(0)).tolist()


def padded(batch, lengths):
    return len(batch) * max(lengths[i] for i in batch)


@pytest.mark.parametrize("processes", [1, 3])
def test_a_budget_of_tokens_is_kept_by_batches_of_about_one_length(processes):
    sampler = TokenBudget(LENGTHS, 512, seed=0, processes=processes)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler), "the schedule is made before the first epoch"
        assert len(batches) % processes == 0
        assert sorted(i for batch in batches for i in batch) == list(range(800))
        assert max(padded(batch, LENGTHS) for batch in batches) <= 512
    filled = sum(LENGTHS) / sum(padded(batch, LENGTHS) for batch in batches)
    assert filled > 0.95


def test_batches_of_a_budget_depend_on_seed_and_epoch_only():
    sampler = TokenBudget(LENGTHS, 512, seed=0)
    first = list(sampler)
    torch.manual_seed(99)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert {frozenset(one) for one in sampler} != {frozenset(one) for one in first}
    assert list(TokenBudget(LENGTHS, 512, seed=1)) != first


def test_cuts_by_hand():
    """Lengths 2, 2, 3 and 9 with a budget of 8: 2 · 2 fits, 3 · 3 does not, and 9 is over it by itself."""
    batches = list(TokenBudget([9, 2, 3, 2], 8, seed=0))
    assert sorted(map(sorted, batches)) == [[0], [1, 3], [2]]
    assert len(TokenBudget([5] * 7, 35, seed=0, processes=2)) == 2
    assert sorted(map(len, TokenBudget([5] * 7, 35, seed=0, processes=4))) == [1, 2, 2, 2]
    assert len(TokenBudget([5], 35, seed=0, processes=4)) == 1
