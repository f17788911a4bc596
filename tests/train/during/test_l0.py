"""Gates: their distribution, the expected size, the constraint, and that closed ones are gone."""

import copy
import math

import pytest
import torch

from lissom.anatomy import dissect
from lissom.edits import Editor, ShareLayers
from lissom.errors import LissomError
from lissom.methods import METHODS, Given
from lissom.train.during import DURING
from lissom.train.during.l0 import L0
from lissom.train.during.units import parts
from tests import tiny
from tests.train.during.families import CLASSIFIER
from tests.train.during.running import FAMILIES, Stop, reloaded, run, same_bytes, widths

ALL = ("heads", "neurons", "layers")


def begin(family="bert", model=None, **options):
    model = model or tiny.model(family, CLASSIFIER)
    return model, L0(**options).begin(Editor(model), None)


def set_gates(acting, values):
    with torch.no_grad():
        acting.gates.a.copy_(torch.as_tensor(values, dtype=torch.float32).expand_as(acting.gates.a))


def size(model):
    """Parameters of heads and neurons: all linear maps in the blocks but the biases of o and down."""
    slots = {slot.path: slot.module for slot in dissect(model).linears()}
    blocks = [block for stack in dissect(model).stacks for block in stack.blocks]
    ends = {slot.path for block in blocks for slot in (block.attention.o, block.ffn.down)}
    ends |= {block.cross.o.path for block in blocks if block.cross is not None}
    found = {}
    for path, module in slots.items():
        found |= {
            id(one): one.numel() for name, one in module.named_parameters() if path not in ends or "bias" not in name
        }
    return sum(found.values())


def test_a_drawn_gate_is_hard_concrete():
    _, acting = begin(of=("heads",))
    gates = acting.gates.train()
    set_gates(acting, 0.5)
    gates.noise[:3] = torch.tensor([0.5, 0.01, 0.99])
    wanted = []
    for u in (0.5, 0.01, 0.99):
        s = 1 / (1 + math.exp(-(math.log(u) - math.log(1 - u) + 0.5) / (2 / 3)))
        wanted.append(min(1.0, max(0.0, s * 1.2 - 0.1)))
    torch.testing.assert_close(gates.z(slice(0, 3)), torch.tensor(wanted))
    assert wanted[1] == 0.0
    assert wanted[2] == 1.0


def test_the_probability_of_an_open_gate_is_that_of_its_draws():
    _, acting = begin(of=("neurons",))
    gates = acting.gates.train()
    set_gates(acting, -1.0)
    torch.manual_seed(0)
    opened = 0
    for _ in range(200):
        acting.before(None, {})
        opened += int((gates.z(slice(None)) > 0).sum())
    likely = 1 / (1 + math.exp(1.0 + 2 / 3 * math.log(0.1 / 1.1)))
    torch.testing.assert_close(gates.likely(), torch.full_like(gates.a, likely))
    assert opened / (200 * len(gates.a)) == pytest.approx(likely, abs=0.01)


@pytest.mark.parametrize("penalty", [None, 0.1])
def test_a_final_gate_has_the_value_of_the_middle(penalty):
    _, acting = begin(of=("heads",), penalty=penalty)
    set_gates(acting, torch.linspace(-4, 4, 12))
    acting.at(0.0)
    middle = [1 / (1 + math.exp(-a)) for a in torch.linspace(-4, 4, 12).tolist()]
    wanted = [min(1.0, max(0.0 if penalty else s, 1.2 * s - 0.1)) for s in middle]
    torch.testing.assert_close(acting.gates.eval().z(slice(None)).detach(), torch.tensor(wanted))
    assert (wanted[0] > 0) == (penalty is None), "with a target only what it closes is zero"


