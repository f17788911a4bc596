"""Fake quantization: rows and gradients by hand, and that what is packed is what was trained, in every family."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

import lissom
from lissom.edits import Editor, Factorize, KeepHeads, KeepNeurons, Pack, PackBits, ShareLayers
from lissom.errors import LissomError
from lissom.export import export
from lissom.methods import Given
from lissom.methods.distillation.tune import Tune
from lissom.methods.quantization.int8 import Int8
from lissom.nn import Int8Embedding, Int8Linear, LowBitEmbedding, LowBitLinear
from lissom.nn.fake_quant import FakeWeight, LearnedFakeWeight, RunningRange, quantize, rounded_input
from lissom.nn.int8 import quantize_activation, quantize_rows
from lissom.nn.static import StaticInt8Linear
from lissom.recipe import parameters
from lissom.train.during.fake_quant import FakeQuant
from lissom.train.during.weights import original, transform, untransform
from lissom.train.ramp import Ramp
from lissom.train.run import train
from tests import tiny
from tests.export.made import only_graph, operators
from tests.train import test_during
from tests.train.tiny_rows import rows, tokenizer, topics

CLASSIFIER = "AutoModelForSequenceClassification"
KINDS = ("int8", "int4", "ternary", "binary")
FAMILIES = ("bert", "roberta", "distilbert", "albert", "gpt2", "llama", "t5", "t5-gated", "bart")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def acting(model: PreTrainedModel, **options):
    torch.set_num_threads(1)
    editor = Editor(model)
    return editor, FakeQuant(**options).begin(editor, None)


def finish(editor: Editor, *acts) -> PreTrainedModel:
    """What the end of a run does."""
    for one in acts:
        one.at(1.0)
    for one in acts:
        one.bake()
    for one in acts:
        one.end(editor)
    return editor.model


# the formulas

ROWS = [
    ("int8", [127.0, -1.5, 0.4], 1.0, [127, -2, 0]),
    ("int4", [1.4, -0.3, 0.09], 0.2, [7, -2, 0]),
    ("ternary", [1.0, -0.6, 0.3, 0.1], 0.8, [1, -1, 0, 0]),  # 0.7 · mean = 0.35
    ("binary", [1.0, -0.6, 0.3, 0.1], 0.5, [1, -1, 1, 1]),
    ("ternary", [0.0, 0.0], None, [0, 0]),
    ("binary", [0.0, 0.0], None, [1, 1]),
]


@pytest.mark.parametrize(("kind", "row", "scale", "codes"), ROWS)
def test_rows_by_hand(kind, row, scale, codes):
    weight = torch.tensor([row, [8 * one for one in row]])
    found, scales = quantize(weight, kind)
    assert found.tolist() == [codes, codes]
    if scale is not None:
        torch.testing.assert_close(scales, torch.tensor([scale, 8 * scale]))
        torch.testing.assert_close(FakeWeight(kind)(weight), found * scales[:, None])
    assert torch.isfinite(FakeWeight(kind)(weight)).all()


def test_one_scale_for_the_matrix_by_hand():
    weight = torch.tensor([[1.0, -0.6], [0.3, 0.1]])  # mean 0.5
    assert quantize(weight, "ternary", by_row=False)[0].tolist() == [[1, -1], [0, 0]]
    torch.testing.assert_close(quantize(weight, "ternary", by_row=False)[1], torch.full((2,), 0.8))
    torch.testing.assert_close(quantize(weight, "binary", by_row=False)[1], torch.full((2,), 0.5))
    torch.testing.assert_close(quantize(weight, "int8", by_row=False)[1], torch.full((2,), 1 / 127))


def test_int8_is_what_int8_layers_hold():
    weight = random(20, 33)
    codes, scale = quantize_rows(weight)
    assert torch.equal(quantize(weight, "int8")[0], codes.float())
    assert torch.equal(FakeWeight("int8")(weight), Int8Linear.from_weight(weight).dense())
    assert torch.equal(FakeWeight("int8", transposed=True)(weight.t()), (codes * scale[:, None]).t())


def test_inputs_are_rounded_as_int8_layers_round_them():
    x = (random(4, 5, 33) + 1).requires_grad_()
    codes, scale, zero = quantize_activation(x.detach())
    y = rounded_input(x)
    assert torch.equal(y, (codes.float() - zero) * scale)
    weight = random(7, 33)
    torch.testing.assert_close(F.linear(y, FakeWeight("int8")(weight)), Int8Linear.from_weight(weight)(x.detach()))
    y.backward(random(4, 5, 33, seed=1))
    assert torch.equal(x.grad, random(4, 5, 33, seed=1)), "straight through"


@pytest.mark.parametrize("kind", KINDS)
def test_weights_get_the_gradient_of_what_stands_for_them(kind):
    weight, wanted = random(6, 9).requires_grad_(), random(6, 9, seed=1)
    FakeWeight(kind)(weight).backward(wanted)
    assert torch.equal(weight.grad, wanted)


@pytest.mark.parametrize("kind", ["int8", "int4", "ternary"])
def test_the_gradient_of_a_trained_step_is_that_of_the_paper(kind):
    weight, given = random(6, 9).requires_grad_(), random(6, 9, seed=1)
    made = LearnedFakeWeight(kind, weight)
    top = {"int8": 127, "int4": 7, "ternary": 1}[kind]
    assert made.step.item() == pytest.approx(2 * weight.abs().mean().item() / math.sqrt(top))
    with torch.no_grad():
        made.step.fill_(0.9 * weight.abs().max().item() / (top + 0.5))  # a few are outside
    made(weight).backward(given)
    with torch.no_grad():
        ratio = weight / made.step
        inside = ratio.abs() <= top
        slope = torch.where(inside, ratio.round() - ratio, top * weight.sign())
        expected = (slope * given).sum() / math.sqrt(weight.numel() * top)
    assert 0 < inside.sum() < inside.numel()
    torch.testing.assert_close(made.step.grad, expected)
    torch.testing.assert_close(weight.grad, given * inside)


def test_a_relative_step_follows_the_weights():
    weight = random(6, 9).requires_grad_()
    made = LearnedFakeWeight("ternary", weight, relative=True)
    assert made.step.item() == 2.0
    torch.testing.assert_close(made.scales(weight), 2 * weight.abs().mean().reshape(1))
    torch.testing.assert_close(made(3 * weight), 3 * made(weight))
    made(weight).sum().backward()
    scale, size = 2 * weight.abs().mean(), weight.abs().mean()
    ratio = (weight / scale).detach()
    slope = torch.where(ratio.abs() <= 1, ratio.round() - ratio, ratio.sign())
    torch.testing.assert_close(made.step.grad, (slope.sum() * size).detach())


def test_a_share_of_the_weights_is_rounded_in_training_and_all_of_them_afterwards():
    weight = random(50, 40)
    made = FakeWeight("ternary")
    made.noise = 0.3
    torch.manual_seed(0)
    changed = (made(weight) != weight).float().mean().item()
    assert changed == pytest.approx(0.3, abs=0.05)
    assert torch.equal(made.eval()(weight), FakeWeight("ternary")(weight))


# what is packed is what was trained


def near(packed: Tensor, fake: Tensor) -> None:
    """Kernels that differ in the last bit round an input to the other side in places, which then changes the rest."""
    assert F.cosine_similarity(packed.flatten(), fake.flatten(), dim=0) > 0.9995


def calls(model: PreTrainedModel, modules: list[nn.Module]) -> dict[str, tuple[Tensor, Tensor]]:
    """What goes into each of `modules`, before it is rounded, and what comes out; by name."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    inputs: dict[nn.Module, Tensor] = {}
    handles = []
    for name, one in model.named_modules():
        if one in modules:
            before = one.register_forward_pre_hook(lambda module, args: inputs.update({module: args[0]}), prepend=True)
            after = one.register_forward_hook(
                lambda module, args, y, name=name: found.update({name: (inputs[module], y.detach())})
            )
            handles += [before, after]
    tiny.outputs(model, tiny.batch(model))
    for one in handles:
        one.remove()
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", FAMILIES)
def test_what_is_packed_is_what_was_trained(variant, kind, tmp_path: Path):
    model = tiny.model(variant)
    inputs, before = tiny.batch(model), parameters(model)
    plain = tiny.outputs(model, inputs)
    editor, it = acting(model, weights=kind)
    modules = list(it.quantizers)
    fake, called = tiny.outputs(model, inputs), calls(model, modules)
    weights = {name: one.weight.detach().clone() for name, one in model.named_modules() if one in modules}
    packed = finish(editor, it)
    assert called
    assert not torch.equal(fake, plain)
    near(tiny.outputs(packed, inputs), fake)
    for name, (x, y) in called.items():
        torch.testing.assert_close(packed.get_submodule(name)(x), y, atol=1e-5, rtol=1e-4)
    for name, weight in weights.items():
        module = packed.get_submodule(name)
        transposed = variant == "gpt2" and isinstance(module, Int8Linear)
        assert torch.equal(module.dense(), weight.t() if transposed else weight)
    scales = sum(len(one.weight_scale) for one in packed.modules() if isinstance(one, Int8Linear | Int8Embedding))
    assert parameters(packed) == before + scales, "each weight counts, and each scale"
    lissom.save(packed, tmp_path / "out")
    assert torch.equal(tiny.outputs(lissom.load(tmp_path / "out"), inputs), tiny.outputs(packed, inputs))


