"""What rounding one map does: by hand on a map of four numbers, and against really packing it."""

import math

import pytest
import torch
from torch import nn

from lissom import edits
from lissom.anatomy import dissect
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.base import Given
from lissom.methods.quantization.int8 import Int8
from lissom.nn import Int8Linear
from lissom.stats.sensitivity import Sensitivity, SlotSensitivity, rounded_weight, sensitivity, stand_out
from tests import tiny

CLASSIFIER = "AutoModelForSequenceClassification"
HEADS = (
    ("bert", CLASSIFIER, "kl"),
    ("bert", "AutoModelForTokenClassification", "kl"),
    ("bert", "AutoModelForQuestionAnswering", "kl"),
    ("bert", "AutoModel", "cosine"),
    ("gpt2", "AutoModelForCausalLM", "kl"),
    ("llama", "AutoModelForCausalLM", "kl"),
    ("albert", "AutoModelForMaskedLM", "kl"),
    ("deberta-v3", CLASSIFIER, "kl"),
    ("t5", "AutoModelForTokenClassification", "kl"),
    ("bart", CLASSIFIER, "kl"),
)


def batches(model, count=2):
    return [tiny.batch(model, rows=3, seed=seed) for seed in range(count)]


def found_of(model, **options):
    return sensitivity(model, dissect(model), batches(model), **options)


def fake(*damages):
    return [
        SlotSensitivity(path=str(number), weights=1, weight_db=1.0, output_db=1.0, damage=damage)
        for number, damage in enumerate(damages)
    ]


def test_rounding_by_hand():
    weight = torch.tensor([[7.0, 3.4, -1.6, 0.0], [14.0, 1.1, 0.9, -14.0]])
    # 4 bits: codes -7 to 7; the scale of the first row is 1, of the second 2
    assert rounded_weight(weight, 4).tolist() == [[7.0, 3.0, -2.0, 0.0], [14.0, 2.0, 0.0, -14.0]]


def test_weight_decibels_by_hand():
    model = tiny.model("bert", CLASSIFIER)
    slot = next(dissect(model).linears())
    with torch.no_grad():
        slot.weight.zero_()
        slot.weight[:, 0], slot.weight[:, 1] = 7.0, 0.5  # 4 bits: 0.5 becomes 0 (round half to even)
    found = {one.path: one for one in found_of(model, bits=4).slots}[slot.path]
    assert found.weight_db == pytest.approx(10 * math.log10((49 + 0.25) / 0.25), abs=1e-4)
    assert found.weights == slot.weight.numel()


def test_what_rounding_does_not_change_has_no_decibels():
    model = tiny.model("bert", CLASSIFIER)
    slot = next(dissect(model).linears())
    with torch.no_grad():
        slot.weight.fill_(0.5)
    found = {one.path: one for one in found_of(model).slots}[slot.path]
    assert found.weight_db is None
    assert found.output_db is not None  # its input is rounded


@pytest.mark.parametrize(("variant", "head", "measure"), HEADS)
def test_every_head_is_measured_and_the_model_stays_as_it_was(variant, head, measure):
    model = tiny.model(variant, head).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = dict(model.named_modules())
    found = found_of(model)
    assert found.measure == measure
    assert {one.path for one in found.slots} == {slot.path for slot in dissect(model).linears()}
    assert [one.damage for one in found.slots] == sorted((one.damage for one in found.slots), reverse=True)
    assert all(one.damage >= 0 and math.isfinite(one.damage) for one in found.slots)
    assert found.slots[0].damage > 0
    assert all(one.weight_db > 25 and one.output_db > 15 for one in found.slots)
    assert model.training
    assert dict(model.named_modules()) == modules
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_damage_is_what_packing_that_map_alone_does():
    model = tiny.model("bert", CLASSIFIER)
    found = found_of(model)
    worst = found.slots[0]
    packed = tiny.model("bert", CLASSIFIER)
    packed.set_submodule(
        worst.path,
        Int8Linear.from_weight(model.get_submodule(worst.path).weight, model.get_submodule(worst.path).bias),
    )
    total = rows = 0
    with torch.inference_mode():
        for batch in batches(model):
            p, q = (one(**batch).logits.double().log_softmax(-1) for one in (model, packed))
            total += (p.exp() * (p - q)).sum().item()
            rows += len(p)
    assert found.answers == rows
    assert worst.damage == pytest.approx(total / rows, rel=1e-2)


