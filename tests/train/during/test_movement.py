"""Movement pruning: scores follow the formula, masks the scores, and what is promised is gone at the end."""

import copy

import pytest
import torch
from torch import nn

from lissom.anatomy import dissect
from lissom.edits import Editor, Record, ShareLayers
from lissom.errors import LissomError
from lissom.methods import METHODS, Given
from lissom.train.during import DURING
from lissom.train.during.masks import Along, Squares, same
from lissom.train.during.movement import Mask, Movement, Scores
from lissom.train.during.weights import transform
from tests import tiny
from tests.train.during.families import CLASSIFIER
from tests.train.during.running import FAMILIES, Stop, reloaded, run, same_bytes, weights, widths, zeros

W, X, C = torch.tensor([[1.0, -2.0], [3.0, 0.5]]), torch.tensor([2.0, 1.0]), torch.tensor([1.0, -1.0])


def gradients(spread, shape, keep):
    """Those of the scores and of the weight of y = w' x under L = c · y, so that dL/dw' = c xᵀ."""
    linear = nn.Linear(2, 2, bias=False)
    linear.weight = nn.Parameter(W.clone())
    scores = Scores(shape, torch.device("cpu"))
    scores.keep.copy_(torch.tensor(keep))
    transform([linear], lambda module, tensor: Mask(scores, spread))
    (linear(X) @ C).backward()
    return scores.scores.grad, linear.parametrizations.weight.original.grad


def test_the_gradient_of_a_score_is_that_of_the_weight_times_the_weight():
    keep = [[True, False], [False, True]]
    scores, weight = gradients(same, (2, 2), keep)
    outer = torch.tensor([[2.0, 1.0], [-2.0, -1.0]])  # c xᵀ
    assert torch.equal(scores, outer * W), "removed weights have one too, and may come back"
    assert torch.equal(weight, outer * torch.tensor(keep))


def test_a_weight_on_its_way_to_zero_loses_score():
    scores, weight = gradients(same, (2, 2), [[True, True], [True, True]])
    shrinks = (weight * W) > 0  # a step of gradient descent makes |w| smaller
    assert torch.equal(scores > 0, shrinks), "and makes S smaller where its gradient is positive"


def test_a_square_and_a_row_sum_the_scores_of_their_weights():
    squares, _ = gradients(Squares(2, 2, 2), (1, 1), [[True]])
    assert squares.item() == (2 * 1 + 1 * -2 + -2 * 3 + -1 * 0.5)
    rows, _ = gradients(Along(torch.tensor([0, 1]), 0, W.shape), (2,), [True, False])
    assert rows.tolist() == [2 * 1 + 1 * -2, -2 * 3 + -1 * 0.5]


def begin(model=None, **options):
    model = model or tiny.model("bert", CLASSIFIER)
    return model, Movement(**options).begin(Editor(model), None)


