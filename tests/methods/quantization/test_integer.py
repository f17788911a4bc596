"""An encoder in whole numbers: what is stored, that codes survive between layers, and which models are refused."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

import lissom
from lissom.data import load_data
from lissom.edits import Editor, PackInteger
from lissom.errors import LissomError
from lissom.measure.flops import model_flops
from lissom.methods import Given
from lissom.methods.distillation.tune import Tune
from lissom.methods.low_rank.svd import Svd
from lissom.methods.pruning.prune_heads import PruneHeads
from lissom.methods.quantization.int8 import Int8
from lissom.methods.quantization.integer import Integer
from lissom.methods.weight_sharing.share_layers import ShareLayers
from lissom.nn import Int8Linear
from lissom.nn.int8 import quantize_rows
from lissom.nn.integer_layers import IntegerAttention, IntegerEmbedding, IntegerIntermediate, IntegerLinear, codes_of
from tests import tiny

CLASSIFIER = "AutoModelForSequenceClassification"


def given(count: int = 64) -> Given:
    data = load_data({"train": tiny.labelled_texts(count), "validation": tiny.labelled_texts(4, seed=1)})
    return Given(data=data, tokenizer=tiny.tokenizer(), max_length=32)


def packed(model: PreTrainedModel) -> PreTrainedModel:
    editor, step, gets = Editor(copy.deepcopy(model)), Integer(), given()
    step.check(editor.anatomy(), gets)
    step.apply(editor, gets)
    return editor.model


@pytest.mark.parametrize("act", ["gelu", "relu"])
@pytest.mark.parametrize("variant", ["bert", "roberta", "electra"])
def test_it_answers_nearly_as_the_original(variant: str, act: str):
    model = tiny.model(variant, CLASSIFIER, hidden_act=act)
    inputs = tiny.batch(model)
    before, after = tiny.outputs(model, inputs), tiny.outputs(packed(model), inputs)
    assert not torch.equal(before, after)
    assert torch.nn.functional.cosine_similarity(before, after, dim=0) > 0.998


def test_nothing_but_scales_is_stored_in_floating_point_in_the_blocks_and_tables():
    model = packed(tiny.model("bert", CLASSIFIER))
    floats = {
        name.rpartition(".")[2]
        for name, one in model.bert.state_dict().items()
        if one.is_floating_point() and not name.startswith("pooler")
    }
    assert floats == {"weight_scale", "input_scale", "output_scale", "residual_scale", "unit"}
    assert sum(isinstance(one, IntegerLinear) for one in model.modules()) == 3 * 6
    assert sum(isinstance(one, IntegerEmbedding) for one in model.modules()) == 3
    assert {one.dtype for name, one in model.state_dict().items() if name.endswith("dense.bias")} == {
        torch.int32,
        torch.float32,  # of the pooler
    }


def test_one_map_by_hand():
    """Codes 2 and -1 of scale 1/2, weights 127 and 127 (of 1/127) and the bias 1: (1 - 1/2) + 1 in units of 1/8."""
    layer = IntegerLinear(2, 1, 127)
    layer.weight.fill_(127)
    layer.bias.fill_(254)  # in units of 1/254
    layer.rescale.multiplier.fill_(round(2**29 * 8 / 254))
    layer.rescale.shift.fill_(29)
    assert layer(torch.tensor([[2, -1]], dtype=torch.int8)).tolist() == [[12]]


def test_codes_survive_between_layers_in_any_dtype():
    codes = torch.arange(-127, 128)
    for scale in (0.0371, 1.0, 3e-5, 812.7):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            if dtype == torch.float16 and not 1e-3 < scale < 100:
                continue
            state = (codes.float() * scale).to(dtype)
            assert torch.equal(codes_of(state, torch.tensor(scale)).long(), codes)


def test_layers_agree_on_the_scales_between_them():
    model = packed(tiny.model("bert"))
    layers = model.encoder.layer
    out = model.embeddings.LayerNorm.output_scale
    for layer in layers:
        attention, middle = layer.attention, layer.attention.output.LayerNorm.output_scale
        for reads in (attention.self.query, attention.self.key, attention.self.value):
            assert torch.equal(reads.input_scale, out)
        assert torch.equal(attention.output.residual_scale, out)
        assert torch.equal(attention.output.dense.input_scale, attention.self.output_scale)
        assert torch.equal(layer.intermediate.dense.input_scale, middle)
        assert torch.equal(layer.output.residual_scale, middle)
        assert torch.equal(layer.output.dense.input_scale, layer.intermediate.output_scale)
        out = layer.output.LayerNorm.output_scale


def test_the_sum_of_the_tables_is_exact():
    model = packed(tiny.model("bert"))
    ids = torch.arange(3, 12)[None]
    tables = model.embeddings
    rows = (tables.word_embeddings(ids), tables.position_embeddings(ids), tables.token_type_embeddings(ids * 0))
    unit = tables.word_embeddings.unit
    assert all(torch.equal(one / unit, (one / unit).round()) for one in rows)
    assert torch.equal(sum(one.double() for one in rows), sum(rows).double())


def test_neither_padding_nor_the_batch_changes_an_answer():
    model = packed(tiny.model("bert", CLASSIFIER))
    ids = torch.randint(3, 99, (4, 7), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        alone = torch.cat([model.bert(input_ids=one[None]).last_hidden_state for one in ids])
        longer, mask = torch.nn.functional.pad(ids, (0, 6)), torch.nn.functional.pad(torch.ones_like(ids), (0, 6))
        together = model.bert(input_ids=longer, attention_mask=mask).last_hidden_state[:, :7]
    assert torch.equal(alone, together)


def test_both_kinds_of_masks_mean_the_same():
    model = packed(tiny.model("bert", CLASSIFIER))
    inputs = tiny.batch(model)
    before = tiny.outputs(model, inputs)
    model.set_attn_implementation("eager")
    assert torch.equal(tiny.outputs(model, inputs), before)


def test_saved_loaded_and_read_by_the_auto_class(tmp_path: Path):
    model = packed(tiny.model("roberta", CLASSIFIER))
    inputs = tiny.batch(model)
    lissom.save(model, tmp_path / "out")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert torch.equal(tiny.outputs(again, inputs), tiny.outputs(model, inputs))
    assert isinstance(again.roberta.encoder.layer[0].attention.self, IntegerAttention)
    assert Editor(again).record.edits == Editor(model).record.edits
    half = lissom.load(tmp_path / "out", dtype=torch.bfloat16)
    near = tiny.outputs(half, inputs).float()  # transformers rounds the scales, on both sides of each layer alike
    assert torch.nn.functional.cosine_similarity(near, tiny.outputs(model, inputs), dim=0) > 0.999


def test_the_anatomy_still_finds_everything():
    before, after = Editor(tiny.model("bert")).anatomy(), Editor(packed(tiny.model("bert"))).anatomy()
    assert [slot.path for slot in after.slots()] == [slot.path for slot in before.slots()]
    assert [block.norms for block in after.stacks[0].blocks] == [block.norms for block in before.stacks[0].blocks]
    assert after.embeddings == before.embeddings


def test_twice_is_once():
    model = packed(tiny.model("bert"))
    editor = Editor(model)
    Integer().apply(editor, given())
    assert len(editor.record.edits) == 1
    with pytest.raises(LissomError, match="LSM-713"):
        Tune(max_steps=1).check(editor.anatomy(), given())


def test_heads_may_be_fewer():
    editor = Editor(tiny.model("bert", CLASSIFIER))
    PruneHeads(ratio=0.5).apply(editor, given())
    inputs = tiny.batch(editor.model)
    before = tiny.outputs(editor.model, inputs)
    Integer().apply(editor, given())
    assert torch.nn.functional.cosine_similarity(tiny.outputs(editor.model, inputs), before, dim=0) > 0.998


def test_codes_that_were_trained_are_taken_as_they_are():
    editor = Editor(tiny.model("bert", CLASSIFIER))
    Int8().apply(editor, given())
    slot = editor.anatomy().stacks[0].blocks[0].ffn.up
    assert type(slot.module) is Int8Linear
    codes = slot.module.weight.flip(0)
    slot.module.weight.copy_(codes)
    Integer().apply(editor, given())
    module = editor.anatomy().stacks[0].blocks[0].ffn.up.module
    assert isinstance(module, IntegerLinear)
    assert torch.equal(module.weight, codes)
    assert isinstance(editor.model.get_input_embeddings(), IntegerEmbedding)


def test_a_table_tied_to_the_output_stays():
    model = packed(tiny.model("bert", "AutoModelForMaskedLM"))
    assert type(model.get_input_embeddings()) is torch.nn.Embedding
    assert isinstance(model.bert.encoder.layer[0].intermediate, IntegerIntermediate)


def test_weights_by_row():
    model = tiny.model("bert")
    codes, scale = quantize_rows(model.encoder.layer[1].output.dense.weight)
    dense = packed(model).encoder.layer[1].output.dense
    assert torch.equal(dense.weight, codes)
    assert torch.equal(dense.weight_scale, scale)


@pytest.mark.parametrize(
    ("variant", "head", "changes", "says"),
    [
        ("gpt2", CLASSIFIER, {}, "only encoders like BERT and RoBERTa have a form in whole numbers, not gpt2"),
        ("bart", CLASSIFIER, {}, "whole numbers, not bart"),
        ("albert", CLASSIFIER, {}, "whole numbers, not albert"),
        ("bert", "AutoModelForCausalLM", {"is_decoder": True}, "not bert as a decoder"),
        ("bert", CLASSIFIER, {"hidden_act": "silu"}, 'the activation "silu" has no form in whole numbers, but gelu'),
    ],
)
def test_models_without_such_a_form(variant: str, head: str, changes: dict[str, Any], says: str):
    editor = Editor(tiny.model(variant, head, **changes))
    with pytest.raises(LissomError, match=f"LSM-715 integer: .*{says}"):
        Integer().check(editor.anatomy(), given())


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (Svd(ratio=0.5), r"encoder\.layer\.0\.attention\.self\.query: LowRankLinear has no form in whole numbers"),
        (ShareLayers(unique=1), "layers that share weights cannot each have scales of their own"),
        (Int8(mode="static"), "StaticInt8Linear has no form"),
    ],
)
def test_steps_before_it_that_do_not_fit(step: Any, says: str):
    editor = Editor(tiny.model("bert"))
    step.apply(editor, given())
    with pytest.raises(LissomError, match=f"LSM-715 .*{says}"):
        Integer().check(editor.anatomy(), given())


def test_texts_that_show_nothing_are_refused():
    editor = Editor(tiny.model("bert"))
    with pytest.raises(LissomError, match="LSM-829 7 calibration texts are too few to find ranges on, 8 is the least"):
        Integer().apply(editor, given(7))
    with torch.no_grad():
        for one in editor.anatomy().stacks[0].blocks[1].attention.q.module.parameters():
            one.zero_()
    with pytest.raises(LissomError, match=r"LSM-829 encoder\.layer\.1\.attention\.self\.query out: it is 0 on every"):
        Integer().apply(editor, given())


def test_weights_that_are_not_finite_are_refused():
    editor = Editor(tiny.model("bert"))
    with torch.no_grad():
        editor.model.embeddings.position_embeddings.weight[63, 0] = torch.nan  # a place that no text reaches
    with pytest.raises(LissomError, match=r"LSM-901 embeddings\.position_embeddings: .*NaN"):
        Integer().apply(editor, given())


def test_the_edit_refuses_other_models():
    with pytest.raises(LissomError, match="LSM-451 only encoders like BERT"):
        Editor(tiny.model("gpt2")).apply(PackInteger())
    with pytest.raises(LissomError, match=r"LSM-451 encoder\.layer: no layer norm stands here"):
        Editor(tiny.model("bert")).apply(PackInteger(norm="encoder.layer"))


def test_its_products_are_counted():
    model = tiny.model("bert", CLASSIFIER)
    found = model_flops(packed(model), 8)
    assert found.value == model_flops(model, 8).value
    assert "agrees" in found.how
