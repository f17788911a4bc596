"""Token numbers, labels at the right positions, cuts counted."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lissom.data import Data, encode, load_data
from lissom.errors import LissomError

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefg", *(f"##{one}" for one in "abcdefg")]
CLS, SEP = 1, 2


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """BERT's own kind: each letter is a sub-word, [CLS] a [SEP] b [SEP]."""
    made = Tokenizer(models.WordPiece({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.WordPiece()
    made.post_processor = processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def encoded(source: dict[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int = 32) -> dict[str, Any]:
    data: Data = load_data(source)
    return dict(encode(data.split("train"), tokenizer, data.task, max_length).to_dict())


def test_classes_and_pairs(tokenizer: PreTrainedTokenizerBase) -> None:
    found = encoded({"text_a": ["a b", "c"], "text_b": ["c", "d"], "label": ["x", "y"]}, tokenizer)
    assert found == {
        "input_ids": [ids("[CLS] a b [SEP] c [SEP]"), ids("[CLS] c [SEP] d [SEP]")],
        "token_type_ids": [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1]],
        "attention_mask": [[1] * 6, [1] * 5],
        "labels": [0, 1],
    }


def test_numbers_and_no_labels(tokenizer: PreTrainedTokenizerBase) -> None:
    assert encoded({"text": ["a", "b"], "label": [0.5, 2.0]}, tokenizer)["labels"] == [0.5, 2.0]
    data = load_data({"text": ["a", "b"]}, model_labels=["x", "y"])
    assert "labels" not in encode(data.split("train"), tokenizer, data.task, 8).column_names


def test_cuts_are_counted(tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture) -> None:
    data = load_data({"text": ["a b c d", "a b", "a b c"], "label": [0, 1, 0]})
    found = encode(data.split("train"), tokenizer, data.task, 4)
    assert [len(row) for row in found["input_ids"]] == [4, 4, 4]
    assert found.info.description == "2 of 3 texts were cut at 4 tokens"
    assert "2 of 3 texts were cut at 4 tokens." in caplog.messages
    assert encode(data.split("train"), tokenizer, data.task, 6).info.description == ""


def test_more_rows_than_a_batch(tokenizer: PreTrainedTokenizerBase) -> None:
    found = encoded({"text": ["a", "b c"] * 1001, "label": [0, 1] * 1001}, tokenizer)
    assert found["labels"] == [0, 1] * 1001
    assert found["input_ids"][-1] == ids("[CLS] b c [SEP]")


def test_tags_stand_at_first_subwords(tokenizer: PreTrainedTokenizerBase) -> None:
    found = encoded({"tokens": [["ab", "c", "deb"], ["a"]], "tags": [["O", "B-x", "I-x"], ["O"]]}, tokenizer)
    assert found["input_ids"][0] == ids("[CLS] a ##b c d ##e ##b [SEP]")
    assert found["labels"] == [[-100, 2, -100, 0, 1, -100, -100, -100], [-100, 2, -100]]


def test_answers_are_spans_of_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    source = {
        "question": ["a", "a", "a"],
        "context": ["b cd e", "b cd e", "b cd e"],
        "answers": [{"text": ["cd"], "start": [2]}, {"text": ["e"], "start": [5]}, {"text": [], "start": []}],
    }
    found = encoded(source, tokenizer)
    assert found["input_ids"][0] == ids("[CLS] a [SEP] b c ##d e [SEP]")
    assert (found["start_positions"], found["end_positions"]) == ([4, 6, 0], [5, 6, 0])
    cut = encoded(source, tokenizer, max_length=7)
    assert (cut["start_positions"], cut["end_positions"]) == ([4, 0, 0], [5, 0, 0])


def test_running_text_becomes_blocks(tokenizer: PreTrainedTokenizerBase) -> None:
    found = encoded({"text": ["a b c", "d e f"]}, tokenizer, max_length=4)
    assert found["input_ids"] == found["labels"] == [ids("a b c d"), ids("e f")]
    tokenizer.eos_token = "[SEP]"
    try:
        found = encoded({"text": ["a b c", "d e f"]}, tokenizer, max_length=4)
    finally:
        tokenizer.eos_token = None
    assert found["input_ids"] == [ids("a b c [SEP]"), ids("d e f [SEP]")]
    assert found["attention_mask"] == [[1] * 4, [1] * 4]


def test_a_tokenizer_limit_holds(tokenizer: PreTrainedTokenizerBase) -> None:
    before, tokenizer.model_max_length = tokenizer.model_max_length, 5
    try:
        found = encoded({"text": ["a b c d e f", "b"], "label": [0, 1]}, tokenizer, max_length=128)
    finally:
        tokenizer.model_max_length = before
    assert len(found["input_ids"][0]) == 5


def test_faults(tokenizer: PreTrainedTokenizerBase) -> None:
    data = load_data({"text": ["a", "b"], "label": [0, 1]})
    with pytest.raises(LissomError) as caught:
        encode(data.split("train"), tokenizer, data.task, 2)
    assert str(caught.value) == ("LSM-824 max_length 2 leaves no room for a text; this tokenizer needs 3 or more.")
    with pytest.raises(LissomError) as caught:
        encode(data.split("train").select([]), tokenizer, data.task, 8)
    assert str(caught.value) == "LSM-809 there are no rows to encode."
