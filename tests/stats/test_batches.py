"""Which texts calibration looks at."""

import json

import pytest
import torch

from lissom.data import load_data
from lissom.errors import LissomError
from lissom.stats.batches import calibration_batches, is_of_tokens
from tests import tiny


@pytest.fixture
def data(tmp_path):
    for split in ("validation", "test"):
        lines = [json.dumps({"text": text, "label": n % 2}) for n, text in enumerate(tiny.texts(6))]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    return load_data(tmp_path)


def test_validation_texts_calibrate_what_has_no_train_split(data):
    batches = list(calibration_batches(data, tiny.tokenizer(), samples=4, max_length=16))
    assert [len(batch["input_ids"]) for batch in batches] == [4]


def test_labels_are_taken_from_the_train_split_only(data):
    with pytest.raises(LissomError, match=r'there is no split "train". There is: validation, test'):
        list(calibration_batches(data, tiny.tokenizer(), samples=4, max_length=16, labelled=True))


def test_running_text_gives_no_more_blocks_than_asked_for(tmp_path):
    text = " ".join(tiny.texts(60))
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps({"text": text}) for _ in range(3)))
    batches = list(calibration_batches(load_data(tmp_path), tiny.tokenizer(), samples=3, max_length=8))
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(3, 8)]


def test_values_of_tokens_have_an_axis_more_than_the_mask():
    mask = torch.ones(2, 3)
    assert is_of_tokens(torch.zeros(2, 3, 5), mask)
    assert is_of_tokens(torch.zeros(2, 3, 4, 5), mask)  # what the factors of a Kronecker product read
    assert not is_of_tokens(torch.zeros(2, 3), mask)  # a pooled state that happens to be as wide as the text is long
    assert not is_of_tokens(torch.zeros(2, 1, 5), mask)
