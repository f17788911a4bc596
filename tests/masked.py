"""A tokenizer with a mask token, for masked language models."""

from __future__ import annotations

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tests.tiny import VOCABULARY

MASK = 3


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """That of `tiny`, with [MASK] as its token 3; the words are w4 to w98."""
    words = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[MASK]": MASK} | {f"w{i}": i for i in range(4, VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w4"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
    )
