"""Tiny random models of every family, with every head. Built in milliseconds, no network."""

from __future__ import annotations

import random

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

VOCABULARY = 99
_COMMON = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
_LLAMA = {**_BERT, "num_key_value_heads": 2, "tie_word_embeddings": False}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4, "decoder_start_token_id": 0}

CONFIGS: dict[str, tuple[str, dict[str, object]]] = {
    "bert": ("bert", _BERT),
    "roberta": ("roberta", _BERT),
    "xlm-roberta": ("xlm-roberta", _BERT),
    "camembert": ("camembert", _BERT),
    "electra": ("electra", {**_BERT, "embedding_size": 16}),
    "distilbert": (
        "distilbert",
        {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 64},
    ),
    "albert": ("albert", {**_BERT, "embedding_size": 16}),
    "mpnet": ("mpnet", _BERT),
    "deberta-v2": (
        "deberta-v2",
        {**_BERT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8},
    ),
    "deberta-v3": (
        "deberta-v2",
        {
            **_BERT,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 8,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
    ),
    "modernbert": (
        "modernbert",
        {**_BERT, "cls_token_id": 1, "sep_token_id": 2, "global_attn_every_n_layers": 2, "local_attention": 8},
    ),
    "t5": ("t5", {**_T5, "num_decoder_layers": 2}),
    "t5-gated": (
        "t5",
        {**_T5, "num_decoder_layers": 2, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "bart": (
        "bart",
        {
            "d_model": 32,
            "encoder_layers": 3,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "max_position_embeddings": 64,
            "decoder_start_token_id": 2,
        },
    ),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}),
    "opt": (
        "opt",
        {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "ffn_dim": 48,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 32,
        },
    ),
    "gpt_neox": ("gpt_neox", _BERT),
    "llama": ("llama", _LLAMA),
    "mistral": ("mistral", _LLAMA),
    "qwen2": ("qwen2", _LLAMA),
    "qwen3": ("qwen3", {**_LLAMA, "head_dim": 8}),
}
"""Name of a variant -> (model_type, config entries)."""

HEADS = (
    "AutoModel",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForMaskedLM",
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForMultipleChoice",
)


def config(variant: str, **changes: object) -> transformers.PreTrainedConfig:
    """The tiny config of a variant."""
    model_type, entries = CONFIGS[variant]
    return AutoConfig.for_model(model_type, **{**_COMMON, "num_labels": 3, **entries, **changes})


def heads(variant: str) -> tuple[str, ...]:
    """The auto classes that transformers has for a variant."""
    kind = type(config(variant))
    return tuple(name for name in HEADS if kind in getattr(transformers, name)._model_mapping)


def model(variant: str, head: str = "AutoModel", seed: int = 0, **changes: object) -> PreTrainedModel:
    """A tiny random model in eval mode. Weights are larger than usual, so that differences show."""
    torch.manual_seed(seed)
    labels = {"num_labels": 2} if head == "AutoModelForQuestionAnswering" else {}
    made: PreTrainedModel = getattr(transformers, head).from_config(config(variant, **{**labels, **changes}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return made.eval()


def batch(made: PreTrainedModel, rows: int = 2, length: int = 9, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random ids with real padding in the last row, as keyword arguments of the model."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, 2, length) if type(made).__name__.endswith("MultipleChoice") else (rows, length)
    ids = torch.randint(3, VOCABULARY, shape, generator=generator)
    ids[..., -1] = 2  # some heads read the state at the end-of-sequence token
    mask = torch.ones_like(ids)
    if length > 2 and rows > 1:
        ids[-1, ..., -3:] = torch.tensor([2, 0, 0])
        mask[-1, ..., -2:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    bare_or_seq2seq = type(made).__name__.endswith(("ForConditionalGeneration", "Model"))
    if made.config.is_encoder_decoder and bare_or_seq2seq and made.config.model_type == "t5":
        inputs["decoder_input_ids"] = ids[:, : max(1, length - 2)]
    return inputs


def outputs(made: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Everything that the model answers first: logits, span logits, or hidden states, in one flat tensor."""
    with torch.inference_mode():
        answer = made(**inputs, use_cache=False) if _caches(made) else made(**inputs)
    names = ("logits", "start_logits", "end_logits", "prediction_logits", "last_hidden_state")
    return torch.cat([answer[name].flatten() for name in names if name in answer])


def _caches(made: PreTrainedModel) -> bool:
    return bool(getattr(made.config, "use_cache", False)) and made.config.model_type not in {"bert", "electra"}


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A word tokenizer over the words w3 to w98, with the special tokens of `config`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w3"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        bos_token="[CLS]",
        eos_token="[SEP]",
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
    )


def texts(count: int, seed: int = 0, words: int = 8) -> list[str]:
    """Texts of one to `words` words that `tokenizer` knows."""
    draw = random.Random(seed)
    return [" ".join(f"w{draw.randrange(3, VOCABULARY)}" for _ in range(draw.randint(1, words))) for _ in range(count)]


def labelled_texts(count: int, seed: int = 0) -> dict[str, list[object]]:
    """Texts with a label that can be learned: the class is the remainder by 3 of the first word's number."""
    made = texts(count, seed)
    return {"text": list(made), "label": [int(one.split()[0][1:]) % 3 for one in made]}