def test_the_expected_size_by_hand():
    _, acting = begin("llama", of=ALL)
    gates = acting.gates
    # a key/value head: 2 of 4 query heads and its keys and values in, o out, width 8; a neuron: up, gate, down
    head, neuron = (2 + 1 + 1 + 2) * 8 * 32, 3 * 32
    assert len(gates.a) == 3 * (2 + 1 + 48 + 1)
    open_ = torch.ones_like(gates.a)
    assert gates.removed(open_).item() == pytest.approx(0.0, abs=1e-6)
    first, attention = slice(0, 2), 2  # of the first block; the gates of all attention layers come first
    neurons, ffn = slice(9, 57), 57
    open_[first], open_[attention] = torch.tensor([0.5, 1.0]), 0.8
    open_[neurons], open_[ffn] = 0.25, 0.5
    whole = 3 * (2 * head + 48 * neuron)
    kept = 0.8 * 1.5 * head + 0.5 * 0.25 * 48 * neuron + 2 * (2 * head + 48 * neuron)
    assert gates.removed(open_).item() == pytest.approx(1 - kept / whole, abs=1e-6)
    open_[attention], open_[ffn] = 0.0, 0.0
    kept = head + neuron + 2 * (2 * head + 48 * neuron)
    assert gates.removed(open_).item() == pytest.approx(1 - kept / whole, abs=1e-6), "one of each stays"


@pytest.mark.parametrize("family", FAMILIES)
def test_all_that_gates_reach_is_what_the_blocks_have(family):
    model = tiny.model(family, CLASSIFIER)
    before = size(model)
    _, acting = begin(model=model, penalty=0.1)
    set_gates(acting, torch.arange(len(acting.gates.a)) % 2 * 8.0 - 4.0)
    open_ = (acting.gates.a > 0).float()
    said = acting.gates.removed(open_).item()
    acting.bake()
    acting.end(Editor(model))
    assert 1 - size(model) / before == pytest.approx(said, abs=1e-6)


def test_the_constraint_and_its_multipliers():
    _, acting = begin(sparsity=0.6, warmup=0.5, cooldown=0.2, learning_rate=0.1)
    acting.at(0.25)
    short = float(acting.gates.removed(acting.gates.likely()).detach()) - 0.3
    with torch.no_grad():
        acting.gates.multipliers.copy_(torch.tensor([0.7, 2.0]))
    penalty = acting.penalty()
    assert penalty.item() == pytest.approx(0.7 * short + 2.0 * short**2)
    penalty.backward()
    optimizer = torch.optim.SGD(acting.groups(), lr=0.1)
    optimizer.step()
    wanted = torch.tensor([0.7 + 0.1 * short, 2.0 + 0.1 * short**2])
    torch.testing.assert_close(acting.gates.multipliers.detach(), wanted, msg="gradient ascent")
    assert short < 0
    gates, multipliers = acting.groups()
    assert (gates.get("maximize"), multipliers["maximize"], gates["lr"]) == (None, True, 0.1)
    acting.at(0.9)
    assert acting.penalty() is None, "the gates stand still"


def test_penalty_alone_counts_open_gates():
    _, acting = begin(of=("heads",), penalty=0.3)
    assert acting.penalty().item() == pytest.approx(0.3 * acting.gates.likely().sum().item())
    _, acting = begin(of=("heads",), gates="l1", penalty=0.3)
    set_gates(acting, -0.5)
    assert acting.penalty().item() == pytest.approx(0.3 * 0.5 * 12)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gate_multiplies_what_its_part_gives(family):
    """Against hooks on the inputs of o and down, and on their outputs for layers."""
    model, plain = (tiny.model(family, CLASSIFIER) for _ in range(2))
    _, acting = begin(model=model, of=ALL)
    acting.at(0.0)
    generator = torch.Generator().manual_seed(0)
    set_gates(acting, torch.rand(acting.gates.a.shape, generator=generator) * 3 - 1)
    z = acting.gates.eval().z(slice(None)).detach()
    at = 0
    for places in _places(plain):
        readers, units, tied = places
        inner, at = z[at : at + units], at + units
        layer = None if tied else z[at]
        at += layer is not None
        for slot in readers:
            size = slot.in_features // units

            def before(_module, args, inner=inner, size=size):
                return (args[0] * inner.repeat_interleave(size),)

            def after(_module, _args, out, layer=layer):
                return out if layer is None else out * layer

            slot.module.register_forward_pre_hook(before)
            slot.module.register_forward_hook(after)
    assert at == len(z)
    batch = tiny.batch(model)
    torch.testing.assert_close(tiny.outputs(model, batch), tiny.outputs(plain, batch), rtol=1e-3, atol=1e-4)


