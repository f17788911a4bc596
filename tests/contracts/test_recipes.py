"""What `ready` means in the catalogue, on tiny models: a recipe runs, leaves the structure that its steps promise, and
what is saved and loaded again answers the same. Its losses fall; where something is taken away meanwhile they fall from
their peak; where they are not the same at the end (`TURNS`) or nothing could make up for what goes (`at_rest`) they are
finite. That a recipe keeps the quality of a real model is not tested here: rows in results/ say it of some."""

from __future__ import annotations

import re
import tempfile
from functools import cache
from math import isfinite
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import lissom
from lissom.anatomy import Stack, dissect, stored_maps
from lissom.compress import Result
from lissom.data import load_data
from lissom.edits import exits_of
from lissom.measure.size import sparsity
from lissom.methods import Method
from lissom.methods.options import build, plain
from lissom.nn import (
    Int8Linear,
    KroneckerEmbedding,
    KroneckerLinear,
    LoraLinear,
    LowRankLinear,
    MixingEmbedding,
    ThinEmbedding,
)
from lissom.nn.binary import BinaryLinear
from lissom.nn.exit_rules import EVERYBODY
from lissom.nn.grouped import GroupedLinear
from lissom.nn.input_groups import InputGroupsLinear
from lissom.nn.integer_layers import IntegerLinear
from lissom.nn.levels import AttentionLevels
from lissom.nn.low_bit import LowBitLinear
from lissom.nn.mixed_bits import MixedBitLinear
from lissom.nn.palette import PaletteLinear
from lissom.nn.scaled import ScaledLinear
from lissom.nn.split import SplitInt8Linear
from lissom.nn.static import StaticInt8Linear
from lissom.recipe import Recipe, catalogue
from lissom.stats.unit_cost import unit_flops
from lissom.train.finetune import finetune
from tests import tiny

READY = [entry["id"] for entry in catalogue() if entry["status"] == "ready"]
GENERATE = {"sequence-kd", "gkd", "imitkd", "minillm", "distillm", "kivi", "lowrank-output"}
"""For models that go on with a text."""
EXITS = {"branchynet", "shallow-deep", "dee-bert", "fastbert", "pabee", "pcee-bert", "berxit", "cat", "voting-exits"}
ENCODERS_ONLY = {"safe-embedding", "mixkd", "i-bert", *EXITS}
DECODERS_ONLY = {"slicegpt"}
"""For models with norms before all that reads the hidden states."""
ENCODER_DECODERS = {"dq-bart", "recurrent-stacking", "tied-transformer"}
"""For models that have both."""
NEW_STUDENT = {"well-read-students"}
"""Recipes that cut nothing: the student is another model, and the original is given as its teacher."""
LOSES = {
    *(
        "movement",
        "magnitude",
        "proximal",
        "l0",
        "fake_quant",
        "product_quant",
        "group_quant",
        "binarize",
        "split_binary",
    ),
    *("proximal", "replace_modules", "layer_drop", "search_bits", "sub_networks"),
}
"""What takes something away while it trains, so that the loss rises first: it has to fall from its peak."""
TURNS = {
    "berxit": "batches of the last layer and of all exits take turns",
    "annealing-kd": "its targets grow",
    "continuation-kd": "it goes from one loss to another",
    "gkd": "batches of the student's texts and of the data take turns",
    "imitkd": "batches of the student's texts and of the data take turns",
    "distillm": "batches of the student's texts and of the data take turns",
    "minillm": "the student writes other texts each time",
}
"""Recipes whose loss is not the same one at the end."""
DEPTHS = {
    "bart": {"encoder_layers": 4, "decoder_layers": 4},
    "t5": {"num_layers": 4, "num_decoder_layers": 4},
}
STEPS = 60
SPLITS = {"train": 96, "validation": 12, "test": 12}
CASES = [
    (name, variant)
    for name in READY
    for variant in (("bart", "t5") if name in ENCODER_DECODERS else ("bert", "llama"))
    if not (variant == "bert" and name in GENERATE | DECODERS_ONLY)
    and not (variant == "llama" and name in ENCODERS_ONLY)
]


def short(step: Method) -> Method:
    """A step that trains, in little time and fast."""
    if step.name == "reconstruct":
        return build(type(step), {**plain(step), "steps": 20, "samples": 64, "learning_rate": 1e-3}, str)
    if step.name != "tune":
        return step
    return build(type(step), {**plain(step), "max_steps": STEPS, "batch_size": 8, "learning_rate": 1e-3}, str)


