import pytest
import torch

from lissom.anatomy import Slot, dissect
from lissom.data import load_data
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods import Given
from lissom.methods.quantization.int8 import Int8
from lissom.nn.static import StaticInt8Linear
from lissom.stats.ranges import same_inputs, scale_and_zero, token_ranges
from lissom.stats.token_clipping import Judge, clip_tokens, grids_at, rounded
from lissom.store import load, save
from tests import tiny


def given():
    data = load_data({"train": tiny.labelled_texts(16), "validation": tiny.labelled_texts(4, seed=1)})
    return Given(data=data, tokenizer=tiny.tokenizer(), max_length=32)


def test_a_share_of_the_tokens_by_hand():
    lows, highs = torch.tensor([-9.0, -1.0, -2.0, -3.0, -2.0]), torch.tensor([1.0, 2.0, 50.0, 3.0, 4.0])
    [(scale, zero)] = grids_at([(lows, highs)], 1.0)
    assert (scale.item(), zero.item()) == (pytest.approx(59 / 255), round(9 / 59 * 255))
    [(scale, zero)] = grids_at([(lows, highs)], 0.75)  # one end of one token in five is cut: [-3, 4]
    assert (scale.item(), zero.item()) == (pytest.approx(7 / 255), round(3 / 7 * 255))
    assert torch.equal(grids_at([(lows, highs)], 0.8)[0][0], grids_at([(lows, highs)], 1.0)[0][0])  # outwards


def test_the_range_of_each_token_by_hand():
    model = torch.nn.Sequential(torch.nn.Linear(3, 1))
    slot = Slot(model, "0")
    x = torch.tensor([[[1.0, -2.0, 3.0], [0.0, 0.5, 0.25], [7.0, 7.0, 7.0]]])
    mask = torch.tensor([[1, 1, 0]])
    model.forward = lambda attention_mask, x: model[0](x)
    [(lows, highs)] = token_ranges(model, [slot], [{"attention_mask": mask, "x": x}])
    assert (lows.tolist(), highs.tolist()) == ([-2.0, 0.0], [3.0, 0.5])


def test_the_gradient_of_a_step_by_hand():
    """Equation 3 of LSQ: round(x / s) - x / s inside, the code itself where it is clipped."""
    scale = torch.tensor(0.5, requires_grad=True)
    x = torch.tensor([0.6, 200.0])
    y = rounded(x, scale, torch.tensor(100, dtype=torch.uint8))
    assert y.tolist() == [0.5, 77.5]  # codes 101 and 255
    y.sum().backward()
    assert scale.grad.item() == pytest.approx((1 - 1.2) + 155)


def groups_of(model):
    batches = list(given().calibration(model, 16))
    slots = list(dissect(model).linears())
    groups = same_inputs(model, slots, batches[0])
    return groups, token_ranges(model, [one[0] for one in groups], batches), batches


@pytest.mark.parametrize("variant", ["bert", "llama", "bart"])
def test_tokens_that_lie_far_out_are_clipped(variant):
    model = tiny.model(variant, "AutoModelForSequenceClassification").eval()
    groups, extremes, batches = groups_of(model)
    for _, highs in extremes:
        highs[0] = 30 * highs.max()
    before = tiny.outputs(model, tiny.batch(model))
    grids = clip_tokens(model, groups, extremes, batches)
    judge = Judge.of(model, groups, batches)
    clipped, coarse = [judge.error(one) for one in (grids, grids_at(extremes, 0.99))]
    assert clipped <= coarse * 1.0001
    assert clipped < 0.05 * judge.error(grids_at(extremes, 1.0))
    assert torch.equal(tiny.outputs(model, tiny.batch(model)), before)  # the model is as it was
    assert not any(one._forward_pre_hooks for one in model.modules())


def test_steps_are_trained():
    model = tiny.model("bert", "AutoModelForSequenceClassification").eval()
    groups, extremes, batches = groups_of(model)
    extremes = [(0.3 * lows, 0.3 * highs) for lows, highs in extremes]  # every range is too short
    judge = Judge.of(model, groups, batches)
    errors = [judge.error(one) for one in (clip_tokens(model, groups, extremes, batches), grids_at(extremes, 1.0))]
    assert errors[0] < 0.98 * errors[1]


def test_int8_packs_by_it_and_maps_of_one_input_share_a_range(tmp_path):
    model = tiny.model("bert", "AutoModelForSequenceClassification")
    Int8(mode="static", calibrator="token_wise").apply(Editor(model), given())
    attention = model.bert.encoder.layer[1].attention.self
    assert isinstance(attention.query, StaticInt8Linear)
    assert attention.query.input_scale == attention.value.input_scale
    inputs = tiny.batch(model)
    save(model, tmp_path / "model")
    assert torch.equal(tiny.outputs(load(tmp_path / "model"), inputs), tiny.outputs(model, inputs))


def test_what_cannot_be_clipped_is_refused():
    model = tiny.model("bert", "AutoModelForSequenceClassification")
    step = Int8(mode="static", calibrator="token_wise")
    packed = Editor(tiny.model("bert", "AutoModelForSequenceClassification"))
    Int8().apply(packed, given())
    with pytest.raises(LissomError, match=r"LSM-713 .*this step needs gradients"):
        step.check(packed.anatomy(), given())
    with torch.no_grad():
        model.bert.encoder.layer[1].attention.self.value.weight[0, 0] = torch.inf
    with pytest.raises(LissomError, match=r"LSM-901 .*an input holds NaN or infinity"):
        step.apply(Editor(model), given())


def test_zero_is_always_a_code():
    [(scale, zero)] = grids_at([(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))], 1.0)
    assert (scale, zero) == scale_and_zero(0.0, 4.0)