def _places(model):
    """(readers, units, tied) in the order of gates, found without the code under test."""
    for stack in dissect(model).stacks:
        for name in ("attention", "cross"):
            found = [one for block in stack.blocks if (one := getattr(block, name)) is not None]
            if found and found[0].tied:
                yield [one.o for one in found], found[0].kv_heads, True
            else:
                yield from (([one.o], one.kv_heads, False) for one in found)
        yield from (([block.ffn.down], block.ffn.width, False) for block in stack.blocks)


@pytest.mark.parametrize("family", FAMILIES)
def test_closed_gates_are_gone_and_open_ones_folded_in(tmp_path, family):
    model, acting = begin(family, sparsity=0.5)
    generator = torch.Generator().manual_seed(0)
    set_gates(acting, torch.randn(acting.gates.a.shape, generator=generator))
    acting.at(1.0)
    model.eval()
    gated = tiny.outputs(model, tiny.batch(model))
    acting.bake()
    torch.testing.assert_close(tiny.outputs(model, tiny.batch(model)), gated)
    acting.end(Editor(model))
    torch.testing.assert_close(tiny.outputs(model, tiny.batch(model)), gated, rtol=1e-3, atol=1e-4)
    assert not [name for name, _ in model.named_modules() if "gates" in name]
    reloaded(model, tmp_path / "saved")


@pytest.mark.parametrize("of", [("heads", "neurons"), ALL, ("neurons",)], ids="+".join)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_promised_share_is_removed(tmp_path, family, of):
    before = tiny.model(family, CLASSIFIER)
    model = run(tmp_path, [L0(of=of, sparsity=0.6)], family)
    if of == ("neurons",):
        assert sum(widths(model)[1]) == pytest.approx(0.4 * sum(widths(before)[1]), abs=1)
    else:
        assert 1 - size(model) / size(before) >= 0.6 - 1e-6
    assert all(one >= 1 for counts in widths(model) for one in counts)
    reloaded(model, tmp_path / "saved")


def test_the_multipliers_lead_to_the_target(tmp_path, monkeypatch):
    made = []
    before = L0.begin
    monkeypatch.setattr(L0, "begin", lambda *args: made.append(before(*args)) or made[-1])
    run(tmp_path, [L0(sparsity=0.6, learning_rate=0.3)], epochs=12)
    gates = made[0].gates
    assert float(gates.removed(gates.likely()).detach()) == pytest.approx(0.6, abs=0.2), "from 0.03 at the start"
    assert gates.multipliers[1] > 0


def test_the_target_is_met_within_one_unit():
    _, acting = begin(sparsity=0.5)
    set_gates(acting, torch.linspace(-1, 3, len(acting.gates.a)))
    acting.at(1.0)
    removed = float(acting.gates.removed(acting.gates.open.float()))
    assert 0.5 <= removed + 1e-6 <= 0.5 + float(acting.gates.cost.max()) + 1e-6
    assert torch.equal(acting.gates.z(slice(None)) > 0, acting.gates.open)
    closed = ~acting.gates.open
    assert acting.gates.a[closed].max() < acting.gates.a[~closed].min()


