"""Every edit on every layout: the same shapes on an empty model, JSON and back, twice, copied, and still generating."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lissom.anatomy import Anatomy, dense_weight, dissect, residual, vocabulary
from lissom.edits import (
    EDITS,
    AddExits,
    AddLora,
    DropMeans,
    Edit,
    Editor,
    Factorize,
    FactorizeTable,
    KeepHeads,
    KeepHidden,
    KeepLayers,
    KeepNeurons,
    KeepVocab,
    Kronecker,
    LevelAttention,
    MapAfterNorm,
    MultiplyOut,
    Pack,
    PackBinary,
    PackBits,
    PackCache,
    PackGroups,
    PackInputGroups,
    PackInteger,
    PackRows,
    PackSplit,
    Palette,
    Record,
    ScaleInputs,
    SetExits,
    ShareLayers,
    ShareStacks,
    TensorTrain,
    Untie,
    edit_from_json,
)
from lissom.methods.low_rank.tensor_train import decompose
from lissom.nn.fake_quant import quantize
from lissom.nn.grouped import grid, round_to
from lissom.nn.int8 import quantize_rows
from lissom.nn.low_bit import pack_codes
from lissom.nn.mixed_bits import pack_runs
from lissom.nn.palette import pack_indices
from lissom.nn.split import split
from tests import tiny
from tests.contracts.cases import BARE, ENCODERS, Case

Filled = tuple[Edit, dict[str, Tensor]]
WHOLE = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
"""Variants that can compute with whole numbers alone."""
ALL_CUT = tuple(case for case in BARE if not {"num_hidden_groups", "inner_group_num"} & dict(case.changes).keys())
"""Cases in which layers can be dropped."""


def keep_layers(anatomy: Anatomy) -> list[Filled]:
    return [(KeepLayers(stack=one.name, keep=tuple(range(len(one.order) - 1))), {}) for one in anatomy.stacks]


def share_stacks(anatomy: Anatomy) -> list[Filled]:
    """Every decoder block uses the last encoder block, in its cross-attention too."""
    encoder, decoder = (anatomy.stack(name).blocks for name in ("encoder", "decoder"))
    return [(ShareStacks(source=(len(encoder) - 1,) * len(decoder), cross=True), {})]


def share_layers(anatomy: Anatomy) -> list[Filled]:
    return [(ShareLayers(stack=one.name, source=(0,) * len(one.blocks)), {}) for one in anatomy.stacks]


def keep_heads(anatomy: Anatomy) -> list[Filled]:
    """Uneven where the blocks are free, so that a shape can only come from the edit."""
    made: list[Filled] = []
    for stack in anatomy.stacks:
        for cross in (False, True):
            found = [block.cross if cross else block.attention for block in stack.blocks]
            if found[0] is None:
                continue
            first, last = found[0], found[0].kv_heads - 1
            heads = tuple((0, last) if i % 2 and not first.tied and last else (last,) for i in range(len(found)))
            made.append((KeepHeads(stack=stack.name, heads=heads, cross=cross), {}))
    return made


def keep_neurons(anatomy: Anatomy) -> list[Filled]:
    """Each block loses its first neurons, the deeper ones more."""
    return [
        (KeepNeurons(stack=one.name, neurons=tuple(tuple(range(1 + b.index, b.ffn.width)) for b in one.blocks)), {})
        for one in anatomy.stacks
    ]


def keep_hidden(anatomy: Anatomy) -> list[Filled]:
    """The last three quarters of the channels."""
    width = int(anatomy.model.config.hidden_size)
    return [(KeepHidden(channels=tuple(range(width // 4, width))), {})]


def keep_vocab(anatomy: Anatomy) -> list[Filled]:
    """Without two tokens in the middle and the last one."""
    size = vocabulary(anatomy.model).size
    return [(KeepVocab.of(anatomy.model, set(range(size)) - {7, 9, size - 1}), {})]


def drop_means(anatomy: Anatomy) -> list[Filled]:
    """Every layer norm."""
    modules = anatomy.model.named_modules()
    return [(DropMeans(norms=tuple(path for path, one in modules if type(one) is torch.nn.LayerNorm)), {})]


def map_after_norm(anatomy: Anatomy) -> list[Filled]:
    """The last norm over the hidden states, its channels turned around."""
    path, width = residual(anatomy.model).norms[-1], residual(anatomy.model).width
    return [(MapAfterNorm(norm=path), {f"{path}.map.weight": torch.eye(width).flip(0)})]


def untie(anatomy: Anatomy) -> list[Filled]:
    """The heads over tokens that are plain, tied or not."""
    paths = vocabulary(anatomy.model).outputs
    plain = [path for path in paths if type(anatomy.model.get_submodule(path)) is torch.nn.Linear]
    return [(Untie(heads=tuple(plain)), {})]


def factorize(anatomy: Anatomy) -> list[Filled]:
    ranks: dict[str, int] = {}
    tensors: dict[str, Tensor] = {}
    for slot in anatomy.linears():
        ranks[slot.path] = min(slot.out_features, slot.in_features)
        u, s, v = torch.linalg.svd(slot.weight.detach(), full_matrices=False)
        tensors[f"{slot.path}.up.weight"], tensors[f"{slot.path}.down.weight"] = u * s, v
    return [(Factorize(ranks=ranks), tensors)]


def factorize_table(anatomy: Anatomy) -> list[Filled]:
    """Every plain table, in rows of three numbers."""
    plain = [path for path in anatomy.embeddings if type(anatomy.model.get_submodule(path)) is torch.nn.Embedding]
    made: list[Filled] = []
    for path in plain:
        u, s, v = torch.linalg.svd(anatomy.model.get_submodule(path).weight.detach(), full_matrices=False)
        rank = min(3, len(s))
        tensors = {f"{path}.table.weight": u[:, :rank] * s[:rank], f"{path}.widen": v[:rank]}
        made.append((FactorizeTable(path=path, rank=rank), tensors))
    return made


def tensor_train(anatomy: Anatomy) -> list[Filled]:
    """Every plain table that is larger than its cores, in halves and quarters."""
    made: list[Filled] = []
    for path in anatomy.embeddings:
        table = anatomy.model.get_submodule(path)
        if type(table) is torch.nn.Embedding and table.embedding_dim % 8 == 0:
            sizes = (5, 5, -(-table.num_embeddings // 25)), (2, 2, table.embedding_dim // 4)
            cores = decompose(table.weight, *sizes, (3, 2))
            if sum(core.numel() for core in cores) > table.weight.numel():
                continue
            tensors = {f"{path}.{name}": core for name, core in zip(("first", "middle", "last"), cores, strict=True)}
            made.append((TensorTrain(path=path, rows=sizes[0], columns=sizes[1], ranks=(3, 2)), tensors))
    return made


def kronecker(anatomy: Anatomy) -> list[Filled]:
    """Two rows and two columns of A, or as many as divide; tables in halves of their width."""
    lefts = {one.path: (2 - one.out_features % 2, 2 - one.in_features % 2) for one in anatomy.linears()}
    plain = [path for path in anatomy.embeddings if type(anatomy.model.get_submodule(path)) is torch.nn.Embedding]
    return [(Kronecker(lefts=lefts, tables=dict.fromkeys(plain, 2)), {})]


def multiply_out(anatomy: Anatomy) -> list[Filled]:
    weights = {f"{slot.path}.weight": slot.weight.detach() for slot in anatomy.linears()}
    return [(MultiplyOut(linears=tuple(name.removesuffix(".weight") for name in weights)), weights)]


def scale_inputs(anatomy: Anatomy) -> list[Filled]:
    """Inputs from half to once and a half as large."""
    tensors: dict[str, Tensor] = {}
    linears = tuple(slot.path for slot in anatomy.linears())
    for path in linears:
        module = anatomy.model.get_submodule(path)
        factor = torch.linspace(0.5, 1.5, dense_weight(module).shape[1])
        tensors[f"{path}.input_factor"] = factor
        if isinstance(getattr(module, "weight", None), torch.nn.Parameter):
            rows = factor[:, None] if hasattr(module, "nf") else factor
            tensors[f"{path}.inner.weight"] = module.weight.detach() / rows
    return [(ScaleInputs(linears=linears), tensors)]


def add_lora(anatomy: Anatomy) -> list[Filled]:
    """A delta of rank 3 beside each map, large enough to be seen."""
    generator, tensors = torch.Generator().manual_seed(0), {}
    slots = list(anatomy.linears())
    for slot in slots:
        tensors[f"{slot.path}.down.weight"] = torch.randn(3, slot.in_features, generator=generator) / 10
        tensors[f"{slot.path}.up.weight"] = torch.randn(slot.out_features, 3, generator=generator) / 10
    return [(AddLora(ranks=dict.fromkeys((slot.path for slot in slots), 3)), tensors)]


def pack(anatomy: Anatomy) -> list[Filled]:
    linears = tuple(slot.path for slot in anatomy.linears())
    plain = [path for path in anatomy.embeddings if type(anatomy.model.get_submodule(path)) is torch.nn.Embedding]
    weights = {slot.path: slot.weight for slot in anatomy.linears()}
    tensors: dict[str, Tensor] = {}
    for path, weight in {**weights, **{path: anatomy.model.get_submodule(path).weight for path in plain}}.items():
        tensors[f"{path}.weight"], tensors[f"{path}.weight_scale"] = quantize_rows(weight)
    return [(Pack(linears=linears, embeddings=tuple(plain)), tensors)]


def pack_bits(anatomy: Anatomy) -> list[Filled]:
    """Two bits a weight: the nearest of -1, 0 and 1 times the largest magnitude of the row."""
    [(int8, tensors)] = pack(anatomy)
    for name, codes in tensors.items():
        tensors[name] = codes * 127 if name.endswith("_scale") else pack_codes((codes / 127).round().to(codes.dtype), 2)
    return [(PackBits(bits=2, linears=int8.linears, embeddings=int8.embeddings), tensors)]


def pack_rows(anatomy: Anatomy) -> list[Filled]:
    """The first row in two bits, the next two in eight, the others in none."""
    tensors: dict[str, Tensor] = {}
    runs: dict[str, tuple[tuple[int, int], ...]] = {}
    for slot in anatomy.linears():
        codes, scale = quantize_rows(slot.weight)
        codes[0], scale[0] = (codes[0] / 127).round(), scale[0] * 127
        runs[slot.path] = ((2, 1), (8, 2), (0, len(codes) - 3))
        tensors[f"{slot.path}.weight"] = pack_runs(codes, runs[slot.path])
        tensors[f"{slot.path}.weight_scale"] = scale
    return [(PackRows(runs=runs), tensors)]


def pack_binary(anatomy: Anatomy) -> list[Filled]:
    """Two planes, the signs of the weight and of what they leave; inputs of two bits."""
    tensors: dict[str, Tensor] = {}
    linears = tuple(slot.path for slot in anatomy.linears())
    for path in linears:
        weight = dense_weight(anatomy.model.get_submodule(path)).detach()
        first, scale = quantize(weight, "binary")
        second, small = quantize(weight - first * scale[:, None], "binary")
        tensors[f"{path}.weight"] = pack_codes(torch.cat([first, second]), 1)
        tensors[f"{path}.weight_scale"] = torch.cat([scale, small])
        tensors[f"{path}.levels.scale"], tensors[f"{path}.levels.shift"] = torch.tensor(0.5), torch.tensor(0.01)
    return [(PackBinary(planes=2, linears=linears, bits=2, positive=linears[:1]), tensors)]


def level_attention(anatomy: Anatomy) -> list[Filled]:
    """Two bits, and a softmax."""
    blocks = [block for stack in anatomy.stacks for block in stack.blocks]
    parts = [part for block in blocks for part in (block.attention, block.cross) if part is not None]
    tensors = {f"{part.path}.levels.{name}.scale": torch.tensor(0.3) for part in parts for name in ("q", "k", "v")}
    return [(LevelAttention(bits=2, rule="softmax"), tensors)]


def palette(anatomy: Anatomy) -> list[Filled]:
    """Eight values spread over the range of each map, and its first and last weight whole."""
    [(int8, _)] = pack(anatomy)
    tensors: dict[str, Tensor] = {}
    for path in (*int8.linears, *int8.embeddings):
        module = anatomy.model.get_submodule(path)
        weight = (dense_weight(module) if path in int8.linears else module.weight).detach().contiguous()
        table = torch.linspace(float(weight.min()), float(weight.max()), 8)
        tensors[f"{path}.weight"] = pack_indices(torch.bucketize(weight, (table[1:] + table[:-1]) / 2), 3)
        tensors[f"{path}.weight_table"] = table
        tensors[f"{path}.weight_positions"] = torch.tensor([0, weight.numel() - 1], dtype=torch.int32)
        tensors[f"{path}.weight_outliers"] = weight.flatten()[[0, -1]]
    outliers = dict.fromkeys((*int8.linears, *int8.embeddings), 2)
    return [(Palette(bits=3, linears=int8.linears, embeddings=int8.embeddings, outliers=outliers), tensors)]


def pack_groups(anatomy: Anatomy) -> list[Filled]:
    """Three bits in groups of five columns, of which the last is shorter."""
    tensors: dict[str, Tensor] = {}
    linears = tuple(slot.path for slot in anatomy.linears())
    for path in linears:
        weight = dense_weight(anatomy.model.get_submodule(path)).detach()
        scale, zero = grid(weight, bits=3, group=5)
        tensors[f"{path}.weight"] = pack_indices(round_to(weight, scale, zero, bits=3, group=5), 3)
        tensors[f"{path}.weight_scale"], tensors[f"{path}.weight_zero"] = scale.half(), zero.half()
    return [(PackGroups(bits=3, group=5, linears=linears), tensors)]


def pack_split(anatomy: Anatomy) -> list[Filled]:
    """The first and the last column of each map stay."""
    tensors: dict[str, Tensor] = {}
    slots = {slot.path: slot for slot in anatomy.linears()}
    for path, slot in slots.items():
        made = split(slot.weight.detach(), torch.tensor([0, slot.in_features - 1]))
        tensors |= {f"{path}.{name}": value for name, value in made.items()}
    return [(PackSplit(columns=dict.fromkeys(slots, 2)), tensors)]


def pack_input_groups(anatomy: Anatomy) -> list[Filled]:
    """Even columns have one scale, odd ones another."""
    tensors: dict[str, Tensor] = {}
    linears = tuple(slot.path for slot in anatomy.linears())
    for path in linears:
        weight = dense_weight(anatomy.model.get_submodule(path)).detach()
        codes, scale = quantize_rows(weight)
        tensors[f"{path}.weight"], tensors[f"{path}.weight_scale"] = pack_codes(codes, 8), scale
        tensors[f"{path}.input_scale"] = torch.tensor([0.02, 0.03])
        tensors[f"{path}.input_zero"] = torch.tensor([128, 120], dtype=torch.uint8)
        tensors[f"{path}.input_group"] = (torch.arange(weight.shape[1]) % 2).to(torch.uint8)
    return [(PackInputGroups(groups=2, linears=linears), tensors)]


def pack_integer(anatomy: Anatomy) -> list[Filled]:
    """Whole numbers that nobody chose: the weights are those of int8, and everything is scaled by one half."""
    [(int8, tensors)] = pack(anatomy)
    return [(PackInteger(), {name: one for name, one in tensors.items() if name.rpartition(".")[0] in int8.linears})]


def pack_cache(anatomy: Anatomy) -> list[Filled]:
    return [(PackCache(bits=4, group=16, residual=8), {})]


def add_exits(anatomy: Anatomy) -> list[Filled]:
    """After the first and the second layer."""
    return [(AddExits(layers=(1, 2), head="pooled", reads="mean", judge=True), {})]


def set_exits(anatomy: Anatomy) -> list[Filled]:
    return [(SetExits(rule="confidence", points={"few": (0.5, 0.6), "many": (0.4, 0.35)}, use="many"), {})]


MAKERS: dict[str, Callable[[Anatomy], list[Filled]]] = {
    "KeepLayers": keep_layers,
    "ShareLayers": share_layers,
    "ShareStacks": share_stacks,
    "KeepHeads": keep_heads,
    "KeepNeurons": keep_neurons,
    "KeepHidden": keep_hidden,
    "KeepVocab": keep_vocab,
    "DropMeans": drop_means,
    "MapAfterNorm": map_after_norm,
    "Untie": untie,
    "Factorize": factorize,
    "FactorizeTable": factorize_table,
    "TensorTrain": tensor_train,
    "Kronecker": kronecker,
    "MultiplyOut": multiply_out,
    "ScaleInputs": scale_inputs,
    "AddLora": add_lora,
    "Pack": pack,
    "PackBits": pack_bits,
    "PackRows": pack_rows,
    "PackBinary": pack_binary,
    "LevelAttention": level_attention,
    "PackGroups": pack_groups,
    "PackSplit": pack_split,
    "PackInputGroups": pack_input_groups,
    "Palette": palette,
    "PackInteger": pack_integer,
    "PackCache": pack_cache,
    "AddExits": add_exits,
    "SetExits": set_exits,
}
BEFORE = {"SetExits": ("AddExits",)}
"""What a kind of edit needs in the model."""
ORDER = ("KeepLayers", "KeepHeads", "KeepNeurons", "Factorize", "Pack")


def edit(model: PreTrainedModel, *kinds: str) -> Editor:
    """Apply these kinds of edits in turn, each made for the model as it then is."""
    editor = Editor(model)
    for kind in (one for each in kinds for one in (*BEFORE.get(each, ()), each)):
        for one, tensors in MAKERS[kind](editor.anatomy()):
            editor.apply(one, tensors)
    return editor


def signature(model: PreTrainedModel) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {name: (tuple(value.shape), value.dtype) for name, value in model.state_dict().items()}


def empty_twin(model: PreTrainedModel) -> PreTrainedModel:
    """The model's record replayed on an empty model: from JSON, by shape alone."""
    record = Record.of(model)
    config = copy.deepcopy(model.config)
    for name, value in json.loads(json.dumps(record.restore)).items():
        setattr(config, name, value)
    with torch.device("meta"):
        empty = type(model)(config)
    edits = [edit_from_json(json.loads(json.dumps(one.shape().to_json()))) for one in record.edits]
    Editor(empty).replay(Record(edits=tuple(edits)))
    return empty