def test_int8_gives_the_very_codes_of_the_method():
    model = tiny.model("bert", CLASSIFIER)
    other = copy.deepcopy(model)
    editor, it = acting(model)
    finish(editor, it)
    Int8().apply(Editor(other), Given())
    assert model.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(one, other.state_dict()[name]) for name, one in model.state_dict().items())
    assert editor.record.edits == Editor(other).record.edits


@pytest.mark.parametrize(("kind", "bits"), [("int4", 4), ("ternary", 2), ("binary", 1)])
def test_fewer_bits_make_a_smaller_file(kind, bits, tmp_path: Path):
    model = tiny.model("bert", hidden_size=64, intermediate_size=256, vocab_size=999)
    lissom.save(model, tmp_path / "plain")
    editor, it = acting(model, weights=kind)
    held = [one.weight.numel() for one in it.quantizers]
    lissom.save(finish(editor, it), tmp_path / "out")
    before, after = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("plain", "out"))
    scales = 4 * sum(len(one.weight_scale) for one in model.modules() if isinstance(one, Int8Linear | Int8Embedding))
    saved = sum(held) * (32 - bits) // 8 - scales
    assert before - after == pytest.approx(saved, abs=2500), "but for the header"
    assert after < before / {4: 5, 2: 7, 1: 9}[bits]


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_that_were_not_rounded_are_not_rounded_later(kind):
    model = tiny.model("bert")
    inputs = tiny.batch(model)
    editor, it = acting(model, weights=kind, activations="none")
    fake = tiny.outputs(model, inputs)
    packed = finish(editor, it)
    torch.testing.assert_close(tiny.outputs(packed, inputs), fake, atol=1e-5, rtol=1e-5)
    low = [one for one in packed.modules() if isinstance(one, LowBitLinear)]
    assert len(low) == 18
    assert not any(one.rounds for one in low)
    table = packed.get_input_embeddings()
    assert type(table) is (Int8Embedding if kind == "int8" else LowBitEmbedding)


