"""One record a family: where its parts are and which attributes count them. The only file with family names.

Paths are relative: stack paths to the base model, layer paths to a block. A part of a fused projection is written
`path[i/n]` when the n parts lie one after the other in the outputs, `path[i%n]` when they alternate head by head.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionRecord:
    """Where one attention layer of a block is.

    path: the module that holds the counts; projections are relative to it.
    o: the output projection, relative to the block.
    head_dim: attribute of the module with the size of a head.
    heads, kv_heads, width: attributes to rewrite when heads are removed (width = heads * head_dim).
    extra: further projections whose outputs are laid out by head; left out where a model has not got them.
    head_bias: embedding with one column a head, relative to the base model.  tied: see `parts.Attention`.
    """

    path: str
    q: str
    k: str
    v: str
    o: str
    head_dim: str = "head_dim"
    heads: tuple[str, ...] = ()
    kv_heads: tuple[str, ...] = ()
    width: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    head_bias: str = ""
    tied: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class FfnRecord:
    """Where the feed-forward layer of a block is, relative to the block."""

    up: str
    down: str
    gate: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackRecord:
    """One stack of blocks.

    blocks: path of the module list, relative to the base model; `*` stands for every entry of a list on the way.
    depth_key: config entry that counts the executed layers; own_depth_key: the same in the stack's own config copy.
    heads_key, width_key: config entries that count the query heads and the neurons of a feed-forward layer.
    repeats: the blocks are run again and again until depth_key is reached.
    first_only: a module of the first block that the whole stack depends on, with the attribute that says who has it.
    depth_scaled: config switch under which a layer's arithmetic depends on its number.
    gives: what a block gives after the hidden states, by the argument in which the next block takes it, "" for what no
        block takes; None where it gives the states alone and no tuple.
    per_row: arguments of a block, besides the hidden states, that hold something for each text of the batch; () where a
        text cannot leave before the last layer, because later layers or other stacks need it.
    ffn: alternatives; the first whose parts all exist is taken.
    ffn_width: attributes, relative to the block, that hold the number of neurons.
    """

    name: str
    blocks: str
    attention: AttentionRecord
    ffn: tuple[FfnRecord, ...]
    cross: AttentionRecord | None = None
    depth_key: str = "num_hidden_layers"
    own_depth_key: str = ""
    heads_key: str = "num_attention_heads"
    width_key: str = "intermediate_size"
    repeats: bool = False
    first_only: tuple[str, str] | None = None
    depth_scaled: str = ""
    gives: tuple[str, ...] | None = None
    per_row: tuple[str, ...] = ()
    ffn_width: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A family of architectures. types: the `model_type`s of transformers that it covers.

    as_wide: config entries, besides `hidden_size`, that must be equal to it.
    integer: whether the layers of `lissom.nn.integer_layers` can stand for those of its blocks, and have their names.
    ignored: modules with a 2-D weight that is neither a slot nor looked up by id, by the end of their path, and why.
    """

    name: str
    types: tuple[str, ...]
    stacks: tuple[StackRecord, ...]
    ignored: tuple[tuple[str, str], ...] = ()
    as_wide: tuple[str, ...] = ()
    integer: bool = False


def _bert_attention(path: str) -> AttentionRecord:
    return AttentionRecord(
        path=f"{path}.self",
        q="query",
        k="key",
        v="value",
        o=f"{path}.output.dense",
        head_dim="attention_head_size",
        heads=("num_attention_heads",),
        width=("all_head_size",),
    )


_BERT_FFN = FfnRecord(up="intermediate.dense", down="output.dense")

_HEAD_BIAS = ("relative_attention_bias", "one column a head, cut together with the heads")

_BERT = Family(
    name="bert",
    types=("bert", "roberta", "xlm-roberta", "camembert", "electra"),
    stacks=(
        StackRecord(
            name="encoder",
            blocks="encoder.layer",
            attention=_bert_attention("attention"),
            cross=_bert_attention("crossattention"),
            ffn=(_BERT_FFN,),
            per_row=("attention_mask",),
        ),
    ),
    integer=True,
)