def cut_cases(kind: str) -> tuple[Case, ...]:
    if kind == "LevelAttention":  # where transformers lets attention be replaced
        return tuple(case for case in BARE if case.model()._supports_attention_backend)
    if kind == "ShareStacks":
        return tuple(case for case in BARE if len(dissect(case.model()).stacks) > 1)
    if kind == "PackInteger":
        return tuple(case for case in BARE if case.variant in WHOLE and not dict(case.changes).get("is_decoder"))
    if kind in {"AddExits", "SetExits"}:  # encoders with one answer to a whole text
        return tuple(Case(variant, "AutoModelForSequenceClassification") for variant in ENCODERS)
    if kind in {"FactorizeTable", "TensorTrain"}:  # those of BART multiply as well
        return tuple(case for case in BARE if case.variant != "bart")
    return ALL_CUT if kind == "KeepLayers" else BARE


KIND_AND_CASE = [pytest.param(kind, case, id=f"{kind}-{case}") for kind in EDITS for case in cut_cases(kind)]


def test_every_edit_is_tested() -> None:
    assert set(MAKERS) == set(EDITS)


@pytest.mark.parametrize(("kind", "case"), KIND_AND_CASE)
def test_an_empty_model_gets_the_same_shapes(kind: str, case: Case) -> None:
    model = case.model()
    edit(model, kind)
    empty = empty_twin(model)
    assert signature(empty) == signature(model)
    assert all(value.is_meta for name, value in empty.named_parameters())
    assert empty.config.to_dict() == model.config.to_dict()