def texts(generate: bool) -> dict[str, Any]:
    made = {split: tiny.labelled_texts(count, seed=seed) for seed, (split, count) in enumerate(SPLITS.items())}
    return {split: {"text": one["text"]} for split, one in made.items()} if generate else made


def tokenizer() -> Any:
    made = tiny.tokenizer()
    made.unk_token = "w3"  # augmentation hides words behind it
    return made


@cache
def original(variant: str, generate: bool) -> PreTrainedModel:
    """A tiny model that knows the task."""
    torch.set_num_threads(1)
    head = "AutoModelForCausalLM" if generate else "AutoModelForSequenceClassification"
    model = tiny.model(variant, head, **DEPTHS.get(variant, {"num_hidden_layers": 6}))
    with tempfile.TemporaryDirectory() as work:
        trained, _ = finetune(
            model,
            load_data(texts(generate)),
            tokenizer=tokenizer(),
            epochs=12,
            learning_rate=2e-3,
            batch_size=8,
            max_length=32,
            work=Path(work),
        )
    return trained


def compressed(name: str, variant: str) -> tuple[PreTrainedModel, Result, list[list[float]]]:
    """The original, what the recipe made of it, and the losses of each step that trains."""
    model = original(variant, name in GENERATE)
    student = tiny.model(variant, "AutoModelForSequenceClassification", seed=1) if name in NEW_STUDENT else model
    recipe = Recipe.read(name)
    losses: dict[str, list[float]] = {}

    def note(said: str, _done: float) -> None:
        if found := re.match(r"step (\d+) of .*, loss ([\d.e+-]+),", said):
            losses.setdefault(found[1], []).append(float(found[2]))

    result = lissom.compress(
        student,
        Recipe(recipe.name, tuple(map(short, recipe.steps))),
        data=texts(name in GENERATE),
        tokenizer=tokenizer(),
        teacher=model if student is not model else None,
        keep=0.01,
        max_length=32,
        report=note,
    )
    return student, result, list(losses.values())


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_contract(name: str, variant: str, tmp_path: Path):
    """One test, so that processes that share the tests never train the same twice."""
    model, result, losses = compressed(name, variant)
    the_losses_fall(name, result, losses)
    every_step_leaves_the_structure_that_it_promises(name, model, result)
    it_is_saved_and_loaded(model, result, tmp_path)


def it_is_saved_and_loaded(model: PreTrainedModel, result: Result, folder: Path) -> None:
    assert {"keep", "parameters", "size_mb"} <= result.readings.keys()
    result.save(folder / "out")
    inputs = tiny.batch(model)
    inputs["input_ids"].clamp_(max=result.model.config.vocab_size - 1)
    assert torch.equal(tiny.outputs(lissom.load(folder / "out"), inputs), tiny.outputs(result.model, inputs))
    assert "| " in (folder / "out" / "README.md").read_text()