def test_a_regression_is_measured_by_its_value():
    found = found_of(tiny.model("bert", CLASSIFIER, num_labels=1))
    assert found.measure == "difference"
    assert found.slots[0].damage > 0


def test_fewer_bits_do_more_damage():
    model = tiny.model("bert", CLASSIFIER)
    eight, four = (sum(one.damage for one in found_of(model, bits=bits).slots) for bits in (8, 4))
    assert four > 10 * eight


@pytest.mark.parametrize("number", [2, 4, 11])
def test_the_one_map_that_does_not_fit_into_4_bits_is_found(number):
    model = tiny.model("bert", CLASSIFIER)
    slots = list(dissect(model).linears())
    with torch.no_grad():
        for slot in slots[:number] + slots[number + 1 :]:
            slot.weight.copy_(slot.weight.sign() * 0.1)  # 7 times a scale
    found = found_of(model, bits=4)
    assert found.slots[0].path == slots[number].path
    assert found.slots[0].damage > 10 * found.slots[1].damage
    assert [one.weight_db is None for one in found.slots] == [False] + [True] * (len(slots) - 1)


def test_padding_does_not_count():
    model = tiny.model("bert", "AutoModelForTokenClassification")
    found = found_of(model)
    assert found.answers == sum(int(batch["attention_mask"].sum()) for batch in batches(model))


def test_the_rule_by_hand():
    assert stand_out(fake(60.0, *[1.0] * 39)) == ("0",)
    assert stand_out(fake(30.0, 30.0, *[1.0] * 38)) == ("0", "1")
    assert stand_out(fake(*[1.0] * 40)) == ()  # half of the damage takes half of the maps
    assert stand_out(fake(10.0, 0.0, 0.0)) == ()  # one of three is no small part
    assert stand_out(fake(*[0.0] * 40)) == ()
    assert stand_out([]) == ()


def test_half_a_low_rank_map_is_a_map_of_its_own():
    model = tiny.model("bert", CLASSIFIER)
    editor = Editor(model)
    path = next(dissect(model).linears()).path
    editor.apply(edits.Factorize(ranks={path: 4}))
    paths = {one.path for one in found_of(editor.model).slots}
    assert {f"{path}.down", f"{path}.up"} <= paths
    assert path not in paths


def test_packed_models_and_broken_numbers_are_named():
    model = tiny.model("bert", CLASSIFIER)
    Int8().apply(Editor(model), Given())
    with pytest.raises(LissomError, match="LSM-715 BertForSequenceClassification has no linear map that is not packed"):
        found_of(model)
    model = tiny.model("bert", CLASSIFIER)
    slot = list(dissect(model).linears())[2]
    with torch.no_grad():
        model.get_submodule(slot.path).bias[0] = torch.nan
    with pytest.raises(LissomError, match=rf"LSM-901 {slot.path}: its output holds NaN or infinity") as caught:
        found_of(model)
    assert not any(module._forward_hooks for module in model.modules())
    assert caught.value.place == slot.path
    with torch.no_grad():
        slot.weight[0, 0] = torch.inf
    with pytest.raises(LissomError, match=rf"LSM-901 {slot.path}: its weights hold NaN or infinity"):
        found_of(model)
    broken = tiny.model("bert", CLASSIFIER)
    nn.init.constant_(broken.bert.embeddings.LayerNorm.bias, torch.nan)
    first = next(dissect(broken).linears()).path
    with pytest.raises(LissomError, match=rf"LSM-901 {first}: its input holds NaN or infinity"):
        found_of(broken)


def test_a_model_that_wants_more_than_texts_is_named():
    model = tiny.model("t5", "AutoModelForSeq2SeqLM")
    given = [{name: batch[name] for name in ("input_ids", "attention_mask")} for batch in batches(model)]
    with pytest.raises(LissomError, match="LSM-715 T5ForConditionalGeneration does not answer texts alone"):
        sensitivity(model, dissect(model), given)


def test_the_step_of_a_recipe_that_skips_what_stands_out():
    found = {"measure": "kl", "answers": 1, "slots": ()}
    assert Sensitivity(bits=8, keep=("a.b",), **found).step == {"int8": {"skip": ["a.b"]}}
    assert Sensitivity(bits=4, keep=("a.b", "c"), **found).step == {"rtn": {"bits": 4, "skip": ["a.b", "c"]}}
    assert Sensitivity(bits=4, keep=(), **found).step == {}
