import copy

import pytest
import torch

from lissom.anatomy import stored_maps
from lissom.data import load_data
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods import Given
from lissom.methods.quantization.int8 import Int8
from lissom.methods.quantization.smooth import Smooth
from lissom.nn import ScaledLinear
from lissom.stats.folding import Feed
from lissom.stats.ranges import same_inputs
from lissom.store import load, save
from tests import tiny


def given():
    data = load_data({"train": tiny.labelled_texts(16), "validation": tiny.labelled_texts(4, seed=1)})
    return Given(data=data, tokenizer=tiny.tokenizer(), max_length=32)


@pytest.mark.parametrize("variant", ["bert", "gpt2", "llama", "opt", "t5"])
def test_the_model_computes_the_same(variant):
    model = tiny.model(variant, "AutoModelForSequenceClassification")
    inputs = tiny.batch(model)
    before = tiny.outputs(model, inputs)
    did = Smooth().apply(Editor(model), given())
    assert did["places"] > 0
    torch.testing.assert_close(tiny.outputs(model, inputs), before, rtol=1e-4, atol=1e-4)


def test_equation_4_by_hand():
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 2), "b": torch.nn.Linear(3, 1)})
    from lissom.anatomy import Slot

    with torch.no_grad():
        model["a"].weight.copy_(torch.tensor([[1.0, -4.0, 2.0], [0.5, 1.0, 1.0]]))
        model["b"].weight.copy_(torch.tensor([[-2.0, 1.0, 1.0]]))
    feed = Feed(feeder="", slots=(Slot(model, "a"), Slot(model, "b")), columns=torch.tensor([0, 1, 1]), size=2)
    # channel 0: inputs to 8, weights to 2; channel 1: inputs to 16 and 9, weights to 4
    assert Smooth()._factors(feed, torch.tensor([8.0, 16.0, 9.0])).tolist() == [2.0, 2.0]
    assert Smooth(alpha=1.0)._factors(feed, torch.tensor([8.0, 0.0, 0.0])).tolist() == [8.0, 1.0]


def test_a_large_channel_is_evened_out():
    model = tiny.model("llama", "AutoModelForSequenceClassification")
    norm = model.model.layers[0].input_layernorm
    with torch.no_grad():
        norm.weight[3] = 50.0
    ratio = (norm.weight.abs().max() / norm.weight.abs().median()).item()
    Smooth().apply(Editor(model), given())
    assert (norm.weight.abs().max() / norm.weight.abs().median()).item() < ratio / 2


def test_it_needs_texts():
    with pytest.raises(LissomError, match=r"LSM-317 needs texts to look at\. Give --data"):
        Smooth().apply(Editor(tiny.model("bert")), Given())


def test_inputs_that_are_not_finite_are_refused():
    model = tiny.model("llama", "AutoModelForSequenceClassification")
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[0] = torch.inf
    with pytest.raises(LissomError, match=r"LSM-901 model\.layers\.1\..*an input holds NaN or infinity"):
        Smooth().apply(Editor(model), given())


@pytest.mark.parametrize(("multiply", "scaled"), [("none", 0), ("stream", 4), ("all", 6)])
def test_maps_that_no_norm_can_spare_multiply_their_inputs(multiply, scaled):
    model = tiny.model("bert", num_hidden_layers=2)
    did = Smooth(multiply=multiply).apply(Editor(model), given())
    assert did == {"places": 2 + scaled, "multiplied": scaled}  # the values of each block are folded
    maps = {path: one for path, one in model.named_modules() if isinstance(one, ScaledLinear)}
    assert len(maps) == {"none": 0, "stream": 8, "all": 10}[multiply]
    if maps:
        one, other = (maps[f"encoder.layer.0.attention.self.{name}"] for name in ("query", "value"))
        assert torch.equal(one.input_factor, other.input_factor)


def test_a_large_channel_of_bert_loses_to_int8_less():
    model = tiny.model("bert", "AutoModelForSequenceClassification")
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.attention.output.LayerNorm.weight[3] = 40.0
            layer.intermediate.dense.weight[:, 3] *= 0.02
    inputs = tiny.batch(model)
    whole = tiny.outputs(model, inputs)
    plain, smoothed = copy.deepcopy(model), copy.deepcopy(model)
    Smooth().apply(Editor(smoothed), given())
    torch.testing.assert_close(tiny.outputs(smoothed, inputs), whole, rtol=1e-4, atol=1e-4)
    errors = []
    for one in (plain, smoothed):
        Int8(mode="static", embeddings=False).apply(Editor(one), given())
        errors.append((tiny.outputs(one, inputs) - whole).norm().item())
    assert errors[1] < 0.7 * errors[0]


