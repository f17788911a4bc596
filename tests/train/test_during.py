"""What the engine promises to whatever acts during training: schedules, penalties, rates, resume, baking, removal."""

from __future__ import annotations

import copy
import dataclasses
from typing import Annotated, ClassVar

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

from lissom.errors import LissomError
from lissom.train.during.base import Acting, During
from lissom.train.during.weights import original, trained, transform, untransform
from lissom.train.objectives import OBJECTIVES
from lissom.train.run import train
from lissom.train.score import Validation
from tests import tiny
from tests.train.tiny_rows import rows

CLASSIFIER = "AutoModelForSequenceClassification"
TASK = {"task": OBJECTIVES["task"]()}


class _Scale(nn.Module):
    """w -> share · w · (1 + s), with s trained."""

    def __init__(self) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.zeros(()))
        self.share = 1.0

    def forward(self, weight: Tensor) -> Tensor:
        return self.share * weight * (1 + self.s)


class _Scaling(Acting):
    def __init__(self, editor, options):
        self.model, self.options = editor.model, options
        self.made = transform([one.module for one in trained(editor.anatomy())], lambda module, tensor: _Scale())
        self.progress: list[float] = []
        self.batches = 0
        self.ended = False

    def at(self, progress):
        self.progress.append(progress)
        for one in self.made:
            one.share = 1 - self.options.less * min(1.0, 2 * progress)

    @property
    def settled(self):
        return self.progress[-1] >= 1.0

    def before(self, engine, inputs):
        self.batches += 1

    def penalty(self):
        return torch.stack([one.s.square() for one in self.made]).sum()

    def groups(self):
        return [{"params": [one.s for one in self.made], "lr": 0.1}]

    def state(self):
        return {"batches": torch.tensor(self.batches)}

    def load(self, state):
        self.batches = int(state["batches"])

    def bake(self):
        untransform(self.model, self.made, bake=True)

    def remove(self):
        untransform(self.model, self.made, bake=False)

    def end(self, editor):
        self.ended = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaling(During):
    """Every weight shrinks by the share `less`."""

    name: ClassVar[str] = "scaling"
    source: ClassVar[str] = "none"
    speed: ClassVar[str] = "no faster"
    order: ClassVar[int] = 70

    less: Annotated[float, Field(ge=0)] = 0.5

    def begin(self, editor, teacher):
        RUNS.append(_Scaling(editor, self))
        return RUNS[-1]


RUNS: list[_Scaling] = []


def run(work, **changes):
    torch.set_num_threads(1)
    model = changes.pop("model", None) or tiny.model("bert", CLASSIFIER)
    options = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "work": work, "during": [Scaling()], **changes}
    return model, train(model, options.pop("rows", None) or rows(), TASK, **options)


def state(model):
    return {name: one.clone() for name, one in model.state_dict().items()}


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_schedules_see_the_start_every_step_and_the_end(tmp_path):
    run(tmp_path)
    assert RUNS[-1].progress == pytest.approx([0.0, *(i / 10 for i in range(1, 11))])
    assert RUNS[-1].batches == 10
    assert RUNS[-1].ended


def test_what_it_does_is_baked_into_an_ordinary_model(tmp_path):
    fresh = tiny.model("bert", CLASSIFIER)
    model, _ = run(tmp_path, learning_rate=1e-9, during=[Scaling(less=0.5)])
    assert [type(one) for one in model.modules()] == [type(one) for one in fresh.modules()]
    assert model.state_dict().keys() == fresh.state_dict().keys()
    s = RUNS[-1].made[0].s.item()
    before, after = (one.bert.encoder.layer[0].attention.self.query.weight for one in (fresh, model))
    assert s != 0, "the parameter is trained, at its own rate"
    torch.testing.assert_close(after, before * 0.5 * (1 + s), rtol=1e-5, atol=1e-6)


def test_only_epochs_of_full_strength_may_be_the_best(tmp_path):
    scores = iter([0.9, 0.1])
    _, done = run(tmp_path, validate=lambda model: next(scores))
    assert (done.best_step, done.score) == (10, 0.1)


class Stop:
    def __call__(self, phrase, fraction):
        if round(10 * fraction) == 7:
            raise KeyboardInterrupt


def test_an_interrupted_run_continues_to_the_same_bytes(tmp_path):
    data = rows()
    options = {"rows": data, "save_seconds": 0, "validate": Validation(rows=data.to_list(), metric="accuracy")}
    whole, _ = run(tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", report=Stop(), **options)
    resumed, done = run(tmp_path / "cut", **options)
    assert done.resumed == 6
    assert RUNS[-1].batches == 10, "what is not in the student comes from the checkpoint"
    assert equal(state(whole), state(resumed))


def test_a_failed_run_leaves_no_trace(tmp_path):
    model = tiny.model("bert", CLASSIFIER)
    before, kinds = state(model), [type(one) for one in model.modules()]
    with pytest.raises(LissomError, match="LSM-905"):
        run(tmp_path, model=model, learning_rate=1e30, epochs=30)
    assert [type(one) for one in model.modules()] == kinds
    assert state(model).keys() == before.keys()


def test_a_chain_is_baked_in_its_order():
    linear = nn.Linear(2, 2, bias=False)
    weight = linear.weight.detach().clone()

    class Add(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return w + 1

    class Double(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return 2 * w

    first = transform([linear], lambda module, tensor: Add())
    second = transform([linear], lambda module, tensor: Double())
    assert torch.equal(original(linear), weight)
    torch.testing.assert_close(linear.weight, 2 * (weight + 1))
    untransform(linear, first, bake=True)
    untransform(linear, second, bake=True)
    assert type(linear) is nn.Linear
    torch.testing.assert_close(linear.weight, nn.Parameter(2 * (weight + 1)))


def test_a_shared_weight_is_transformed_and_baked_once():
    one, other = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    other.weight = one.weight
    weight = one.weight.detach().clone()

    class Double(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return 2 * w

    both = nn.ModuleList([one, other])
    made = transform(both, lambda module, tensor: Double())
    assert len(made) == 1
    copied = copy.deepcopy(both)
    assert torch.equal(copied[0].weight, 2 * weight)
    untransform(both, made, bake=True)
    assert one.weight is other.weight
    assert torch.equal(one.weight.detach(), 2 * weight)


def test_the_gradient_of_a_removed_transform_is_gone(tmp_path):
    model, _ = run(tmp_path)
    assert not [name for name, _ in model.named_parameters() if "parametrizations" in name]