def set_scores(acting, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for one in acting.scores:
            one.scores.copy_(torch.randn(one.scores.shape, generator=generator))


@pytest.mark.parametrize("across", ["matrix", "model"])
def test_the_highest_scores_stay(across):
    _, acting = begin(sparsity=0.75, across=across)
    set_scores(acting)
    acting.at(1.0)
    scores, keep = ([getattr(one, name).flatten() for one in acting.scores] for name in ("scores", "keep"))
    if across == "model":
        scores, keep = [torch.cat(scores)], [torch.cat(keep)]
    for values, kept in zip(scores, keep, strict=True):
        best = values.topk(len(values) // 4).indices
        assert sorted(best.tolist()) == kept.nonzero().flatten().tolist()


def test_the_schedule_decides_how_many():
    model, acting = begin(sparsity=0.8, warmup=0.2, cooldown=0.3, refreshes=1000)
    set_scores(acting)
    for progress, share in ((0.0, 0.0), (0.2, 0.0), (0.45, 0.7), (0.7, 0.8), (1.0, 0.8)):
        acting.at(progress)
        for module in (slot.module for slot in dissect(model).linears()):
            assert int((module.weight == 0).sum()) == int(share * module.weight.numel() + 0.5)
        assert acting.settled == (progress >= 0.7)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("soft", [False, True])
def test_the_promised_share_is_zero_also_after_a_reload(tmp_path, family, soft):
    """80 % of the weights of an encoder, from the hard and from the soft form."""
    model = run(tmp_path, [Movement(sparsity=0.8, soft=soft)], family)
    gone, count = zeros(model)
    each = [int(0.8 * one.numel() + 0.5) for one in weights(model)]
    assert gone == (int(0.8 * count + 0.5) if soft else sum(each))
    if not soft:
        assert [int((one == 0).sum()) for one in weights(model)] == each
    assert Record.of(model).edits == ()
    assert zeros(reloaded(model, tmp_path / "saved")) == (gone, count)


def test_the_soft_form_removes_by_threshold_then_exactly():
    model, acting = begin(sparsity=0.5, soft=True, threshold=0.1, penalty=10.0, warmup=0.0, cooldown=0.2)
    with torch.no_grad():
        for one in acting.scores:
            one.scores.fill_(-1.0)
        acting.scores[0].scores.fill_(-2.3)  # sigmoid 0.091
        acting.scores[1].scores.fill_(-2.1)  # sigmoid 0.109
    acting.at(0.4)
    assert int((weights(model)[0] == 0).sum()) == acting.scores[0].scores.numel()
    assert int((weights(model)[1] == 0).sum()) == 0
    ramp = 1 - 0.5**3
    sizes = [one.scores.numel() for one in acting.scores]
    mean = sum(n * torch.sigmoid(one.scores.flatten()[0]) for n, one in zip(sizes, acting.scores, strict=True))
    torch.testing.assert_close(acting.penalty(), 10.0 * ramp * mean / sum(sizes))
    acting.at(0.8)
    gone, count = zeros(model)
    assert gone == count // 2
    assert acting.penalty() is None


def test_the_soft_form_follows_the_schedule_by_learning(tmp_path, monkeypatch):
    seen = []
    before = Movement.begin

    def begin(self, editor, teacher):
        acting = before(self, editor, teacher)
        moved = acting.at

        def at(progress):
            moved(progress)
            seen.append((progress, acting.schedule.share, zeros(acting.model)[0] / zeros(acting.model)[1]))

        acting.at = at
        return acting

    monkeypatch.setattr(Movement, "begin", begin)
    run(tmp_path, [Movement(sparsity=0.8, soft=True, learning_rate=0.5)], epochs=12)
    late = [(share, gone) for progress, share, gone in seen if 0.6 < progress < 0.8]
    assert len(late) > 5
    assert all(gone == pytest.approx(share, abs=0.1) for share, gone in late)


def test_the_soft_penalty_rests_while_enough_is_removed():
    _, acting = begin(sparsity=0.5, soft=True, warmup=0.5, cooldown=0.2)
    acting.at(0.3)
    assert acting.penalty() is None, "nothing is to be removed yet"
    acting.at(0.79)
    assert acting.penalty() is not None
    with torch.no_grad():
        for one in acting.scores:
            one.scores.fill_(-5.0)
    assert acting.penalty() is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("across", ["matrix", "model"])
def test_heads_and_neurons_are_really_fewer(tmp_path, family, across):
    before = widths(tiny.model(family, CLASSIFIER))
    during = Movement(sparsity=0.5, of="heads_and_neurons", across=across, cooldown=0.4)
    model = run(tmp_path, [during], family)
    after = widths(model)
    assert all(1 <= now <= then for pair in zip(before, after, strict=True) for then, now in zip(*pair, strict=True))
    assert sum(after[1]) < sum(before[1])
    if across == "matrix":
        assert after == tuple([n // 2 for n in one] for one in before)
    reloaded(model, tmp_path / "saved")


@pytest.mark.parametrize("family", ["bert", "gpt2", "modernbert", "t5"])
def test_blocks_leave_squares_in_attention_and_fewer_neurons(tmp_path, family):
    before = widths(tiny.model(family, CLASSIFIER))[1]
    model = run(tmp_path, [Movement(sparsity=0.5, of="blocks", block=4)], family)
    assert widths(model)[1] == [n // 2 for n in before]
    o = dissect(model).stacks[0].blocks[0].attention.o.module.weight.detach()
    squares = (o == 0).reshape(o.shape[0] // 4, 4, o.shape[1] // 4, 4).transpose(1, 2).reshape(-1, 16)
    assert set(squares.sum(1).tolist()) == {0, 16}
    reloaded(model, tmp_path / "saved")


def test_blocks_that_empty_a_head_remove_it():
    model, acting = begin(sparsity=0.5, of="blocks", block=8)
    with torch.no_grad():
        for one in acting.scores:
            if one.scores.dim() == 2:
                one.scores[:2] = -1.0  # the outputs of heads 0 and 1, in q, k and v
    acting.at(1.0)
    acting.bake()
    before = tiny.outputs(model, tiny.batch(model))
    editor = Editor(model)
    acting.end(editor)
    assert widths(model) == ([2, 2, 2], [24, 24, 24])
    torch.testing.assert_close(tiny.outputs(model, tiny.batch(model)), before, rtol=1e-4, atol=1e-4)


def test_one_head_stays_where_all_score_badly():
    _, acting = begin(sparsity=0.9, of="heads_and_neurons", across="model")
    with torch.no_grad():
        for one in acting.scores:
            one.scores[1] = 1.0
        acting.scores[0].scores -= 100
    acting.at(1.0)
    assert acting.scores[0].keep.tolist() == [False, True, False, False]


def test_layers_that_share_lose_the_same_and_low_rank_maps_their_factors(tmp_path):
    shared, low = (tiny.model("bert", CLASSIFIER) for _ in range(2))
    Editor(shared).apply(ShareLayers(stack="encoder", source=(0, 0, 2)))
    METHODS["svd"](ratio=0.5).apply(Editor(low), Given())
    for number, model in enumerate((shared, low)):
        run(tmp_path, [Movement(sparsity=0.5)], model=model)
        assert all(int((one == 0).sum()) == int(one.numel() / 2 + 0.5) for one in weights(model))
        structured = run(tmp_path, [Movement(sparsity=0.5, of="heads_and_neurons")], model=copy.deepcopy(model))
        assert widths(structured) == ([2, 2, 2], [24, 24, 24])
        reloaded(structured, tmp_path / str(number))


def test_two_masks_on_one_weight(tmp_path):
    model = run(tmp_path, [Movement(sparsity=0.5), Movement(sparsity=0.5, of="heads_and_neurons", cooldown=0.5)])
    assert widths(model) == ([2, 2, 2], [24, 24, 24])
    gone, count = zeros(model)
    assert 0.2 < gone / count < 0.8
    reloaded(model, tmp_path / "saved")


@pytest.mark.parametrize("first", ["movement", "fake_quant"])
def test_masks_and_fake_quantization_on_one_weight(tmp_path, first):
    during = {"movement": Movement(sparsity=0.5), "fake_quant": DURING["fake_quant"]()}
    model = run(tmp_path, [during.pop(first), *during.values()])
    codes = model.bert.encoder.layer[0].attention.self.query.weight
    assert codes.dtype == torch.int8
    assert int((codes == 0).sum()) >= codes.numel() // 2
    reloaded(model, tmp_path / "saved")


@pytest.mark.parametrize(
    "options",
    [{}, {"soft": True, "cooldown": 0.0}, {"of": "blocks", "block": 4, "across": "model"}],
    ids=["hard", "soft", "blocks"],
)
def test_an_interrupted_run_continues_to_the_same_bytes(tmp_path, options):
    during = [Movement(sparsity=0.6, refreshes=4, **options)]
    whole = run(tmp_path / "whole", during)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", during, report=Stop(), save_seconds=0)
    assert same_bytes(whole, run(tmp_path / "cut", during, save_seconds=0))


def test_scores_have_their_own_rate_and_nothing_is_left_of_them():
    model, acting = begin(learning_rate=0.02)
    (group,) = acting.groups()
    assert group["lr"] == 0.02
    assert len(group["params"]) == 18
    names = {name for name, _ in model.named_parameters()}
    assert any("scores" in name for name in names)
    acting.remove()
    acting.remove()
    assert {name for name, _ in model.named_parameters()} == {
        name for name, _ in tiny.model("bert", CLASSIFIER).named_parameters()
    }


def test_what_a_plan_shows_has_the_promised_counts():
    for options, heads in (({"of": "heads_and_neurons"}, 2), ({"of": "blocks", "block": 8}, 4)):
        model = tiny.model("bert", CLASSIFIER)
        tune = METHODS["tune"](**{"while_": ({"movement": {"sparsity": 0.5, **options}},)})
        tune.preview(Editor(model), Given())
        assert widths(model) == ([heads] * 3, [24] * 3)


def test_scores_may_start_by_magnitude():
    """At once, with no step of training, the smallest weights are the ones that go."""
    model = tiny.model("bert", CLASSIFIER)
    before = dissect(model).stacks[0].blocks[0].ffn.up.weight.detach().clone()
    _, acting = begin(model, sparsity=0.25, start="magnitude")
    acting.at(1.0)
    acting.bake()
    after = dissect(model).stacks[0].blocks[0].ffn.up.weight.detach()
    bound = before.abs().flatten().kthvalue(before.numel() // 4).values
    assert torch.equal(after == 0, before.abs() <= bound)


def test_a_start_by_magnitude_is_for_weights():
    with pytest.raises(LissomError, match="LSM-319 while: start: magnitude is for single weights, and of is blocks"):
        Movement(of="blocks", start="magnitude").check(dissect(tiny.model("bert")), None)