@pytest.mark.parametrize("steps", ["learned", "relative"])
@pytest.mark.parametrize("kind", ["int8", "int4", "ternary"])
def test_trained_steps_are_packed(kind, steps):
    model = tiny.model("bert")
    inputs = tiny.batch(model)
    editor, it = acting(model, weights=kind, steps=steps)
    with torch.no_grad():
        for one in it.made:
            one.step.mul_(0.8)
    fake = tiny.outputs(model, inputs)
    step = it.made[0].scales(original(next(iter(it.quantizers)))).item()
    packed = finish(editor, it)
    near(tiny.outputs(packed, inputs), fake)
    scale = next(one for one in packed.modules() if isinstance(one, Int8Linear)).weight_scale
    assert torch.equal(scale, torch.full_like(scale, step))


def test_tables_and_their_ties():
    assert type(finish(*acting(tiny.model("bert"), embeddings=False)).get_input_embeddings()) is nn.Embedding
    assert type(finish(*acting(tiny.model("bert", "AutoModelForMaskedLM"))).get_input_embeddings()) is nn.Embedding
    per_matrix = finish(*acting(tiny.model("bert"), weights="ternary", scales="matrix"))
    assert len(per_matrix.encoder.layer[0].output.dense.weight_scale.unique()) == 1
    assert len(per_matrix.get_input_embeddings().weight_scale.unique()) > 90