def test_a_layer_whose_gate_closes_adds_nothing():
    model, acting = begin(of=("layers",), sparsity=0.25)
    set_gates(acting, torch.tensor([3.0, -3.0, 3.0, 3.0, 3.0, -3.5]))  # attention of three blocks, then their neurons
    acting.at(1.0)
    acting.bake()
    acting.end(Editor(model))
    assert widths(model) == ([4, 1, 4], [48, 48, 1])
    blocks = dissect(model).stacks[0].blocks
    for slot in (blocks[1].attention.o, blocks[2].ffn.down):
        assert not slot.module.weight.any()
        assert not slot.module.bias.any()


def test_heads_that_share_a_position_bias_close_in_all_layers():
    model, acting = begin("t5", of=("heads",), penalty=0.1)
    assert len(acting.gates.a) == 3 * 4  # encoder, decoder, and its attention to the encoder
    set_gates(acting, torch.tensor([3.0, -3.0, 3.0, -3.0, *[3.0] * 8]))
    acting.at(0.0)
    acting.bake()
    acting.end(Editor(model))
    assert widths(model)[0] == [2, 2, 2, 4, 4]


def test_a_high_penalty_closes_gates(tmp_path):
    model = run(tmp_path, [L0(of=("heads",), penalty=10.0, learning_rate=1.5)])
    assert widths(model) == ([1, 1, 1], [48, 48, 48])


def test_plain_factors_go_by_size_and_are_folded_in():
    model, acting = begin(of=("heads",), sparsity=0.5, gates="l1")
    fresh = tiny.model("bert", CLASSIFIER)
    assert torch.equal(tiny.outputs(model, tiny.batch(model)), tiny.outputs(fresh, tiny.batch(fresh)))
    set_gates(acting, torch.tensor([0.1, -0.9, 0.8, 0.2] * 3))
    acting.at(1.0)
    acting.bake()
    o, plain = (one.bert.encoder.layer[0].attention.output.dense.weight for one in (model, fresh))
    wanted = torch.tensor([0.0, -0.9, 0.8, 0.0]).repeat_interleave(8)
    torch.testing.assert_close(o.detach(), (plain * wanted).detach())
    acting.end(Editor(model))
    assert widths(model)[0] == [2, 2, 2]


def test_gates_are_trained_alone(tmp_path):
    fresh = tiny.model("bert", CLASSIFIER)
    model = run(tmp_path, [L0(of=("neurons",), sparsity=0.25, only_gates=True)])
    for name in ("classifier.weight", "bert.encoder.layer.0.attention.output.dense.weight"):
        assert torch.equal(model.get_parameter(name), fresh.get_parameter(name))
    assert all(one.requires_grad for one in model.parameters())
    assert sum(widths(model)[1]) == 108


def test_layers_that_share_have_one_gate_and_low_rank_maps_theirs(tmp_path):
    shared, low = (tiny.model("bert", CLASSIFIER) for _ in range(2))
    Editor(shared).apply(ShareLayers(stack="encoder", source=(0, 0, 2)))
    METHODS["svd"](ratio=0.5).apply(Editor(low), Given())
    for number, model in enumerate((shared, low)):
        before, after = (
            sum(one.cost * one.units for one in parts(dissect(it)))
            for it in (copy.deepcopy(model), run(tmp_path, [L0(of=ALL, sparsity=0.5)], model=model))
        )
        assert 1 - after / before >= 0.5 - 1e-6
        heads, neurons = widths(model)
        if model is shared:
            assert (heads[0], neurons[0]) == (heads[1], neurons[1])
        reloaded(model, tmp_path / str(number))


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_closed_ranks_are_gone_and_open_ones_folded_in(tmp_path, family, shares):
    model = tiny.model(family, CLASSIFIER)
    METHODS["svd"](ratio=0.9).apply(Editor(model), Given())
    if shares and family == "bert":
        Editor(model).apply(ShareLayers(stack="encoder", source=(0, 0, 2)))
    before = thin(model)
    model = run(tmp_path, [L0(of=("ranks",), sparsity=0.5)], model=model)
    ranks = [slot.module.rank for slot in dissect(model).linears()]
    assert 0.45 * before < thin(model) <= 0.5 * before
    assert min(ranks) >= 1
    if shares and family == "bert":
        assert ranks[:6] == ranks[6:12]
    reloaded(model, tmp_path / "saved")


