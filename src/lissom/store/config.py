"""Configs that nobody vouches for: what they may say, and the config object of transformers they become."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from lissom.errors import LissomError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_log = logging.getLogger(__name__)

# Entries that lead transformers to code, kernels, other repositories or other files. Never followed.
_CODE = frozenset(
    {
        *("auto_map", "trust_remote_code", "custom_pipelines", "custom_generate", "attn_implementation"),
        *("experts_implementation", "kernel_config", "use_kernels", "allow_all_kernels", "fusion_config"),
        *("transformers_weights", "base_model_name_or_path", "adapter_kwargs", "distributed_config"),
    }
)
_HARMLESS = frozenset({"_name_or_path", "_commit_hash", "_attn_implementation_autoset", "_num_labels", "_sentence"})
_LABELS = frozenset({"id2label", "label2id"})  # their keys are anybody's words
METHOD = "lissom"  # the quant_method of our own `quantization_config`
QUANTIZERS = frozenset({METHOD, "compressed-tensors"})

_LAYERS = re.compile(r"(num_)?(hidden_|encoder_|decoder_)?layers?|n_layers?|num_(en|de)coder_layers|num_hidden_groups")
_WIDTHS = re.compile(
    r".*(hidden|embedding)_(size|dim)|d_model|n_embd|dim|word_embed_proj_dim|d_kv|head_dim|.*_heads?|n_head"
)
_INNER = re.compile(r".*intermediate_size|d_ff|n_inner|.*ffn_dim|ffn_hidden_size")
_LIMITS = ((_LAYERS, 1000), (_WIDTHS, 65_536), (_INNER, 4 * 65_536), (re.compile("vocab_size"), 10_000_000))
_ANY_LIMIT = 2**27  # of numbers that no rule names, such as a context length


def names_code(key: str) -> bool:
    """Whether a config entry of this name could lead to code."""
    return key in _CODE or key.startswith("_")


def check_bounds(value: Any, place: str, key: str = "") -> None:
    """Refuse sizes that no model has. Raises LissomError LSM-432 naming the entry."""
    if isinstance(value, dict):
        for name, one in value.items():
            check_bounds(one, place, str(name))
    elif isinstance(value, list):
        if len(value) > 10_000 and key not in _LABELS:
            raise LissomError(432, f'"{key}" lists {len(value)} values', place=place)
        for one in value:
            check_bounds(one, place, key)
    elif isinstance(value, int) and not isinstance(value, bool):
        limit = next((limit for rule, limit in _LIMITS if rule.fullmatch(key)), _ANY_LIMIT)
        named = limit != _ANY_LIMIT
        least = 1 if _positive(key) else 0 if _LAYERS.fullmatch(key) else -1  # -1 is how some widths say «as usual»
        if abs(value) > limit or (named and value < least):
            raise LissomError(432, f'"{key}" is {value}, allowed is 1 to {limit}', place=place)
    elif _positive(key) and isinstance(value, str | float):
        raise LissomError(432, f'"{key}" is {str(value)[:40]!r}, not a whole number', place=place)


def _positive(key: str) -> bool:
    """Whether an entry counts something that every model has."""
    return key in {"hidden_size", "d_model", "n_embd", "dim", "vocab_size", "num_attention_heads", "n_head", "n_heads"}


def clean(value: Any, place: str, dropped: list[str], key: str = "") -> Any:
    """`value` without the entries that could lead to code; their names are added to `dropped`."""
    if isinstance(value, list):
        return [clean(one, place, dropped, key or "[]") for one in value]
    if not isinstance(value, dict) or key in _LABELS:
        return value
    kept = {}
    for name, one in value.items():
        packing = name == "quantization_config"
        if packing and not key and isinstance(one, dict) and one.get("quant_method") == METHOD:
            kept[name] = one  # a record, and refused as a whole if it is not one
        elif names_code(name) or (packing and key):
            if name not in _HARMLESS and one not in (None, False, {}, []):
                dropped.append(name)
        else:
            kept[name] = clean(one, place, dropped, name)
    return kept


def read_config(raw: Any, place: str) -> PreTrainedConfig:
    """The config object for the content of a `config.json`.

    Entries that name code are left out with a warning where transformers has the model type itself.
    Raises LissomError LSM-431 where it has not, LSM-432 for sizes out of bounds, LSM-433 for an unknown model type or
    values that transformers refuses, LSM-434 for a quantization that lissom does not read.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    if not isinstance(raw, dict):
        raise LissomError(433, "the config is not an object", place=place)
    dropped: list[str] = []
    entries = clean(raw, place, dropped)
    model_type = entries.pop("model_type", None)
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        if dropped:
            cause = f'"{dropped[0]}" names code, and transformers itself has no model type {str(model_type)[:80]!r}'
            raise LissomError(431, cause, place=place, remedy="lissom never runs code that comes with a model.")
        cause = f"transformers has no model type {str(model_type)[:80]!r}"
        raise LissomError(433, cause, place=place, remedy=nearest(str(model_type), CONFIG_MAPPING.keys()))
    if dropped:
        _log.warning("%s: ignored, because it could name code: %s", place, ", ".join(sorted(set(dropped))))
    check_bounds(entries, place)
    packing = entries.get("quantization_config")
    if packing is not None and (not isinstance(packing, dict) or packing.get("quant_method") not in QUANTIZERS):
        raise LissomError(434, "it is quantized in a way that lissom does not read", place=place)
    try:
        config = AutoConfig.for_model(model_type, **entries)
    except Exception as error:
        raise LissomError(433, f"transformers refuses it: {first_line(error)}", place=place) from error
    _check_heads(config, place)
    return config


def first_line(error: BaseException) -> str:
    """What an error says, on one line, cut to 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def _check_heads(config: Any, place: str) -> None:
    width, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    own = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    if isinstance(width, int) and isinstance(heads, int) and not own and (heads < 1 or width % heads):
        raise LissomError(432, f"{heads} attention heads do not divide the hidden size {width}", place=place)