def test_trained_as_a_whole_it_stays_one_set_of_tensors(tmp_path: Path):
    model = tiny.model("bert")
    Editor(model).apply(ShareLayers(source=(0, 0, 0)))
    editor, it = acting(model, weights="ternary", steps="learned")
    assert len(it.made) == 6 + 1
    packed = finish(editor, it)
    first, last = (packed.encoder.layer[at].output.dense for at in (0, 2))
    assert first.weight is last.weight
    assert first.weight_scale is last.weight_scale
    lissom.save(packed, tmp_path / "out")
    inputs = tiny.batch(packed)
    assert torch.equal(tiny.outputs(lissom.load(tmp_path / "out"), inputs), tiny.outputs(packed, inputs))


def test_both_factors_of_a_thin_map_are_quantized():
    model = tiny.model("bert")
    path = "encoder.layer.1.intermediate.dense"
    Editor(model).apply(
        Factorize(ranks={path: 4}), {f"{path}.up.weight": random(48, 4), f"{path}.down.weight": random(4, 32)}
    )
    inputs = tiny.batch(model)
    editor, it = acting(model, weights="int4")
    fake = tiny.outputs(model, inputs)
    packed = finish(editor, it)
    near(tiny.outputs(packed, inputs), fake)
    assert isinstance(packed.get_submodule(f"{path}.up"), LowBitLinear)
    assert isinstance(packed.get_submodule(f"{path}.down"), LowBitLinear)


# with others