def the_losses_fall(name: str, result: Result, losses: list[list[float]]) -> None:
    trained = [plain(step) for step in result.recipe.steps if step.name == "tune"]
    assert len(losses) == len(trained)
    for options, every in zip(trained, losses, strict=True):
        tenths = [mean(every[i : i + STEPS // 10]) for i in range(0, STEPS, STEPS // 10)]
        taken = LOSES & {what for one in options["while"] for what in one}
        if name in TURNS or at_rest(options):
            assert all(map(isfinite, every))
        elif taken:
            assert tenths[-1] < max(tenths)
        else:
            assert tenths[-1] < tenths[0]


def at_rest(options: dict[str, Any]) -> bool:
    """Whether only gates are trained, and things go without anything that could make up for them."""
    return any(how.get("only_gates") for one in options["while"] for how in one.values())


def every_step_leaves_the_structure_that_it_promises(name: str, model: PreTrainedModel, result: Result) -> None:
    if name == "bilstm-kd":
        assert not dissect(result.model).stacks
        assert any(isinstance(one, torch.nn.LSTM) for one in result.model.modules())
        return
    for step in result.recipe.steps:
        options = plain(step)
        before, after = (stack_of(one, options.get("stack", "")) for one in (model, result.model))
        if step.name == "tune":
            for one in options["while"]:
                ((what, how),) = one.items()
                PROMISES.get(what, nothing)(how, before, after, result)
        else:
            PROMISES[step.name](options, before, after, result)


def stack_of(model: PreTrainedModel, name: str) -> Stack:
    """The one called so, or else the first."""
    anatomy = dissect(model)
    return anatomy.stack(name) if name else anatomy.stacks[0]


def nothing(options: dict[str, Any], before: Stack, after: Stack, result: Result) -> None:
    """No structure of its own."""


def count(keep: float, layers: int) -> int:
    return round(keep * layers) if isinstance(keep, float) else keep


def fewer_layers(options: dict[str, Any], before: Stack, after: Stack, result: Result) -> None:
    if options["keep"] is not None:
        assert len(after.order) == count(options["keep"], len(before.order)) < len(before.order)


def fewer_heads(options: dict[str, Any], before: Stack, after: Stack, result: Result) -> None:
    assert heads(after) < heads(before) * len(after.order) / len(before.order)


def fewer_neurons(options: dict[str, Any], before: Stack, after: Stack, result: Result) -> None:
    assert neurons(after) < neurons(before) * len(after.order) / len(before.order)


def fewer_units(options: dict[str, Any], before: Stack, after: Stack, result: Result) -> None:
    tokens = next(step["did"]["tokens"] for step in result.steps if step["name"] == "prune_units")
    model = original(result.model.config.model_type, generate=False)
    was, now = (unit_flops(dissect(one), tokens).total for one in (model, result.model))
    assert (options["flops"] - 0.1) * was < now <= options["flops"] * was + 1


def fewer_branches(options: dict[str, Any], before: Stack, after: Stack, result: Result) -> None:
    whole = sum(block.attention.kv_heads > 1 for block in after.blocks) + sum(
        block.ffn.width > 1 for block in after.blocks
    )
    share = max(step["ratio"] for step in map(plain, result.recipe.steps) if "ratio" in step)
    assert whole == round((1 - share) * 2 * len(after.blocks))


def fewer_channels(options: dict[str, Any], before: Stack, after: Stack, result: Result) -> None:
    widths = {block.ffn.up.in_features for block in after.blocks} | {result.model.config.hidden_size}
    whole, heads = before.blocks[0].ffn.up.in_features, result.model.config.num_attention_heads
    assert widths == {round((1 - options["ratio"]) * whole / heads) * heads}


def fewer_tokens(options: dict[str, Any], before: Stack, after: Stack, result: Result) -> None:
    tokens = result.model.get_input_embeddings().num_embeddings
    assert tokens == result.model.config.vocab_size == len(result.tokenizer) < tiny.VOCABULARY


def heads(stack: Stack) -> int:
    return sum(block.attention.kv_heads for block in stack.blocks)


def neurons(stack: Stack) -> int:
    return sum(block.ffn.width for block in stack.blocks)


def ranks(stack: Stack) -> int:
    """Numbers of the maps, which are all thin."""
    slots = [slot for block in stack.blocks for slot in block.slots()]
    return sum(slot.module.rank * (slot.out_features + slot.in_features) for slot in slots)


def gated(options: dict[str, Any], before: Stack, after: Stack, result: Result) -> None:
    if "ranks" in options["of"]:
        dense = sum(slot.out_features * slot.in_features for block in before.blocks for slot in block.slots())
        assert ranks(after) <= (1 - options["sparsity"]) * dense
    elif options["penalty"] is None or options["gates"] == "l1":
        assert heads(after) + neurons(after) < heads(before) + neurons(before)


def zeros(options: dict[str, Any], before: Stack, after: Stack, result: Result) -> None:
    if options.get("of", "weights") == "weights" and not options.get("locked"):
        assert (sparsity(result.model).value or 0) >= options.get("sparsity", options.get("ratio")) - 0.01


def packed(options: dict[str, Any], before: Stack, after: Stack, result: Result) -> None:
    kind = {"int8": Int8Linear}.get(options.get("weights", "int8"), LowBitLinear)
    found = [part for slot in dissect(result.model).linears() for part in parts(slot.module)]
    assert found
    assert all(isinstance(one, kind) for one in found)


def row_bits(options: dict[str, Any], before: Stack, after: Stack, result: Result) -> None:
    found = [slot.module for slot in dissect(result.model).linears()]
    assert all(isinstance(one, MixedBitLinear) for one in found)
    stored, weights = sum(one.weight.numel() for one in found), sum(one.in_features * one.out_features for one in found)
    assert 8 * stored <= options["bits"] * weights * 1.01


def two_planes(options: dict[str, Any], before: Stack, after: Stack, result: Result) -> None:
    found = [slot.module for slot in dissect(result.model).linears()]
    assert all(isinstance(one, BinaryLinear) and one.planes == 2 and one.levels is None for one in found)


def one_bit(options: dict[str, Any], before: Stack, after: Stack, result: Result) -> None:
    found = [slot.module for slot in dissect(result.model).linears()]
    bits = options["bits"][-1]
    assert all(isinstance(one, BinaryLinear) and one.planes == 1 and one.levels.bits == bits for one in found)
    attentions = [one for one in result.model.modules() if isinstance(one, AttentionLevels)]
    assert len(attentions) == len(after.order)
    assert {one.rule for one in attentions} == {options["attention"]}


def tabled(options: dict[str, Any], before: Stack, after: Stack, result: Result) -> None:
    found = [slot.module for slot in dissect(result.model).linears()]
    assert all(isinstance(one, PaletteLinear) and one.bits == options.get("bits", 8) for one in found)
    assert {one.vector for one in found} == {options["vector"], options.get("attention", options["vector"])}


def grouped(options: dict[str, Any], before: Stack, after: Stack, result: Result) -> None:
    found = [slot.module for slot in dissect(result.model).linears()]
    assert all(isinstance(one, GroupedLinear) and one.bits == options["bits"] for one in found)


def few_bits(options: dict[str, Any], before: Stack, after: Stack, result: Result) -> None:
    found = [slot.module for slot in dissect(result.model).linears()]
    assert all(isinstance(one, GroupedLinear) and one.bits in options["choices"] for one in found)
    weights = [one.in_features * one.out_features for one in found]
    spent = sum(one.bits * count for one, count in zip(found, weights, strict=True))
    assert min(options["choices"]) * sum(weights) < spent <= options["bits"] * sum(weights)


def rebuilt(options: dict[str, Any], before: Stack, after: Stack, result: Result) -> None:
    bits = {"int8": 8, "int4": 4, "ternary": 2}
    for block in after.blocks:
        for of, slots in (("attention", block.attention.slots()), ("feed_forward", block.ffn.slots())):
            assert all(getattr(slot.module, "bits", 8) == bits[options[of]] for slot in slots)
            assert all(slot.module.per_token == (options["activations"] == "token") for slot in slots)


def parted(options: dict[str, Any], before: Stack, after: Stack, result: Result) -> None:
    for block in after.blocks:
        assert all(isinstance(slot.module, StaticInt8Linear) for slot in (block.attention.o, block.ffn.down))
        for slot in (block.attention.q, block.attention.k, block.attention.v, block.ffn.up):
            assert isinstance(slot.module, InputGroupsLinear)
            assert len(slot.module.input_group.unique()) == options["groups"] == 6


def divided(options: dict[str, Any], before: Stack, after: Stack, result: Result) -> None:
    assert all(isinstance(slot.module, SplitInt8Linear) for slot in dissect(result.model).linears())


def whole(options: dict[str, Any], before: Stack, after: Stack, result: Result) -> None:
    assert all(isinstance(slot.module, IntegerLinear) for slot in dissect(result.model).linears())


def thin(options: dict[str, Any], before: Stack, after: Stack, result: Result) -> None:
    found = [isinstance(slot.module, LowRankLinear) for slot in dissect(result.model).linears()]
    assert any(found) if options["ranks"] == "energy" else all(found)


def tied(options: dict[str, Any], before: Stack, after: Stack, result: Result) -> None:
    of = ("attention", "ffn") if options["parts"] == "all" else (options["parts"],)
    for part in of:
        slots = [getattr(block, part).slots() for block in after.blocks]
        sets = {tuple(id(stored_maps(slot)[0].module.weight) for slot in each) for each in slots}
        assert {isinstance(slot.module, LoraLinear) for each in slots for slot in each} == {bool(options["lora"])}
        assert len(sets) == count(options["unique"], len(before.blocks)) < len(before.blocks)


def both(options: dict[str, Any], before: Stack, after: Stack, result: Result) -> None:
    encoder, decoder = (dissect(result.model).stack(name).blocks for name in ("encoder", "decoder"))
    for one, other in zip(encoder, decoder, strict=True):
        assert one.attention.q.module.weight is other.attention.q.module.weight
        assert one.ffn.down.module.weight is other.ffn.down.module.weight
        assert other.cross is not None
        assert (other.cross.q.module.weight is one.attention.q.module.weight) == (options["cross"] == "self")


def narrow(options: dict[str, Any], before: Stack, after: Stack, result: Result) -> None:
    if options["of"] == "input":
        kind = MixingEmbedding if options["mixes"] else ThinEmbedding
        assert type(result.model.get_input_embeddings()) is kind
    else:
        assert isinstance(result.model.get_output_embeddings(), LowRankLinear)


def product(options: dict[str, Any], before: Stack, after: Stack, result: Result) -> None:
    for block in after.blocks:
        changed = (block.index + 1) % options["every"] == 0
        assert all(isinstance(slot.module, KroneckerLinear) == changed for slot in block.slots())
    assert isinstance(result.model.get_input_embeddings(), KroneckerEmbedding)


def parts(module: Any) -> list[Any]:
    module = module.inner if isinstance(module, ScaledLinear) else module
    return [module.down, module.up] if isinstance(module, LowRankLinear) else [module]


def narrower(options: dict[str, Any], before: Stack, after: Stack, result: Result) -> None:
    fewer_heads(options, before, after, result)
    fewer_neurons(options, before, after, result)


def remembered(options: dict[str, Any], before: Stack, after: Stack, result: Result) -> None:
    """Beyond the last tokens, what it keeps of a text takes few bits."""
    prompt = torch.arange(3, 203).remainder(90)[None] + 3
    said = result.model.generate(prompt, max_new_tokens=2, do_sample=False, return_dict_in_generate=True)
    for one in said.past_key_values.layers:
        assert one.residual <= one.keys.shape[-2] < one.residual + one.group
        assert sum(states.nbytes for states in one.packed) < one.keys.nbytes / 2


def headed(options: dict[str, Any], before: Stack, after: Stack, result: Result) -> None:
    exits = exits_of(result.model)
    wanted = tuple(range(1, len(after.order))) if options["layers"] == "every" else tuple(options["layers"])
    assert exits is not None
    assert exits.layers == wanted
    assert (exits.judge is not None) == options["judge"]


def early(options: dict[str, Any], before: Stack, after: Stack, result: Result) -> None:
    """Where thresholds let everybody leave, nobody goes beyond the first exit."""
    exits, inputs = exits_of(result.model), tiny.batch(result.model)
    assert exits is not None
    assert exits.rule == options["rule"]
    assert exits.use in exits.points
    with torch.inference_mode():
        said = result.model(**inputs, exit_thresholds=torch.full((len(exits.layers),), EVERYBODY))
    assert set(said["exit_layer"].tolist()) == {exits.layers[0]}


PROMISES = {
    "keep_layers": fewer_layers,
    "layer_drop": fewer_layers,
    "prune_heads": fewer_heads,
    "prune_neurons": fewer_neurons,
    "prune_units": fewer_units,
    "prune_branches": fewer_branches,
    "prune_hidden": fewer_channels,
    "prune_vocab": fewer_tokens,
    "rewind": nothing,
    "prune_weights": zeros,
    "sparsegpt": zeros,
    "obert": zeros,
    "proximal": zeros,
    "sub_networks": narrower,
    "l0": gated,
    "movement": zeros,
    "magnitude": zeros,
    "fake_quant": packed,
    "product_quant": tabled,
    "group_quant": few_bits,
    "search_bits": row_bits,
    "split_binary": two_planes,
    "binarize": one_bit,
    "smooth": nothing,
    "int8": packed,
    "codebook": tabled,
    "split_int8": divided,
    "peg": parted,
    "integer": whole,
    "rtn": grouped,
    "hqq": grouped,
    "gptq": grouped,
    "awq": grouped,
    "auto_round": grouped,
    "reconstruct": rebuilt,
    "svd": thin,
    "factorize_vocabulary": narrow,
    "kronecker": product,
    "share_layers": tied,
    "share_stacks": both,
    "kv_cache": remembered,
    "add_exits": headed,
    "set_exits": early,
}
