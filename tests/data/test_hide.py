import datasets
import pytest
import torch

from lissom.data.hide import hidden_rows, hide
from tests.masked import MASK, tokenizer

IDS = torch.cat([torch.ones(200, 1).long(), torch.randint(4, 99, (200, 98)), torch.zeros(200, 1).long()], dim=1)
THERE = IDS != 0


def test_the_shares_are_those_of_bert():
    torch.manual_seed(0)
    hidden, labels = hide(IDS, THERE, tokenizer(), 0.15)
    asked = labels != -100
    assert torch.equal(labels[asked], IDS[asked])
    assert torch.equal(hidden[~asked], IDS[~asked])
    count = int(asked.sum())
    assert count / (200 * 98) == pytest.approx(0.15, abs=0.01)
    assert int((hidden[asked] == MASK).sum()) / count == pytest.approx(0.8, abs=0.03)
    assert int((hidden[asked] == IDS[asked]).sum()) / count == pytest.approx(0.1, abs=0.03)


def test_special_tokens_and_padding_are_never_hidden():
    torch.manual_seed(0)
    padded = IDS.clone()
    padded[:, 50:] = 7  # padding with a token that is a word elsewhere
    mask = torch.zeros_like(padded).bool()
    mask[:, :50] = True
    _, labels = hide(padded, mask, tokenizer(), 0.9)
    assert (labels[:, 0] == -100).all()
    assert (labels[:, 50:] == -100).all()
    assert (labels[:, 1:50] != -100).float().mean() == pytest.approx(0.9, abs=0.03)


def test_other_tokens_every_time_unless_there_is_a_seed():
    torch.manual_seed(0)
    first, second = (hide(IDS, THERE, tokenizer(), 0.15)[1] for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(first, hide(IDS, THERE, tokenizer(), 0.15)[1])
    before = torch.get_rng_state()
    third, fourth = (hide(IDS, THERE, tokenizer(), 0.15, seed=3)[1] for _ in range(2))
    assert torch.equal(third, fourth)
    assert torch.equal(torch.get_rng_state(), before)


def test_rows_of_validation_hide_the_same_tokens():
    rows = datasets.Dataset.from_dict({"input_ids": [[1, *range(4, 44), 2]] * 2, "attention_mask": [[1] * 42] * 2})
    one, two = (hidden_rows(rows, tokenizer(), seed).to_list() for seed in (0, 0))
    assert one == two
    assert one[0]["labels"] != one[1]["labels"], "of equal rows other tokens"
    assert hidden_rows(rows, tokenizer(), 5).to_list() != one
