"""A tokenizer without some tokens: the kept ones are found again, the others fall to pieces that are known."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AlbertTokenizer,
    AutoTokenizer,
    BertTokenizer,
    GPT2Tokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    T5Tokenizer,
)

from lissom.data import load_data
from lissom.data.vocabulary import cut_tokenizer, needed, tokens_of
from lissom.errors import LissomError
from tests import tiny


def words(seed: int, count: int) -> list[str]:
    """Texts of words with common stems and endings."""
    draw = random.Random(seed)
    stems = [f"{a}{b}" for a in ("low", "new", "wid", "fast", "great") for b in ("", "er", "est", "ly", "ness", "s")]
    return [" ".join(draw.choice(stems) for _ in range(draw.randint(1, 6))) for _ in range(count)]


TEXTS = words(0, 300)


def trained(model: object, trainer: object, pre: object) -> Tokenizer:
    made = Tokenizer(model)
    made.pre_tokenizer = pre
    made.train_from_iterator(TEXTS, trainer)
    return made


def wordpiece() -> PreTrainedTokenizerBase:
    trainer = trainers.WordPieceTrainer(
        vocab_size=90, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
    )
    made = trained(models.WordPiece(unk_token="[UNK]"), trainer, pre_tokenizers.Whitespace())
    return BertTokenizer(vocab=made.get_vocab())


def byte_pairs(kind: type) -> PreTrainedTokenizerBase:
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made = trained(models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=False))
    vocab = made.get_vocab()
    merges = [tuple(one) for one in json.loads(made.to_str())["model"]["merges"]]
    ends = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return kind(vocab=vocab, merges=merges, **ends)


def unigram(kind: type) -> PreTrainedTokenizerBase:
    special = ["<pad>", "</s>", "<unk>"] if kind is T5Tokenizer else ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=special, unk_token="<unk>", show_progress=False)
    made = trained(models.Unigram(), trainer, pre_tokenizers.Metaspace())
    pieces = [tuple(one) for one in json.loads(made.to_str())["model"]["vocab"]]
    return kind(vocab=pieces, **({"extra_ids": 3} if kind is T5Tokenizer else {}))


def ended_pairs() -> PreTrainedTokenizerBase:
    """Pairs of letters, the last one of a word with its ending, as in the first GPT."""
    trainer = trainers.BpeTrainer(
        vocab_size=90, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    made = trained(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"), trainer, pre_tokenizers.Whitespace())
    made.decoder = decoders.BPEDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def prefixed_pairs() -> PreTrainedTokenizerBase:
    """Pairs of letters with a prefix inside of words, around which a Bert processor puts special tokens."""
    special = ["[CLS]", "[SEP]", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=90, special_tokens=special, continuing_subword_prefix="##", show_progress=False
    )
    model = models.BPE(unk_token="<unk>", continuing_subword_prefix="##")
    made = trained(model, trainer, pre_tokenizers.Whitespace())
    made.normalizer = normalizers.Lowercase()
    made.post_processor = processors.Sequence([processors.BertProcessing(("[SEP]", 1), ("[CLS]", 0))])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", cls_token="[CLS]", sep_token="[SEP]")


KINDS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "WordPiece": wordpiece,
    "GPT-2": lambda: byte_pairs(GPT2Tokenizer),
    "RoBERTa": lambda: byte_pairs(RobertaTokenizer),
    "T5": lambda: unigram(T5Tokenizer),
    "ALBERT": lambda: unigram(AlbertTokenizer),
    "BPE with endings": ended_pairs,
    "BPE with a prefix": prefixed_pairs,
    "words": tiny.tokenizer,
}


def spoken(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


@pytest.mark.parametrize("kind", KINDS)
def test_texts_inside_the_vocabulary_are_read_as_before_and_others_in_pieces(kind: str, tmp_path: Path):
    whole = KINDS[kind]()
    texts = tiny.texts(200) if kind == "words" else TEXTS
    used = {token for text in texts[:4] for token in whole(text, add_special_tokens=False)["input_ids"]}
    kept = needed(whole, used)
    assert used <= kept < set(whole.get_vocab().values()), "nothing went"
    cut = cut_tokenizer(whole, kept)
    cut.save_pretrained(tmp_path)
    for made in (cut, AutoTokenizer.from_pretrained(tmp_path)):
        assert sorted(made.get_vocab().values()) == list(range(len(kept)))
        old, new = (dict(map(reversed, one.get_vocab().items())) for one in (whole, made))
        assert [new[at] for at in range(len(new))] == [old[number] for number in sorted(kept)]
        inside = 0
        for text in texts:
            if set(whole(text)["input_ids"]) <= kept:
                inside += 1
                assert spoken(made, text) == spoken(whole, text)
            elif kind != "words":
                assert (
                    whole.unk_token_id in whole(text)["input_ids"] or made.unk_token_id not in made(text)["input_ids"]
                )
                assert len(made(text)["input_ids"]) > len(whole(text)["input_ids"])
        assert 4 <= inside < len(texts)
        for text in ("", "zebra 山 \x00 é"):
            made(text)  # never an exception
        assert made.all_special_tokens == whole.all_special_tokens


def test_the_tokens_on_the_way_to_a_token_stay():
    """Joined are n e, then l o, lo w, low e, lowe r: "lower" needs "lo", "low" and "lowe", and "ne" goes."""
    letters = ["<unk>", *"lowern"]
    vocab = {token: at for at, token in enumerate([*letters, "ne", "lo", "low", "lowe", "lower", "ow"])}
    merges = [("n", "e"), ("l", "o"), ("lo", "w"), ("low", "e"), ("lowe", "r"), ("o", "w")]
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    whole = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    kept = needed(whole, {vocab["lower"]})
    assert kept == {vocab[one] for one in (*letters, "lo", "low", "lowe", "lower")}
    cut = cut_tokenizer(whole, kept)
    assert spoken(cut, "lower new") == ["lower", "n", "e", "w"]
    assert spoken(whole, "lower new") == ["lower", "ne", "w"]


def test_the_piece_with_the_lowest_score_stays():
    """An unknown letter costs 10 more than it: without "rare" x would cost -12, and "a x" be read otherwise."""
    pieces = [("<unk>", 0.0), ("a", -1.0), ("b", -2.0), ("ab", -2.5), ("rare", -50.0), ("ba", -2.4)]
    made = Tokenizer(models.Unigram(pieces, unk_id=0))
    whole = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    assert needed(whole, {3}) == {0, 1, 2, 3, 4}


def test_every_text_and_list_of_words_is_counted():
    reader = tiny.tokenizer()
    pairs = load_data({"train": {"text_a": ["w3 w4", "w5"], "text_b": ["w6", "w7 w8"], "label": [0, 1]}})
    assert list(tokens_of(pairs.split("train"), reader)) == [[3, 4], [5], [6], [7, 8]]
    tagged = load_data({"train": {"tokens": [["w9", "w10"], ["w11"]], "tags": [["A", "B"], ["A"]]}})
    assert list(tokens_of(tagged.split("train"), reader)) == [[9, 10], [11]]
    written = load_data({"train": {"text": ["w12 w13"], "target": ["w14"]}})
    assert list(tokens_of(written.split("train"), reader)) == [[12, 13], [14]]


def test_a_slow_tokenizer_is_refused():
    class Slow:
        all_special_ids = ()

    with pytest.raises(LissomError, match=r"LSM-734.*Slow has no fast version"):
        needed(Slow(), ())  # type: ignore[arg-type]