def test_what_is_scaled_is_saved_and_read_again(tmp_path):
    model = tiny.model("gpt2", "AutoModelForSequenceClassification")
    Smooth(multiply="all").apply(Editor(model), given())
    Int8(mode="static").apply(Editor(model), given())
    inputs = tiny.batch(model)
    save(model, tmp_path / "model")
    assert torch.equal(tiny.outputs(load(tmp_path / "model"), inputs), tiny.outputs(model, inputs))


def test_its_preview_has_the_same_shapes():
    model, other = tiny.model("bert"), tiny.model("bert")
    Smooth().apply(Editor(model), given())
    Smooth().preview(Editor(other), Given())
    assert Editor(model).record == Editor(other).record


@pytest.mark.parametrize("variant", ["bert", "distilbert", "gpt2", "llama", "t5", "bart"])
def test_gamma_moves_and_the_model_computes_the_same(variant):
    model = tiny.model(variant)
    torch.manual_seed(0)
    with torch.no_grad():
        for path, one in model.named_modules():
            if "norm" in path.lower() and isinstance(getattr(one, "weight", None), torch.Tensor):
                one.weight.copy_(torch.randn(one.weight.shape) + 0.1)  # some are negative
                if getattr(one, "bias", None) is not None:
                    one.bias.normal_()
    inputs = tiny.batch(model)
    before = tiny.outputs(model, inputs)
    did = Smooth(by="gamma").apply(Editor(model), Given())
    assert did["places"] > 0
    torch.testing.assert_close(tiny.outputs(model, inputs), before, rtol=1e-4, atol=1e-5)


def test_gamma_by_hand():
    """Maps of BERT read (x - mean) / deviation + beta / gamma; a weight of 0 stays where it is."""
    model = tiny.model("bert", num_hidden_layers=1)
    norm, up = model.encoder.layer[0].attention.output.LayerNorm, model.encoder.layer[0].intermediate.dense
    with torch.no_grad():
        norm.weight[:3] = torch.tensor([4.0, -0.5, 0.0])
        norm.bias[:3] = torch.tensor([2.0, 1.0, 3.0])
    was = up.weight.detach().clone()
    seen = []
    did = Smooth(by="gamma").apply(Editor(model), Given())
    assert did == {"places": 2, "multiplied": 2}  # q, k, v behind the norm of the embeddings, and this one
    scaled = model.encoder.layer[0].intermediate.dense
    norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    scaled.inner.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    tiny.outputs(model, tiny.batch(model))
    assert scaled.input_factor[:3].tolist() == [0.25, -2.0, 1.0]
    torch.testing.assert_close(scaled.inner.weight[:, :3], was[:, :3] * torch.tensor([4.0, -0.5, 1.0]))
    plain = torch.nn.functional.layer_norm(seen[0], seen[0].shape[-1:], eps=norm.eps)[..., :3]
    plain[..., 2] = 0
    torch.testing.assert_close(seen[1][..., :3], plain + torch.tensor([0.5, -2.0, 3.0]), rtol=1e-4, atol=1e-5)


def test_a_norm_before_the_maps_loses_its_gamma():
    model = tiny.model("llama")
    with torch.no_grad():
        model.layers[1].input_layernorm.weight.normal_()
    assert Smooth(by="gamma").apply(Editor(model), Given())["multiplied"] == 0
    torch.testing.assert_close(model.layers[1].input_layernorm.weight, torch.ones(model.config.hidden_size))


def test_the_preview_of_gamma_has_the_same_shapes():
    model, other = tiny.model("bert"), tiny.model("bert")
    Smooth(by="gamma").apply(Editor(model), Given())
    Smooth(by="gamma").preview(Editor(other), Given())
    assert Editor(model).record == Editor(other).record


def test_maps_behind_the_same_factors_share_a_range():
    model = tiny.model("bert", "AutoModelForSequenceClassification")
    Smooth(by="gamma").apply(Editor(model), Given())
    slots = [part for slot in Editor(model).anatomy().linears() for part in stored_maps(slot)]
    sets = same_inputs(model, slots, tiny.batch(model))
    assert [len(one) for one in sets] == [3, 1, 1, 1] * 3
