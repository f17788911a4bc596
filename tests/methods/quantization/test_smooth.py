import pytest
import torch

from lissom.data import load_data
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods import Given
from lissom.methods.quantization.smooth import Smooth
from lissom.stats.folding import Feed
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