class Mask(nn.Module):
    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.register_buffer("keep", torch.rand(tensor.shape, generator=torch.Generator().manual_seed(1)) < 0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.keep


class Masking(test_during.Acting):
    """Half of the weights are zero."""

    def __init__(self, editor: Editor) -> None:
        self.model = editor.model
        modules = [slot.module for slot in editor.anatomy().linears()]
        self.made = transform(modules, lambda module, tensor: Mask(tensor))

    def bake(self):
        untransform(self.model, self.made, bake=True)


@pytest.mark.parametrize("first", ["mask", "fake_quant"])
@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros(kind, first):
    model = tiny.model("bert")
    inputs, editor = tiny.batch(model), Editor(model)
    begin = {"mask": lambda: Masking(editor), "fake_quant": lambda: FakeQuant(weights=kind).begin(editor, None)}
    acts = [begin[name]() for name in sorted(begin, key=lambda name: name != first)]
    fake = tiny.outputs(model, inputs)
    keep = next(one for one in model.modules() if isinstance(one, Mask)).keep
    packed = finish(editor, *acts)
    near(tiny.outputs(packed, inputs), fake)
    codes = packed.encoder.layer[0].attention.self.query.codes()
    if kind != "binary" or first == "fake_quant":  # one bit has no zero: it comes back unless it is made afterwards
        assert not codes[~keep].any()
    assert codes[keep].any()
    if kind == "binary":
        assert packed.encoder.layer[0].attention.self.query.bits == (1 if first == "mask" else 2)


@pytest.mark.parametrize("steps", ["range", "learned"])
@pytest.mark.parametrize("kind", ["int8", "int4", "ternary"])
@pytest.mark.parametrize("scales", ["row", "matrix"])
def test_cuts_between_training_and_packing_keep_the_codes(kind, steps, scales):
    model = tiny.model("bert")
    inputs = tiny.batch(model)
    editor, it = acting(model, weights=kind, steps=steps, scales=scales, activations="none")
    it.at(1.0)
    it.bake()
    editor.apply(KeepHeads(heads=((0, 2), (1,), (3,))))
    editor.apply(KeepNeurons(neurons=((1, 5, 7), (0,), tuple(range(40)))))
    fake = tiny.outputs(model, inputs)
    it.end(editor)
    torch.testing.assert_close(tiny.outputs(model, inputs), fake, atol=1e-5, rtol=1e-5)


# with ranges of inputs that run


def test_a_running_range_by_hand():
    made = RunningRange()
    x = torch.tensor([-1.0, 0.3, 4.1], requires_grad=True)
    assert torch.equal(made(x), rounded_input(x)), "none has been seen"
    made.follow(x)
    made.follow(torch.tensor([2.0, 14.1]))  # holds zero: 0 to 14.1
    assert [made.low.item(), made.high.item()] == pytest.approx([-0.9, 0.9 * 4.1 + 1.41])
    scale, zero = made.grid()
    assert (scale.item(), zero.item()) == (pytest.approx(6 / 255), 38)  # 0.9 / (6 / 255) = 38.25
    y = made(torch.tensor([-9.0, 0.0, 0.3, 9.0]))
    assert y.tolist() == pytest.approx([(code - 38) * 6 / 255 for code in (0, 38, 51, 255)])
    made(x).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0], "what is clipped has no gradient"


@pytest.mark.parametrize("variant", FAMILIES)
def test_running_ranges_become_fixed_ones(variant, tmp_path: Path):
    model = tiny.model(variant)
    inputs, plain = tiny.batch(model), tiny.model(variant).state_dict().keys()
    editor, it = acting(model, activations="running", start=0.5)
    model.train()
    tiny.outputs(model, inputs)  # ranges are followed before anything is rounded
    model.eval()
    first = next(iter(it.ranges.values()))
    low = first.low.clone()
    assert not torch.equal(low, first.high)
    it.at(0.5)
    fake = tiny.outputs(model, inputs)
    assert torch.equal(first.low, low), "nothing moves in evaluation"
    packed = finish(editor, it)
    near(tiny.outputs(packed, inputs), fake)
    found = [slot.module for slot in editor.anatomy().linears()]
    assert found
    assert all(isinstance(one, StaticInt8Linear) for one in found)
    assert found[0].input_scale == first.grid()[0]
    lissom.save(packed, tmp_path / "out")
    assert torch.equal(tiny.outputs(lissom.load(tmp_path / "out"), inputs), tiny.outputs(packed, inputs))
    other = tiny.model(variant)
    _, again = acting(other, activations="running")
    again.remove()
    assert other.state_dict().keys() == plain


def test_shared_layers_share_a_running_range(tmp_path: Path):
    model = tiny.model("bert")
    Editor(model).apply(ShareLayers(source=(0, 0, 0)))
    editor, it = acting(model, activations="running")
    inputs = tiny.batch(model.train())
    tiny.outputs(model, inputs)
    fake = tiny.outputs(model.eval(), inputs)
    assert len(set(it.ranges.values())) == 6
    packed = finish(editor, it)
    near(tiny.outputs(packed, inputs), fake)
    lissom.save(packed, tmp_path / "out")
    assert torch.equal(tiny.outputs(lissom.load(tmp_path / "out"), inputs), tiny.outputs(packed, inputs))


