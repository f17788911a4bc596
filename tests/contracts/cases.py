"""The models that every contract is held against: each variant with each head, and switches that change the layout."""

from __future__ import annotations

import copy
import dataclasses
import functools

import torch
from transformers import PreTrainedModel

from lissom.anatomy import dissect
from tests import tiny


@dataclasses.dataclass(frozen=True)
class Case:
    """A tiny model. changes: config entries on top of the variant's."""

    variant: str
    head: str = "AutoModel"
    changes: tuple[tuple[str, object], ...] = ()

    def __str__(self) -> str:
        return "-".join((self.variant, self.head.removeprefix("AutoModelFor"), *(name for name, _ in self.changes)))

    def model(self) -> PreTrainedModel:
        """A fresh copy in eval mode."""
        return copy.deepcopy(_made(self))

    def inputs(self, model: PreTrainedModel) -> dict[str, torch.Tensor]:
        """A batch for `outputs`; with states to attend to where a lone decoder reads an encoder."""
        inputs = tiny.batch(model)
        crossed = [one.cross for stack in dissect(model).stacks for one in stack.blocks if one.cross is not None]
        if crossed and not _has_encoder(model):
            generator = torch.Generator().manual_seed(1)
            rows, hidden = inputs["input_ids"].shape[0], crossed[0].k.in_features  # as wide as that encoder is
            inputs["encoder_hidden_states"] = torch.randn(rows, 5, hidden, generator=generator)
        return inputs


def _has_encoder(model: PreTrainedModel) -> bool:
    return len(dissect(model).stacks) > 1


@functools.cache
def _made(case: Case) -> PreTrainedModel:
    return tiny.model(case.variant, case.head, **dict(case.changes))


def _case(variant: str, head: str = "AutoModel", **changes: object) -> Case:
    return Case(variant, head, tuple(changes.items()))


ENCODERS = (
    *("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "albert", "mpnet"),
    *("deberta-v2", "deberta-v3", "modernbert"),
)
"""Variants that are one encoder."""
HEADS = tuple(Case(variant, head) for variant in tiny.CONFIGS for head in tiny.heads(variant))
"""Every variant with every head."""

SWITCHES = (
    _case("bert", "AutoModelForCausalLM", is_decoder=True, add_cross_attention=True),
    _case("gpt2", "AutoModelForCausalLM", add_cross_attention=True),
    _case("gpt2", scale_attn_by_inverse_layer_idx=True),
    _case("gpt2", n_inner=40),
    _case("albert", num_hidden_groups=3),
    _case("albert", inner_group_num=2),
    _case("gpt_neox", use_parallel_residual=False, attention_bias=False),
    _case("opt", word_embed_proj_dim=16),
    _case("opt", do_layer_norm_before=False),
    _case("llama", num_key_value_heads=4, attention_bias=True, mlp_bias=True),
    _case("llama", head_dim=16),
    _case("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1),
    _case("modernbert", attention_bias=True, mlp_bias=True),
    _case("deberta-v2", pos_att_type="c2p"),
    _case("deberta-v2", relative_attention=False),
    _case("bart", "AutoModelForSeq2SeqLM", scale_embedding=True),
)
"""Config entries that move, add or remove parts."""

CASES = HEADS + SWITCHES
BARE = tuple(case for case in CASES if case.head == "AutoModel" or case.changes)
"""One case a layout, for the costly checks."""