PACKED = ("Pack", "PackBits", "PackBinary", "PackRows", "PackGroups", "PackSplit", "PackInputGroups", "Palette")


@pytest.mark.parametrize("stored", PACKED)
@pytest.mark.parametrize("case", ALL_CUT, ids=str)
def test_all_edits_after_each_other_and_again(case: Case, stored: str) -> None:
    """Everything at once, then cut again what is already cut, thin and packed; the twin follows."""
    model = case.model()
    edit(model, *ORDER[:-1], stored, "KeepNeurons", "KeepHeads")
    assert torch.isfinite(tiny.outputs(model, case.inputs(model))).all()
    assert signature(empty_twin(model)) == signature(model)


@pytest.mark.parametrize(("kind", "case"), KIND_AND_CASE)
def test_json_and_back(kind: str, case: Case) -> None:
    for one, _ in MAKERS[kind](dissect(case.model())):
        value = json.loads(json.dumps(one.to_json()))
        assert value["edit"] == kind
        assert edit_from_json(value) == one
        assert type(edit_from_json(value)) is type(one)


@pytest.mark.parametrize(("kind", "case"), KIND_AND_CASE)
def test_a_copy_answers_alike_and_keeps_the_record(kind: str, case: Case) -> None:
    model = case.model()
    inputs = case.inputs(model)
    record = edit(model, kind).record
    inputs["input_ids"].clamp_(max=vocabulary(model).size - 1)
    twin = copy.deepcopy(model)
    assert record.edits
    assert not any(module.training for module in model.modules())
    assert Record.of(twin) == record
    assert torch.equal(tiny.outputs(twin, inputs), tiny.outputs(model, inputs))
    edit(twin, "Pack")
    assert Record.of(model) == record