def test_running_ranges_want_int8_weights():
    with pytest.raises(LissomError, match=r"LSM-319 fake_quant\.activations: fixed ranges .* not with ternary"):
        FakeQuant(weights="ternary", activations="running").check(Editor(tiny.model("bert")).anatomy(), None)


# in a run


def run(work: Path, *during: FakeQuant, **changes):
    torch.set_num_threads(1)
    model = changes.pop("model", None) or tiny.model("bert", CLASSIFIER)
    options = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "work": work, "during": during, **changes}
    return model, train(model, options.pop("rows", None) or rows(), test_during.TASK, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activations": "running"},
        {"weights": "int4", "steps": "learned", "start": 0.35, "noise": Ramp(start=0.2, end=1.0)},
    ],
)
def test_an_interrupted_run_continues_to_the_same_bytes(tmp_path: Path, options):
    data, during = rows(), FakeQuant(**options)
    whole, _ = run(tmp_path / "whole", during, rows=data, save_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", during, rows=data, save_seconds=0, report=test_during.Stop())
    resumed, done = run(tmp_path / "cut", during, rows=data, save_seconds=0)
    assert done.resumed == 6
    assert test_during.equal(whole.state_dict(), resumed.state_dict())
    assert any(isinstance(one, Int8Linear) for one in resumed.modules())


def test_trained_steps_move_and_begin_with_the_weights_of_their_start():
    model = tiny.model("bert")
    _, it = acting(model, weights="ternary", steps="learned", start=0.5)
    module, quantizer = next(iter(it.quantizers.items()))
    inputs = tiny.batch(model)
    assert torch.equal(tiny.outputs(model, inputs), tiny.outputs(tiny.model("bert"), inputs)), "nothing is rounded yet"
    assert not it.settled
    with torch.no_grad():
        original(module).mul_(3)
    it.at(0.4)
    torch.testing.assert_close(quantizer.step.detach(), 2 * original(module).abs().mean())
    it.at(0.5)
    assert it.settled
    with torch.no_grad():
        quantizer.step.mul_(2)
    it.at(0.6)
    torch.testing.assert_close(quantizer.step.detach(), 4 * original(module).abs().mean())
    assert it.groups()[0]["params"][0] is quantizer.step
    it.remove()
    it.remove()
    assert model.state_dict().keys() == tiny.model("bert").state_dict().keys()


def test_autocast_rounds_in_float32():
    model = tiny.model("bert")
    _, it = acting(model)
    module = next(iter(it.quantizers))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module.weight, Int8Linear.from_weight(original(module)).dense())
        model(**tiny.batch(model)).last_hidden_state.float().sum().backward()
    assert original(module).grad.dtype == torch.float32
    assert torch.isfinite(original(module).grad).all()


def test_training_makes_up_for_one_bit(tmp_path: Path):
    """A model that was trained with one bit a weight answers better than one that was rounded to it afterwards."""
    data, options = rows(), {"epochs": 10, "learning_rate": 2e-3}
    after, _ = run(tmp_path / "after", model=tiny.model("gpt2", CLASSIFIER), rows=data, **options)
    finish(*acting(after, weights="binary"))
    binary = FakeQuant(weights="binary")
    trained_so, _ = run(tmp_path / "so", binary, model=tiny.model("gpt2", CLASSIFIER), rows=data, **options)

    def loss(model: PreTrainedModel) -> float:
        with torch.no_grad():
            found = [
                model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss
                for row in data
            ]
        return float(torch.stack(found).mean())

    assert loss(trained_so) < 0.7 * loss(after)