def thin(model):
    """Numbers of the thin maps, shared ones once."""
    parts = [one for slot in dissect(model).linears() for one in (slot.module.up.weight, slot.module.down.weight)]
    return sum(one.numel() for one in {id(one): one for one in parts}.values())


def test_a_rank_costs_what_it_holds_and_its_gate_multiplies_it():
    model = tiny.model("bert", CLASSIFIER)
    METHODS["svd"](ratio=0.9).apply(Editor(model), Given())
    _, acting = begin(model=model, of=("ranks",))
    slot = next(dissect(model).linears())
    assert float(acting.gates.cost[0]) == pytest.approx(64 / thin(model))
    whole = slot.module.up.parametrizations.weight.original.clone()
    set_gates(acting, 0.0)
    acting.gates.still = True
    torch.testing.assert_close(slot.module.up.weight, 0.5 * whole)


def test_ranks_of_dense_maps_are_refused_when_it_begins():
    L0(of=("ranks",)).check(dissect(tiny.model("bert")), None)
    with pytest.raises(LissomError, match="LSM-715 while: of: ranks finds nothing in bert that a gate could remove"):
        begin(of=("ranks",))


def test_gates_before_fake_quantization(tmp_path):
    model = run(tmp_path, [L0(sparsity=0.5), DURING["fake_quant"]()])
    assert model.bert.encoder.layer[0].attention.output.dense.weight.dtype == torch.int8
    assert sum(widths(model)[1]) < 3 * 48
    reloaded(model, tmp_path / "saved")


def test_what_a_plan_shows_has_the_promised_size():
    model = tiny.model("bert", CLASSIFIER)
    before = size(model)
    METHODS["tune"](**{"while_": ({"l0": {"sparsity": 0.5}},)}).preview(Editor(model), Given())
    heads, neurons = widths(model)
    assert 0.5 - 1e-6 <= 1 - size(model) / before < 0.55
    assert max(heads) < 4, "with nothing learnt every layer loses some"
    assert max(neurons) - min(neurons) <= 2


@pytest.mark.parametrize(
    "options", [{"of": ALL}, {"gates": "l1"}, {"penalty": 0.1, "cooldown": 0.0}], ids=["sparsity", "l1", "penalty"]
)
def test_an_interrupted_run_continues_to_the_same_bytes(tmp_path, options):
    during = [L0(**options)]
    whole = run(tmp_path / "whole", during)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", during, report=Stop(), save_seconds=0)
    assert same_bytes(whole, run(tmp_path / "cut", during, save_seconds=0))


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        (
            "bert",
            {"of": ("heads",), "sparsity": 0.8},
            "LSM-318 while: sparsity 0.8 is more than one head and one neuron a layer leave, 0.75. "
            "Lower it, or gate more kinds of parts.",
        ),
        ("bert", {"warmup": 0.9}, "LSM-318 while: warmup 0.9 and cooldown 0.2 are more than the whole run."),
    ],
)
def test_what_cannot_be(family, options, message):
    with pytest.raises(LissomError) as caught:
        L0(**options).check(dissect(tiny.model(family)), None)
    assert str(caught.value).startswith(message)


def test_nothing_is_left_in_the_model():
    fresh = tiny.model("bert", CLASSIFIER)
    model, acting = begin(of=ALL, only_gates=True)
    assert not model.classifier.weight.requires_grad
    acting.remove()
    acting.remove()
    assert [type(one) for one in model.modules()] == [type(one) for one in fresh.modules()]
    assert same_bytes(model, fresh)
    assert all(one.requires_grad for one in model.parameters())
