"""More training texts: neighbours by hand, whole words, labels carried, the same copies for the same seed."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lissom.anatomy import dissect
from lissom.data import load_data
from lissom.data.augment import Augment, augmented
from lissom.data.words import Spans, Words, nearest
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods import METHODS, Given
from lissom.methods.options import build, plain
from tests import tiny

HEAD = "AutoModelForSequenceClassification"
MLM = "AutoModelForMaskedLM"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PIECES = (*SPECIAL, "good", "great", "bad", "awful", "film", "movie", "##ly", "##s", "Good", "Bad", "-", "1", "the")


def tokenizer(pieces: tuple[str, ...] = PIECES, *, lower: bool = False) -> PreTrainedTokenizerFast:
    """Word pieces."""
    backend = Tokenizer(models.WordPiece({one: at for at, one in enumerate(pieces)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if lower:
        backend.normalizer = normalizers.Lowercase()
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def model(head: str = HEAD, seed: int = 0, **changes: object):
    torch.set_num_threads(1)
    return tiny.model("bert", head, seed, **{"vocab_size": len(PIECES), **changes})


def rows(texts: list[str], **columns: list) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": texts, **columns})


def made(data: datasets.Dataset, how: Augment, seed: int = 0, **changes: object) -> datasets.Dataset:
    given = {"models": (model(),), "tokenizer": tokenizer(), "max_length": 32, **changes}
    return augmented(data, how, given.pop("models"), given.pop("tokenizer"), seed=seed, **given)


# words


def test_only_whole_words_are_words() -> None:
    found = Words.of(tokenizer(), len(PIECES))
    assert found.texts == ("good", "great", "bad", "awful", "film", "movie", "Good", "Bad", "the")
    assert [found.number(one) for one in ("good", "goodly", "Good", "[MASK]", "##s", "GOOD")] == [0, -1, 6, -1, -1, -1]
    uncased = Words.of(tokenizer(PIECES[:14], lower=True), 14)
    assert uncased.number("GOOD") == 0
    assert [uncased.like(1, old) for old in ("good", "Good", "GOOD")] == ["great", "Great", "GREAT"]


def test_words_of_byte_level_and_sentence_pieces() -> None:
    bytes_ = Tokenizer(models.BPE({"Ġgood": 0, "good": 1, "ĠcafÃ©": 2, "Ġ,": 3, "Ġbad": 4}, []))
    bytes_.pre_tokenizer, bytes_.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    found = Words.of(PreTrainedTokenizerFast(tokenizer_object=bytes_), 5)
    assert (found.texts, found.ids.tolist()) == (("good", "café", "bad"), [0, 2, 4])
    pieces = Tokenizer(models.Unigram([("▁good", 0.0), ("good", 0.0), ("▁bad", 0.0), ("<s>", 0.0)], unk_id=3))
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    found = Words.of(PreTrainedTokenizerFast(tokenizer_object=pieces, bos_token="<s>"), 4)
    assert (found.texts, found.ids.tolist()) == (("good", "bad"), [0, 2])


def test_where_words_stand() -> None:
    found = Spans.of(["a good-looking film, 1st", "don't", "naïve x2"])
    assert found.words == ("a", "film", "naïve", "x2")
    assert (found.text.tolist(), found.start.tolist()) == ([0, 0, 2, 2], [0, 15, 0, 6])


def test_nearest_by_hand() -> None:
    """By cosine, not by length, and of the same case: great is nearest to good, then film; Good is left out."""
    table = torch.zeros(len(PIECES), 2)
    vectors = {"good": (1, 0), "great": (9, 1), "film": (1, 1), "bad": (-1, 0), "Good": (1, 0), "Bad": (-1, 0.1)}
    for word, vector in vectors.items():
        table[PIECES.index(word)] = torch.tensor(vector, dtype=torch.float32)
    words = Words.of(tokenizer(), len(PIECES))
    wanted = np.array([words.number(one) for one in ("good", "Good")])
    found = nearest(words, table, wanted, 2)
    assert [words.texts[one] for one in found[0]] == ["great", "film"]
    assert found[1].tolist() == [words.number("Bad"), -1]


# copies


def test_every_word_gives_way_to_one_of_its_candidates() -> None:
    how = Augment(copies=8, probability=1.0, candidates=2)
    network, reader = model(), tokenizer()
    words = Words.of(reader, len(PIECES))
    table = network.get_input_embeddings().weight.detach()
    near = nearest(words, table, np.arange(len(words.texts)), 2)
    text = "the good film , 1 badly"
    found = made(rows([text] * 3), how, models=(network,))["text"]
    assert found[:3] == [text] * 3
    for copy in found[3:]:
        *new, comma, number, rest = copy.split()
        assert (comma, number, rest) == (",", "1", "badly")  # no word of one piece
        for old, one in zip(("the", "good", "film"), new, strict=True):
            assert words.number(one) in near[words.number(old)]


def test_what_stands_between_words_stays() -> None:
    found = made(rows(["  good,(film)  !\tthe-bad one"]), Augment(copies=3, probability=1.0))["text"]
    assert all(re.fullmatch(r"  \w+,\(\w+\)  !\tthe-bad one", one) for one in found)
    assert len(set(found)) == len(found) > 1


def test_copies_labels_and_order() -> None:
    texts = ["good bad great awful film movie the " * 3, "the movie film awful great bad good " * 3]
    data = rows(texts, label=[1, 0])
    found = made(data, Augment(copies=5))
    assert len(found) == 2 + 5 * 2
    assert found.features == data.features
    assert found["text"][:2] == texts
    assert found["label"][:] == [1, 0] * 6
    assert len(set(found["text"])) == len(found)
    numbers = made(rows(texts, label=[0.5, 0.25]), Augment(copies=1))
    assert numbers["label"][:] == [0.5, 0.25] * 2


def test_copies_that_repeat_are_left_out() -> None:
    assert made(rows(["1 - 1", "??"]), Augment(copies=3))["text"][:] == ["1 - 1", "??"]
    assert made(rows(["good"]), Augment(copies=50, probability=1.0, candidates=1)).num_rows == 2


def test_both_texts_of_a_pair_change() -> None:
    data = rows(["good film", "bad"], text_b=["the movie", "awful film"], label=[0, 1])
    found = made(data, Augment(copies=4, probability=1.0))
    assert found.column_names == data.column_names
    for new in found.select(range(2, len(found))):
        old = data[new["label"]]  # each row has a label of its own
        for side in ("text", "text_b"):
            assert len(new[side].split()) == len(old[side].split())
            assert new[side] != old[side]


def test_the_seed_decides() -> None:
    data = rows(["good bad great awful film movie the"] * 4)
    how = Augment(copies=3, mask=0.1, ngram=0.3)
    one, same, other = (made(data, how, seed)["text"][:] for seed in (0, 0, 1))
    assert one == same != other


def test_the_odds_are_those_asked_for() -> None:
    data = rows(["good bad great awful film movie the bad film good"] * 200)
    found = made(data, Augment(copies=2, probability=0.4, mask=0.2))["text"][200:]
    pairs = [pair for one in found for pair in zip(data[0]["text"].split(), one.split(), strict=True)]
    masked = sum(new == "[MASK]" for _, new in pairs) / len(pairs)
    replaced = sum(new not in (old, "[MASK]") for old, new in pairs) / len(pairs)
    assert masked == pytest.approx(0.2, abs=0.03)
    assert replaced == pytest.approx(0.4, abs=0.03)


def test_special_tokens_come_from_mask_alone() -> None:
    data = rows(["good bad great awful film movie the"] * 20)
    assert not any("[" in one for one in made(data, Augment(copies=5, probability=0.9))["text"])
    assert any("[MASK]" in one for one in made(data, Augment(copies=1, mask=0.5))["text"])
    unmasked = tokenizer()
    unmasked.mask_token = None
    assert any("[UNK]" in one for one in made(data, Augment(mask=0.5), tokenizer=unmasked)["text"])


def test_n_grams_are_one_to_five_words_in_a_row() -> None:
    text = "a b c d e f g h"
    found = made(rows([text] * 40), Augment(copies=1, probability=0.0, ngram=1.0))["text"][40:]
    assert all(one in text for one in found)
    assert {len(one.split()) for one in found} == {1, 2, 3, 4, 5}


def test_a_masked_language_model_proposes() -> None:
    """Each word that is replaced is among the most likely ones where it is masked, in the original text."""
    speaker, reader = model(MLM, 3), tokenizer()
    words = Words.of(reader, len(PIECES))
    text = "the good film 1 badly"
    found = made(rows([text]), Augment(copies=9, probability=0.5, candidates=2, by="mlm"), models=(model(), speaker))
    assert len(found) > 3
    for at, old in enumerate(("the", "good", "film")):
        masked = reader(text.replace(old, "[MASK]"), return_tensors="pt")
        with torch.no_grad():
            scores = speaker(input_ids=masked["input_ids"]).logits[0, at]
        small = [i for i, one in enumerate(words.texts) if one.islower() and one != old]
        best = sorted(small, key=lambda i: -float(scores[words.ids[i]]))[:2]
        assert {one.split()[at] for one in found["text"]} <= {old, *(words.texts[i] for i in best)}
    assert {one.split()[-1] for one in found["text"]} == {"badly"}


# in tune


def given(tmp_path: Path, **changes: object) -> Given:
    texts = ["good great film", "the bad awful movie", "great good movie the", "awful bad film"] * 6
    data = load_data({"train": {"text": texts, "label": [1, 0, 1, 0] * 6}})
    teacher = model(num_labels=2)
    return Given(**{"data": data, "tokenizer": tokenizer(), "teacher": teacher, "work": tmp_path, **changes})


def test_tune_trains_on_the_copies_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    step = METHODS["tune"](epochs=1, batch_size=8, augment={"copies": 2}, learn={"task": {}})
    editor, gets = Editor(model(num_labels=2)), given(tmp_path)
    step.check(editor.anatomy(), gets)
    with caplog.at_level("INFO"):
        done = step.apply(editor, gets)
    copies = int(re.search(r"(\d+) altered copies of 24 texts", caplog.text)[1])
    assert 24 < copies <= 48
    assert done["steps"] == -(-(24 + copies) // 8)


def test_what_a_language_model_proposed_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = METHODS["tune"](max_steps=1, augment=Augment(by="mlm"))
    gets = given(tmp_path, teachers=(model(MLM),))
    step.check(dissect(gets.teacher), gets)
    step.apply(Editor(model(num_labels=2)), gets)
    assert len(list(tmp_path.glob("words-*.safetensors"))) == 1
    monkeypatch.setattr("lissom.data.augment.proposed", None)
    step.apply(Editor(model(num_labels=2)), gets)


def test_options_survive_plain_values() -> None:
    step = METHODS["tune"](augment=Augment(copies=3, by="mlm", mask=0.1))
    assert build(type(step), plain(step), str) == step
    assert dataclasses.asdict(Augment()) == {
        "copies": 1, "probability": 0.4, "candidates": 15, "by": "embeddings", "mask": 0.0, "ngram": 0.0
    }  # fmt: skip


@pytest.mark.parametrize(
    ("augment", "changes", "message"),
    [
        (
            {"by": "mlm"},
            {},
            "LSM-317 augment.by: a masked language model proposes the words, and there is "
            "BertForSequenceClassification. Use embeddings, or teach with a *ForMaskedLM.",
        ),
        (
            {"mask": 0.1},
            {"tokenizer": PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0})))},
            "LSM-317 augment.mask: the tokenizer has neither a mask nor an unknown token. Leave mask at 0.",
        ),
        (
            {},
            {"data": load_data({"train": {"tokens": [["a", "b"]], "tags": [["X", "Y"]]}})},
            "LSM-319 augment: the labels of tagging stand at words, and augment changes those. Leave it out.",
        ),
        ({"probability": 1.5}, {}, "LSM-314 augment.probability: augment.probability 1.5 is outside 0 to 1."),
        ({"copy": 2}, {}, 'LSM-312 augment.copy: unknown key "copy" in tune.augment. Did you mean "copies"?'),
    ],
)
def test_wrong_options_are_explained(tmp_path: Path, augment: dict, changes: dict, message: str) -> None:
    with pytest.raises(LissomError) as caught:
        METHODS["tune"](augment=augment).check(dissect(model()), given(tmp_path, **changes))
    assert str(caught.value) == message