def test_a_recipe_step_packs(tmp_path: Path):
    editor = Editor(tiny.model("bert", CLASSIFIER, num_labels=2, vocab_size=14))
    step = Tune(epochs=1, learn={"task": {}}, while_=({"fake_quant": {"weights": "int8", "activations": "int8"}},))
    assert step.reached().name == "BITS"
    step.apply(editor, Given(data=topics(), tokenizer=tokenizer(), work=tmp_path))
    assert isinstance(editor.record.edits[0], Pack)
    assert "VNNI" in step.words()


@pytest.mark.parametrize("kind", ["int8", "binary"])
def test_a_preview_has_the_structure_of_the_result(kind):
    editor = Editor(tiny.model("bert", CLASSIFIER))
    step = Tune(while_=({"fake_quant": {"weights": kind, "activations": "none"}},))
    step.preview(editor, Given())
    assert {type(one) for one in editor.record.edits} == ({Pack, PackBits} if kind == "int8" else {PackBits})
    assert all(one.bits == (8 if kind == "int8" else 1) for one in editor.record.edits if isinstance(one, PackBits))


def test_packed_layers_are_refused():
    for kind in KINDS:
        packed = finish(*acting(tiny.model("bert", CLASSIFIER), weights=kind))
        step = Tune(learn={"task": {}}, while_=({"fake_quant": {}},))
        with pytest.raises(LissomError, match=r"LSM-713 bert\.encoder\.layer\.0.*has none"):
            step.check(Editor(packed).anatomy(), Given(tokenizer=tokenizer()))
        Int8(embeddings=False).apply(Editor(packed), Given())
        assert len(Editor(packed).record.edits) == 1, "there is nothing left to pack"


def test_binary_has_no_step_to_train():
    with pytest.raises(LissomError, match=r"LSM-319 fake_quant\.steps: binary weights have no step to train"):
        FakeQuant(weights="binary", steps="learned").check(Editor(tiny.model("bert")).anatomy(), None)


def test_weights_that_are_not_finite_are_refused():
    model = tiny.model("bert")
    editor, it = acting(model)
    with torch.no_grad():
        original(model.encoder.layer[1].intermediate.dense)[0, 0] = torch.nan
    with pytest.raises(LissomError, match=r"LSM-901 encoder\.layer\.1\.intermediate\.dense: .*NaN"):
        finish(editor, it)


# exported


def test_the_graph_of_running_ranges_answers_as_torch(tmp_path: Path):
    model = tiny.model("bert", CLASSIFIER, num_hidden_layers=1)
    editor, it = acting(model, activations="running")
    model.train()
    tiny.outputs(model, tiny.batch(model))
    model.eval()
    finish(editor, it)
    artifact = export(model, "onnx", tmp_path / "out")
    assert artifact.parity["cosine"] >= 0.9999


@pytest.mark.parametrize(
    ("variant", "kind", "activations"),
    [("bert", "ternary", "int8"), ("bert", "binary", "none"), ("gpt2", "int4", "int8"), ("llama", "ternary", "int8")],
)
def test_the_graph_answers_as_torch(variant, kind, activations, tmp_path: Path):
    model = tiny.model(variant, CLASSIFIER, num_hidden_layers=1)
    finish(*acting(model, weights=kind, activations=activations))
    before = copy.deepcopy(model.state_dict())
    artifact = export(model, "onnx", tmp_path / "out")
    found = operators(only_graph(artifact.folder))
    layers = sum(isinstance(one, LowBitLinear) for one in model.modules())
    assert layers
    assert found["MatMulInteger"] == (layers if activations == "int8" else 0)
    figures = artifact.parity
    assert figures["cosine"] > 0.999
    if activations == "int8":
        assert figures["unrounded_largest_difference"] < 1e-4
    else:
        assert figures["largest_difference"] < 1e-4
    assert test_during.equal(before, model.state_dict()), "the model keeps its few bits"
