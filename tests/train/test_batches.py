import torch

from lissom.data.batches import pad
from lissom.train.sampler import GroupedByLength


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