_DISTILBERT = Family(
    name="distilbert",
    types=("distilbert",),
    stacks=(
        StackRecord(
            name="encoder",
            blocks="transformer.layer",
            attention=AttentionRecord(
                path="attention",
                q="q_lin",
                k="k_lin",
                v="v_lin",
                o="attention.out_lin",
                head_dim="attention_head_size",
                heads=("n_heads",),
                width=("dim",),
            ),
            ffn=(FfnRecord(up="ffn.lin1", down="ffn.lin2"),),
            depth_key="n_layers",
            heads_key="n_heads",
            width_key="hidden_dim",
            per_row=("attention_mask",),
        ),
    ),
)

_ALBERT = Family(
    name="albert",
    types=("albert",),
    stacks=(
        StackRecord(
            name="encoder",
            blocks="encoder.albert_layer_groups.*.albert_layers",
            attention=AttentionRecord(
                path="attention",
                q="query",
                k="key",
                v="value",
                o="attention.dense",
                head_dim="attention_head_size",
                heads=("num_attention_heads",),
                width=("all_head_size",),
            ),
            ffn=(FfnRecord(up="ffn", down="ffn_output"),),
            repeats=True,
            per_row=("attention_mask",),
        ),
    ),
)

_MPNET = Family(
    name="mpnet",
    types=("mpnet",),
    stacks=(
        StackRecord(
            name="encoder",
            blocks="encoder.layer",
            attention=AttentionRecord(
                path="attention.attn",
                q="q",
                k="k",
                v="v",
                o="attention.attn.o",
                head_dim="attention_head_size",
                heads=("num_attention_heads",),
                width=("all_head_size",),
                head_bias="encoder.relative_attention_bias",
                tied=True,
            ),
            ffn=(_BERT_FFN,),
            gives=(),
            per_row=("attention_mask", "position_bias"),
        ),
    ),
    ignored=(_HEAD_BIAS,),
)

_DEBERTA = Family(
    name="deberta-v2",
    types=("deberta-v2",),
    stacks=(
        StackRecord(
            name="encoder",
            blocks="encoder.layer",
            attention=AttentionRecord(
                path="attention.self",
                q="query_proj",
                k="key_proj",
                v="value_proj",
                o="attention.output.dense",
                head_dim="attention_head_size",
                heads=("num_attention_heads",),
                width=("all_head_size",),
                extra=("pos_key_proj", "pos_query_proj"),
            ),
            ffn=(_BERT_FFN,),
            gives=("",),
            per_row=("attention_mask",),
        ),
    ),
    ignored=(("rel_embeddings", "read as a whole, not looked up"),),
    as_wide=("pooler_hidden_size",),
)

_MODERNBERT = Family(
    name="modernbert",
    types=("modernbert",),
    stacks=(
        StackRecord(
            name="encoder",
            blocks="layers",
            attention=AttentionRecord(path="attn", q="Wqkv[0/3]", k="Wqkv[1/3]", v="Wqkv[2/3]", o="attn.Wo"),
            ffn=(FfnRecord(gate="mlp.Wi[0/2]", up="mlp.Wi[1/2]", down="mlp.Wo"),),
            per_row=("attention_mask",),
        ),
    ),
)


def _t5_attention(name: str, head_bias: str = "") -> AttentionRecord:
    return AttentionRecord(
        path=name,
        q="q",
        k="k",
        v="v",
        o=f"{name}.o",
        head_dim="key_value_proj_dim",
        heads=("n_heads",),
        width=("inner_dim",),
        head_bias=head_bias,
        tied=True,
    )


def _t5_stack(name: str, ffn_at: int, *, cross: AttentionRecord | None, depth_key: str) -> StackRecord:
    bias = "layer.0.SelfAttention.relative_attention_bias"
    dense = f"layer.{ffn_at}.DenseReluDense"
    return StackRecord(
        name=name,
        blocks=f"{name}.block",
        attention=_t5_attention("layer.0.SelfAttention", f"{name}.block.0.{bias}"),
        cross=cross,
        ffn=(
            FfnRecord(gate=f"{dense}.wi_0", up=f"{dense}.wi_1", down=f"{dense}.wo"),
            FfnRecord(up=f"{dense}.wi", down=f"{dense}.wo"),
        ),
        depth_key=depth_key,
        own_depth_key="num_layers",
        heads_key="num_heads",
        width_key="d_ff",
        first_only=(bias, "has_relative_attention_bias"),
        gives=("position_bias", "encoder_decoder_position_bias"),
    )


