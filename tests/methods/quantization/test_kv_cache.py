"""The cache of a generating model in few bits."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

import lissom
from lissom.edits import Editor, PackCache, Record
from lissom.edits.cache_layer import PackedLayer
from lissom.errors import LissomError
from lissom.export import export
from lissom.methods.base import Given
from lissom.methods.quantization.kv_cache import KvCache
from lissom.methods.quantization.rtn import Rtn
from tests import tiny

LONG = {"max_position_embeddings": 512}


def llama(**changes: object) -> PreTrainedModel:
    return tiny.model("llama", "AutoModelForCausalLM", **{"num_hidden_layers": 2, **LONG, **changes})


def cached(model: PreTrainedModel, **options: int) -> PreTrainedModel:
    KvCache(**{"group": 16, "residual": 8, **options}).apply(Editor(model), Given())  # type: ignore[arg-type]
    return model


def ids(rows: int = 2, length: int = 70) -> torch.Tensor:
    return torch.randint(3, tiny.VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))


def generate(model: PreTrainedModel, prompt: torch.Tensor, **options: object) -> tuple[torch.Tensor, DynamicCache]:
    asked = {"max_new_tokens": 40, "min_new_tokens": 40, "do_sample": False, **options}
    said = model.generate(prompt, return_dict_in_generate=True, pad_token_id=0, **asked)
    return said.sequences, said.past_key_values


def stepwise(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """The answers at each token but the first ten, read one by one."""
    cache, made = DynamicCache(config=model.config), []
    with torch.inference_mode():
        model(tokens[:, :10], past_key_values=cache, use_cache=True)
        for at in range(10, tokens.shape[1]):
            made.append(model(tokens[:, at : at + 1], past_key_values=cache, use_cache=True).logits)
    return torch.cat(made, 1)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_bytes_of_the_cache_by_hand(bits: int) -> None:
    """70 + 39 tokens: 96 are packed, 13 not. 2 texts, 2 heads of 8 channels, groups of 16 tokens or 8 channels."""
    _, cache = generate(cached(llama(), bits=bits), ids())
    for layer in cache.layers:
        assert isinstance(layer, PackedLayer)
        assert layer.get_seq_length() == 109
        assert layer.keys.shape == layer.values.shape == (2, 2, 13, 8)
        keys, values = layer.packed
        assert keys.nbytes == 4 * 96 * 8 * bits // 8 + 4 * (96 // 16) * 8 * 4
        assert values.nbytes == 4 * 96 * 8 * bits // 8 + 4 * 96 * 4
        assert layer.nbytes == keys.nbytes + values.nbytes + 2 * 4 * 13 * 8 * 4
    _, whole = generate(llama(), ids())
    assert all(one.keys.nbytes == 4 * 109 * 8 * 4 for one in whole.layers)


def test_answers_come_nearer_with_bits() -> None:
    tokens, whole = ids(1, 90), stepwise(llama(), ids(1, 90))
    apart = [float((stepwise(cached(llama(), bits=bits), tokens) - whole).norm() / whole.norm()) for bits in (2, 4, 8)]
    assert apart[0] > 3 * apart[1] > 9 * apart[2]
    assert apart[2] < 5e-3
    assert apart[1] < 0.08


def test_nothing_changes_while_all_tokens_are_recent() -> None:
    prompt = ids(2, 10)
    assert torch.equal(generate(cached(llama(), bits=2, residual=64), prompt)[0], generate(llama(), prompt)[0])
    inputs = tiny.batch(llama())
    assert torch.equal(tiny.outputs(cached(llama()), inputs), tiny.outputs(llama(), inputs))


def test_eight_bits_say_the_same(tmp_path: Path) -> None:
    model = cached(llama(), bits=8)
    said, _ = generate(model, ids())
    assert torch.equal(said, generate(llama(), ids())[0])
    lissom.save(model, tmp_path / "out", tokenizer=tiny.tokenizer())
    for again in (lissom.load(tmp_path / "out"), AutoModelForCausalLM.from_pretrained(tmp_path / "out")):
        more, cache = generate(again, ids())
        assert torch.equal(more, said)
        assert all(isinstance(layer, PackedLayer) for layer in cache.layers)
    assert "import lissom" in (tmp_path / "out" / "README.md").read_text()
    assert Record.of(lissom.load(tmp_path / "out")).edits == (PackCache(bits=8, group=16, residual=8),)


def test_beams_take_their_past_with_them() -> None:
    """With every step decoded to the last bit it is the search of a whole cache."""
    said, cache = generate(cached(llama(), bits=8), ids(), num_beams=3, max_new_tokens=24, min_new_tokens=24)
    assert said.shape == (2, 94)
    assert cache.layers[0].keys.shape[0] == 6
    assert torch.equal(said, generate(llama(), ids(), num_beams=3, max_new_tokens=24, min_new_tokens=24)[0])


def test_a_copy_and_a_second_setting() -> None:
    model = cached(llama(), bits=8)
    twin = cached(copy.deepcopy(model), bits=2)
    assert generate(model, ids())[1].layers[0].packed[0].bits == 8
    assert generate(twin, ids())[1].layers[0].packed[0].bits == 2
    assert len(model._forward_pre_hooks) == len(twin._forward_pre_hooks) == 1


def test_after_few_bits_of_weights_and_in_bfloat16() -> None:
    model = llama()
    Rtn(group=16).apply(Editor(model), Given())
    said, cache = generate(cached(model).to(torch.bfloat16), ids())
    assert said.shape == (2, 110)
    assert cache.layers[0].keys.dtype == torch.bfloat16


def test_other_caches_and_taking_back() -> None:
    model = cached(llama())
    _, cache = generate(model, ids(), cache_implementation="static")
    assert not any(isinstance(layer, PackedLayer) for layer in cache.layers)
    layer = generate(model, ids())[1].layers[0]
    layer.crop(-3)
    assert layer.get_seq_length() == 106
    with pytest.raises(ValueError, match="cannot be taken back"):
        layer.crop(-11)


@pytest.mark.parametrize("variant", ["t5", "bart"])
def test_of_two_stacks_the_decoders_own_tokens_are_packed(variant: str) -> None:
    model = cached(tiny.model(variant, "AutoModelForSeq2SeqLM"))
    _, cache = generate(model, ids(2, 12))
    assert all(isinstance(layer, PackedLayer) for layer in cache.self_attention_cache.layers)
    assert not any(isinstance(layer, PackedLayer) for layer in cache.cross_attention_cache.layers)


@pytest.mark.parametrize(
    ("variant", "head", "says"),
    [
        ("bert", "AutoModelForSequenceClassification", "BertForSequenceClassification does not generate"),
        ("mistral", "AutoModelForCausalLM", "MistralForCausalLM keeps a window of tokens"),
    ],
)
def test_who_keeps_nothing_is_refused(variant: str, head: str, says: str) -> None:
    with pytest.raises(LissomError, match=says) as caught:
        KvCache().check(Editor(tiny.model(variant, head)).anatomy(), Given())
    assert caught.value.code == "LSM-715"


@pytest.mark.parametrize(("group", "residual"), [(4, 8), (12, 8), (16, -1)])
def test_an_edit_that_fits_nothing(group: int, residual: int) -> None:
    with pytest.raises(LissomError, match="multiple of 8"):
        Editor(llama()).apply(PackCache(bits=4, group=group, residual=residual))


def test_an_export_says_that_it_is_not_in_it(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="the llm extra is not installed")
    model = llama()
    Rtn(group=16).apply(Editor(model), Given())
    assert any("kv_cache" in note for note in export(cached(model), "compressed-tensors", tmp_path / "out").notes)


def test_it_says_that_quality_is_measured_without_it() -> None:
    assert "without the packed cache" in (KvCache().apply(Editor(llama()), Given()) or {})["quality"]
    assert "quality is measured without it" in KvCache().words()
