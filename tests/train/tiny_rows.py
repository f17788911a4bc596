"""Tiny data sets, encoded as `lissom.data.encode` does it, and as texts."""

import random

import datasets
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lissom.data import Data, Task

VOCABULARY = 99


def rows(kind: str = "classification", count: int = 40, seed: int = 0) -> datasets.Dataset:
    """Rows of 4 to 11 tokens; the label is decided by the first token."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, size: int) -> list[int]:
        return torch.randint(low, high, (size,), generator=generator).tolist()

    ids = [draw(3, VOCABULARY, length) for length in draw(4, 12, count)]
    columns = {"input_ids": ids, "attention_mask": [[1] * len(one) for one in ids]}
    if kind == "classification":
        columns["labels"] = [one[0] % 3 for one in ids]
    elif kind == "regression":
        columns["labels"] = [one[0] / VOCABULARY for one in ids]
    elif kind == "tagging":
        columns["labels"] = [[-100, *[token % 3 for token in one[1:]]] for one in ids]
    elif kind == "question_answering":
        columns |= {"start_positions": [1] * count, "end_positions": [2] * count}
    elif kind == "language_modelling":
        columns["labels"] = ids
    return datasets.Dataset.from_dict(columns)


WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "ball", "goal", "match", "bank", "money", "stock", "the", "a", "of", "and")


def tokenizer() -> PreTrainedTokenizerBase:
    """Words of `topics`, with special tokens around a text."""
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def topics(count: int = 112) -> Data:
    """Texts about sport or business, which a few words tell."""
    generator = random.Random(0)
    texts, labels = [], []
    for i in range(count):
        words = [generator.choice(WORDS[4 + 3 * (i % 2) : 7 + 3 * (i % 2)]), *generator.choices(WORDS[10:], k=i % 5)]
        generator.shuffle(words)
        texts.append(" ".join(words))
        labels.append(i % 2)
    split = datasets.Dataset.from_dict({"text": texts, "label": labels})
    return Data(
        name="topics",
        task=Task(kind="classification", labels=("sport", "business"), metric="accuracy"),
        splits={"train": split.select(range(16, count)), "validation": split.select(range(16))},
        columns={"text": "text", "label": "label"},
        digest="0",
    )