_T5 = Family(
    name="t5",
    types=("t5",),
    stacks=(
        _t5_stack("encoder", 1, cross=None, depth_key="num_layers"),
        _t5_stack("decoder", 2, cross=_t5_attention("layer.1.EncDecAttention"), depth_key="num_decoder_layers"),
    ),
    ignored=(_HEAD_BIAS,),
)


def _bart_attention(path: str) -> AttentionRecord:
    return AttentionRecord(
        path=path, q="q_proj", k="k_proj", v="v_proj", o=f"{path}.out_proj", heads=("num_heads",), width=("embed_dim",)
    )


_FC_FFN = FfnRecord(up="fc1", down="fc2")

_BART = Family(
    name="bart",
    types=("bart",),
    stacks=(
        StackRecord(
            name="encoder",
            blocks="encoder.layers",
            attention=_bart_attention("self_attn"),
            ffn=(_FC_FFN,),
            depth_key="encoder_layers",
            heads_key="encoder_attention_heads",
            width_key="encoder_ffn_dim",
        ),
        StackRecord(
            name="decoder",
            blocks="decoder.layers",
            attention=_bart_attention("self_attn"),
            cross=_bart_attention("encoder_attn"),
            ffn=(_FC_FFN,),
            depth_key="decoder_layers",
            heads_key="decoder_attention_heads",
            width_key="decoder_ffn_dim",
        ),
    ),
)

_OPT = Family(
    name="opt",
    types=("opt",),
    stacks=(
        StackRecord(
            name="decoder",
            blocks="decoder.layers",
            attention=_bart_attention("self_attn"),
            ffn=(_FC_FFN,),
            width_key="ffn_dim",
        ),
    ),
)

_GPT2 = Family(
    name="gpt2",
    types=("gpt2",),
    stacks=(
        StackRecord(
            name="decoder",
            blocks="h",
            attention=AttentionRecord(
                path="attn",
                q="c_attn[0/3]",
                k="c_attn[1/3]",
                v="c_attn[2/3]",
                o="attn.c_proj",
                heads=("num_heads",),
                width=("embed_dim", "split_size"),
            ),
            cross=AttentionRecord(
                path="crossattention",
                q="q_attn",
                k="c_attn[0/2]",
                v="c_attn[1/2]",
                o="crossattention.c_proj",
                heads=("num_heads",),
                width=("embed_dim", "split_size"),
            ),
            ffn=(FfnRecord(up="mlp.c_fc", down="mlp.c_proj"),),
            depth_key="n_layer",
            heads_key="n_head",
            width_key="n_inner",
            depth_scaled="scale_attn_by_inverse_layer_idx",
        ),
    ),
)

_GPT_NEOX = Family(
    name="gpt_neox",
    types=("gpt_neox",),
    stacks=(
        StackRecord(
            name="decoder",
            blocks="layers",
            attention=AttentionRecord(
                path="attention",
                q="query_key_value[0%3]",
                k="query_key_value[1%3]",
                v="query_key_value[2%3]",
                o="attention.dense",
                head_dim="head_size",
            ),
            ffn=(FfnRecord(up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h"),),
        ),
    ),
)

_LLAMA = Family(
    name="llama",
    types=("llama", "mistral", "qwen2", "qwen3"),
    stacks=(
        StackRecord(
            name="decoder",
            blocks="layers",
            attention=AttentionRecord(path="self_attn", q="q_proj", k="k_proj", v="v_proj", o="self_attn.o_proj"),
            ffn=(FfnRecord(gate="mlp.gate_proj", up="mlp.up_proj", down="mlp.down_proj"),),
            ffn_width=("mlp.intermediate_size",),
        ),
    ),
)

FAMILIES: dict[str, Family] = {
    model_type: family
    for family in (
        _BERT,
        _DISTILBERT,
        _ALBERT,
        _MPNET,
        _DEBERTA,
        _MODERNBERT,
        _T5,
        _BART,
        _GPT2,
        _OPT,
        _GPT_NEOX,
        _LLAMA,
    )
    for model_type in family.types
}
"""model_type of transformers -> its family."""

OURS: dict[str, Family] = {"lissom-bilstm": Family(name="lissom-bilstm", types=("lissom-bilstm",), stacks=())}
"""Model types of lissom's own. They have no layers to edit; their tables and linear maps are found all the same."""
