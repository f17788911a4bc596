"""Every method on every family: it does what it promises, repeatably, and what it leaves can be saved and loaded."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

import lissom
from lissom.data import load_data
from lissom.edits import AddExits, Editor
from lissom.edits.cache_layer import PackedLayer
from lissom.errors import LissomError
from lissom.measure.size import in_memory, sparsity
from lissom.methods import METHODS, Given, Method
from lissom.methods.options import build, plain
from lissom.nn import Int8Linear
from lissom.nn.grouped import GroupedLinear
from lissom.nn.integer_layers import IntegerLinear
from lissom.nn.palette import PaletteLinear
from lissom.nn.split import SplitInt8Linear
from lissom.recipe import Recipe, parameters
from tests import tiny
from tests.contracts.cases import ENCODERS

OPTIONS: dict[str, dict[str, Any]] = {
    "keep_layers": {"keep": 2},
    "prune_heads": {"ratio": 0.5},
    "prune_neurons": {"ratio": 0.5},
    "rewind": {},
    "prune_units": {"flops": 0.6, "length": 9},
    "prune_weights": {"by": "wanda"},
    "sparsegpt": {"pattern": "2:4"},
    "prune_branches": {"ratio": 0.5},
    "prune_hidden": {"ratio": 0.25},
    "prune_vocab": {"at_least": 2},
    "obert": {"samples": 8},
    "svd": {"ratio": 0.5},
    "factorize_vocabulary": {"ratio": 0.5},
    "tensor_train": {"ratio": 0.5},
    "kronecker": {"ratio": 0.25, "table": 2},
    "share_layers": {"unique": 1},
    "share_stacks": {"cross": "self", "start": "average"},
    "fresh_student": {"layers": 2, "hidden": 16, "heads": 2, "intermediate": 24},
    "bilstm_student": {"units": 4, "hidden": 8},
    "tune": {"max_steps": 1, "warmup": 0.0, "batch_size": 4, "learn": {"task": {"weight": 1.0}}},
    "smooth": {},
    "int8": {},
    "half": {},
    "peg": {"groups": 3},
    "rtn": {"group": 8},
    "hqq": {"bits": 3, "group": 16},
    "gptq": {"group": 8},
    "awq": {"group": 8},
    "auto_round": {"group": 8, "steps": 2},
    "mixed": {"bits": 3.5, "group": 8},
    "codebook": {},
    "reconstruct": {"blocks": 2, "steps": 3},
    "split_int8": {"threshold": 2.0},
    "integer": {},
    "kv_cache": {"group": 16, "residual": 8},
    "add_exits": {},
    "set_exits": {"threshold": 0.5},
}
ONLY = {
    "integer": ("bert", "roberta", "xlm-roberta", "camembert", "electra"),
    "share_stacks": ("t5", "t5-gated", "bart"),
    **dict.fromkeys(("add_exits", "set_exits"), ENCODERS),
}
"""Methods that work on these variants alone, and say so of any other."""
PACKED: dict[str, type] = {
    "int8": Int8Linear,
    "reconstruct": Int8Linear,
    "peg": Int8Linear,
    "split_int8": SplitInt8Linear,
    "integer": IntegerLinear,
    "codebook": PaletteLinear,
    **dict.fromkeys(("rtn", "hqq", "gptq", "awq", "auto_round", "mixed"), GroupedLinear),
}
"""What each map becomes."""
SPARSE = ("prune_weights", "sparsegpt", "obert")
BY_STACK = ("keep_layers", "share_layers")
WANTED = ("AutoModelForSequenceClassification", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM")


GENERATING = WANTED[:0:-1]
"""Heads that generate; most of a family first."""
STAYS = {
    "share_layers": ("albert",),
    "tensor_train": ("t5", "t5-gated", "bart"),
    "factorize_vocabulary": ("t5", "t5-gated", "bart"),
}
"""Variants that share already: layers, or one table in encoder and decoder."""
KEEPS_NO_CACHE = {"mistral": "keeps a window of tokens"}
"""Variant -> why a method of the cache refuses it; those without a head that generates are refused too."""


def made(variant: str, name: str = "") -> PreTrainedModel:
    wanted = (*GENERATING, *WANTED) if name == "kv_cache" else WANTED
    head = next(one for one in wanted if one in tiny.heads(variant))
    return tiny.model(variant, head)


def method(name: str, model: PreTrainedModel) -> Method:
    stack = {"stack": Editor(model).anatomy().stacks[0].name} if name in BY_STACK else {}
    return METHODS[name](**OPTIONS[name], **stack)


def given(model: PreTrainedModel, work: Path) -> Given:
    data = load_data({"train": tiny.labelled_texts(8), "validation": tiny.labelled_texts(4, seed=1)})
    return Given(data=data, tokenizer=tiny.tokenizer(), teacher=model, max_length=32, work=work)


def applied(name: str, model: PreTrainedModel, work: Path) -> PreTrainedModel:
    editor, step, gets = Editor(copy.deepcopy(model)), method(name, model), given(model, work)
    step.check(editor.anatomy(), gets)
    step.apply(editor, gets)
    return editor.model


def weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_every_method_is_held_to_the_contract():
    assert set(OPTIONS) == set(METHODS)


@pytest.mark.parametrize("variant", tiny.CONFIGS)
@pytest.mark.parametrize("name", OPTIONS)
def test_contract(name: str, variant: str, tmp_path: Path):
    model = made(variant, name)
    if name == "set_exits" and variant in ENCODERS:
        Editor(model).apply(AddExits(layers=(1, 2)))
    if variant not in ONLY.get(name, tiny.CONFIGS):
        with pytest.raises(LissomError, match="LSM-715"):
            applied(name, model, tmp_path)
        return
    if name == "kv_cache" and (variant in KEEPS_NO_CACHE or not model.can_generate()):
        with pytest.raises(LissomError, match=KEEPS_NO_CACHE.get(variant, "does not generate")):
            applied(name, model, tmp_path / "one")
        return
    before, inputs = weights(model), tiny.batch(model)
    result = applied(name, model, tmp_path / "one")
    inputs["input_ids"].clamp_(max=result.config.vocab_size - 1)
    answer = tiny.outputs(result, inputs)
    assert torch.isfinite(answer).all()
    assert same(weights(model), before), "the original was changed"
    assert same(weights(applied(name, model, tmp_path / "two")), weights(result)), "the same seed gave another result"
    if name in SPARSE:
        sparser(model, result)
    else:
        reduced(name, variant, model, result)
    lissom.save(result, tmp_path / "saved")
    assert torch.equal(tiny.outputs(lissom.load(tmp_path / "saved"), inputs), answer)


def reduced(name: str, variant: str, model: PreTrainedModel, result: PreTrainedModel) -> None:
    """What the method promises to take away is gone."""
    stacks, left = Editor(model).anatomy().stacks, Editor(result).anatomy().stacks
    if name == "keep_layers":
        assert len(left[0].order) == 2 < len(stacks[0].order)
    elif name == "prune_heads":
        assert all(2 * b.attention.kv_heads == a.attention.kv_heads for a, b in blocks(stacks, left))
    elif name == "prune_neurons":
        assert all(2 * b.ffn.width == a.ffn.width for a, b in blocks(stacks, left))
    elif name in PACKED:
        assert all(isinstance(slot.module, PACKED[name]) for slot in Editor(result).anatomy().linears())
    elif name == "smooth":
        assert parameters(result) >= parameters(model)  # factors of inputs are numbers too
        assert not same(weights(result), weights(model))
    elif name == "tune":
        assert parameters(result) == parameters(model)
        assert not same(weights(result), weights(model))
    elif name == "add_exits":
        assert parameters(result) > parameters(model)
        assert [one for one in weights(result) if one.startswith("exits.")]
    elif name in ("kv_cache", "rewind", "set_exits"):
        assert same(weights(result), weights(model))
        if name == "kv_cache" and variant in ("llama", "gpt2", "t5", "bart"):
            assert cached_bytes(result) < cached_bytes(model) / 2
    elif name == "half":
        assert result.dtype == torch.bfloat16
    else:
        less, stays = parameters(result) < parameters(model), variant in STAYS.get(name, ())
        assert less != stays


def sparser(model: PreTrainedModel, result: PreTrainedModel) -> None:
    """As many numbers, half of them zero, in fewer bytes."""
    assert parameters(result) == parameters(model)
    assert sparsity(result).value == pytest.approx(0.5, abs=0.01)
    assert in_memory(result).value < in_memory(model).value


def _nbytes(layer: Any) -> int:
    return layer.nbytes if isinstance(layer, PackedLayer) else layer.keys.nbytes + layer.values.nbytes


def cached_bytes(model: PreTrainedModel) -> int:
    """What a model keeps of 56 tokens."""
    prompt = {"input_ids": tiny.batch(model, rows=2, length=9)["input_ids"]}
    said = model.generate(**prompt, max_new_tokens=48, min_new_tokens=48, do_sample=False, return_dict_in_generate=True)
    cache = said.past_key_values
    cache = getattr(cache, "self_attention_cache", cache)
    return sum(_nbytes(one) for one in cache.layers if one.is_initialized)


def blocks(before: Any, after: Any) -> list[tuple[Any, Any]]:
    return [pair for a, b in zip(before, after, strict=True) for pair in zip(a.blocks, b.blocks, strict=True)]


@pytest.mark.parametrize("name", OPTIONS)
def test_options_survive_a_dict_and_a_recipe(name: str):
    step = METHODS[name](**OPTIONS[name])
    again = build(type(step), plain(step), lambda path: "")
    assert plain(again) == plain(step)
    assert Recipe.parse(Recipe("one", (again,)).to_yaml(), "one") == Recipe("one", (again,))


@pytest.mark.parametrize("variant", ["gpt2", "llama"])
def test_a_cut_decoder_is_reloaded_by_the_auto_class_and_generates(variant: str, tmp_path: Path):
    steps = tuple(method(name, made(variant)) for name in ("keep_layers", "prune_neurons", "svd"))
    model = tiny.model(variant, "AutoModelForCausalLM")
    lissom.compress(model, Recipe("smaller", steps)).save(tmp_path / "out")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert parameters(loaded) < parameters(model)
    start = torch.tensor([[1, 5, 7]])
    said = loaded.generate(start, max_new_tokens=5, do_sample=False)
    slowly = loaded.generate(start, max_new_tokens=5, do_sample=False, use_cache=False)
    assert said.shape == (1, 8)
    assert torch.equal(said, slowly)