@pytest.mark.parametrize("case", BARE, ids=str)
def test_factors_of_full_rank_change_nothing_nor_does_their_product(case: Case) -> None:
    model = case.model()
    inputs = case.inputs(model)
    whole = tiny.outputs(model, inputs)
    for kind in ("Factorize", "MultiplyOut"):
        edit(model, kind)
        torch.testing.assert_close(tiny.outputs(model, inputs), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", BARE, ids=str)
def test_packing_stays_near(case: Case) -> None:
    model = case.model()
    inputs = case.inputs(model)
    whole = tiny.outputs(model, inputs)
    edit(model, "Pack")
    packed = tiny.outputs(model, inputs)
    assert not torch.equal(packed, whole)
    assert torch.nn.functional.cosine_similarity(packed, whole, dim=0) > 0.99


@pytest.mark.parametrize("case", BARE, ids=str)
def test_shared_layers_are_the_same_tensors(case: Case) -> None:
    model = case.model()
    before = sum(parameter.numel() for parameter in model.parameters())
    stacks = dissect(model).stacks
    edit(model, "ShareLayers")
    saved = 0
    for one in (model, copy.deepcopy(model)):
        saved = 0
        for stack in stacks:
            source = dict(one.get_submodule(stack.blocks[0].path).named_parameters())
            for block in stack.blocks[1:]:
                for name, parameter in one.get_submodule(block.path).named_parameters():
                    if name in source:
                        assert parameter is source[name]
                        saved += parameter.numel()
        assert sum(parameter.numel() for parameter in one.parameters()) == before - saved
    assert (saved > 0) == any(len(stack.blocks) > 1 for stack in stacks)


def generating() -> list[Case]:
    causal = ["gpt2", "opt", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "bart"]
    masked = ["bert", "roberta", "xlm-roberta", "camembert", "electra"]
    seq2seq = ["t5", "t5-gated", "bart"]
    return [
        *(Case(variant, "AutoModelForCausalLM") for variant in causal),
        *(Case(variant, "AutoModelForCausalLM", (("is_decoder", True),)) for variant in masked),
        *(Case(variant, "AutoModelForSeq2SeqLM") for variant in seq2seq),
    ]


def greedy(model: PreTrainedModel, *, use_cache: bool) -> list[int]:
    prompt = tiny.batch(model, rows=1)["input_ids"]
    found = model.generate(prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False, use_cache=use_cache)
    return found[0].tolist()


@pytest.mark.parametrize("case", generating(), ids=str)
def test_generation_with_and_without_a_cache(case: Case) -> None:
    model = case.model()
    editor = Editor(model)
    for stack in editor.anatomy().stacks:
        editor.apply(KeepLayers(stack=stack.name, keep=tuple(range(1, len(stack.blocks)))))
    edit(model, "KeepHeads")
    assert greedy(model, use_cache=True) == greedy(model, use_cache=False)


def test_every_generating_head_is_tested() -> None:
    both = {"AutoModelForCausalLM", "AutoModelForSeq2SeqLM"}
    assert {(case.variant, case.head) for case in generating()} == {
        (variant, head) for variant in tiny.CONFIGS for head in tiny.heads(variant) if head in both
    }
