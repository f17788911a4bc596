"""The parts of a few models, written down by hand."""

from __future__ import annotations

import pytest

from lissom.anatomy import dissect
from lissom.errors import LissomError
from tests import tiny


def test_bert_by_hand() -> None:
    anatomy = dissect(tiny.model("bert", "AutoModelForSequenceClassification"))
    assert anatomy.family == "bert"
    assert anatomy.embeddings == tuple(
        f"bert.embeddings.{name}_embeddings" for name in ("word", "position", "token_type")
    )
    assert [slot.path for slot in anatomy.head] == ["bert.pooler.dense", "classifier"]
    (stack,) = anatomy.stacks
    assert (stack.name, stack.path, stack.order) == ("encoder", "bert.encoder.layer", (0, 1, 2))
    block = stack.blocks[1]
    attention = block.attention
    assert [slot.path.removeprefix("bert.encoder.layer.1.") for slot in block.slots()] == [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ]
    assert (attention.heads, attention.kv_heads, attention.head_dim, attention.tied) == (4, 4, 8, False)
    assert (block.ffn.width, block.ffn.gate, block.cross) == (48, None, None)
    assert block.norms == tuple(f"bert.encoder.layer.1.{name}.LayerNorm" for name in ("attention.output", "output"))


def test_grouped_queries() -> None:
    attention = dissect(tiny.model("llama")).stacks[0].blocks[0].attention
    assert (attention.heads, attention.kv_heads, attention.head_dim) == (4, 2, 8)
    assert (attention.q.out_features, attention.k.out_features, attention.o.in_features) == (32, 16, 32)


def test_two_stacks_and_attention_to_an_encoder() -> None:
    anatomy = dissect(tiny.model("t5-gated", "AutoModelForSeq2SeqLM"))
    encoder, decoder = anatomy.stacks
    assert [len(stack.blocks) for stack in (encoder, decoder)] == [3, 2]
    assert all(block.cross is None for block in encoder.blocks)
    assert all(block.cross is not None and block.ffn.gate is not None for block in decoder.blocks)
    assert anatomy.stack("decoder") is decoder
    assert decoder.depth_key == "num_decoder_layers"
    with pytest.raises(LissomError, match="Name one of: encoder, decoder"):
        anatomy.stack("")


def test_one_block_many_times() -> None:
    (stack,) = dissect(tiny.model("albert")).stacks
    assert len(stack.blocks) == 1
    assert stack.order == (0, 0, 0)


def test_fused_projections_are_listed_once() -> None:
    anatomy = dissect(tiny.model("gpt2"))
    assert len(list(anatomy.slots())) == 3 * 6
    assert [slot.path for slot in anatomy.linears()][:4] == [
        "h.0.attn.c_attn",
        "h.0.attn.c_proj",
        "h.0.mlp.c_fc",
        "h.0.mlp.c_proj",
    ]
    assert next(anatomy.linears()).out_features == 96
