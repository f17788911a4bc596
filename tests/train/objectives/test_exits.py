"""What exits learn: values by hand, who gets gradients, and runs that go on to the same bytes."""

from __future__ import annotations

import math

import pytest
import torch
from transformers.utils.generic import ModelOutput

from lissom.edits import AddExits, Editor
from lissom.errors import LissomError
from lissom.nn.exits import Exits
from lissom.train.objectives import Answers
from lissom.train.objectives.exits import ExitAnswers
from lissom.train.run import train
from tests import tiny
from tests.train.objectives.taught import HEAD
from tests.train.tiny_rows import rows

IDS = torch.tensor([[1, 1], [1, 1]])


class Model(torch.nn.Module):
    """Two exits of a stack of three layers; each answers (x, 0) for a state x."""

    def __init__(self, *, judge: bool = False, classes: int = 2) -> None:
        super().__init__()
        self.exits = Exits(1, classes, (1, 2), 3, judge=judge)
        with torch.no_grad():
            for one in self.exits.parameters():
                one.zero_()
            for head in self.exits.heads:
                head.classifier.weight[0] = 1.0


def answers(model: Model, states: list[float], last: list[float], labels: list[float] | None) -> Answers:
    """Two texts alike: the states of both exits, the logits of the last layer, and a label each."""
    found = [torch.tensor([[one], [one]], requires_grad=True) for one in states]
    logits = torch.tensor([last, last], requires_grad=True)
    given = {} if labels is None else {"labels": torch.tensor(labels)}
    return Answers(
        inputs={"input_ids": IDS, "attention_mask": IDS, **given},
        student=ModelOutput(logits=logits, exit_states=found),
        model=model,
    )


def value(objective: ExitAnswers, both: Answers) -> float:
    return float(objective.value(both, objective.begin(both)))


def ce(p: float) -> float:
    return -math.log(p)


THREE = math.log(3)  # logits (log 3, 0) are 3/4 and 1/4


def test_weights_by_hand() -> None:
    both = answers(Model(), [0.0, THREE], [2 * THREE, 0.0], [0, 0])  # 1/2, 3/4 and 9/10 for the label
    losses = [ce(0.5), ce(0.75), ce(0.9)]
    by_depth = (losses[0] + 2 * losses[1] + 3 * losses[2]) / 6
    assert value(ExitAnswers(), both) == pytest.approx(by_depth, rel=1e-5)
    assert value(ExitAnswers(weights="uniform"), both) == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert value(ExitAnswers(last=False), both) == pytest.approx((losses[0] + 2 * losses[1]) / 3, rel=1e-5)


def test_learning_from_the_last_layer_by_hand() -> None:
    both = answers(Model(), [0.0, THREE], [2 * THREE, 0.0], None)
    apart = [0.9 * math.log(0.9 / p) + 0.1 * math.log(0.1 / (1 - p)) for p in (0.5, 0.75)]
    objective = ExitAnswers(weights="uniform", last=False, distil=1.0)
    assert value(objective, both) == pytest.approx(sum(apart) / 2, rel=1e-5)
    objective.value(both, objective.begin(both)).backward()
    assert both.student["logits"].grad is None  # it teaches, and does not learn
    # softened by 2, the last layer gives 3/4 and the exits 1/2 and sqrt 3 : 1
    root = math.sqrt(3) / (1 + math.sqrt(3))
    soft = [0.75 * math.log(0.75 / p) + 0.25 * math.log(0.25 / (1 - p)) for p in (0.5, root)]
    objective = ExitAnswers(weights="uniform", last=False, distil=1.0, temperature=2.0)
    assert value(objective, both) == pytest.approx(4 * sum(soft) / 2, rel=1e-5)


def test_both_shares() -> None:
    both = answers(Model(), [0.0, 0.0], [2 * THREE, 0.0], [0, 0])
    apart = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    objective = ExitAnswers(weights="uniform", last=False, distil=0.25)
    assert value(objective, both) == pytest.approx(0.75 * ce(0.5) + 0.25 * apart, rel=1e-5)


def test_a_regression_by_hand() -> None:
    both = answers(Model(classes=1), [1.0, 2.0], [4.0], [3.0, 3.0])
    assert value(ExitAnswers(weights="uniform"), both) == pytest.approx((4 + 1 + 1) / 3)
    assert value(ExitAnswers(weights="uniform", last=False, distil=1.0), both) == pytest.approx((9 + 4) / 2)


def test_a_frozen_backbone_gets_no_gradient() -> None:
    model = Model()
    both = answers(model, [0.5, 0.5], [2 * THREE, 0.0], [0, 0])
    objective = ExitAnswers(weights="uniform", backbone="frozen")
    loss = objective.value(both, objective.begin(both))
    assert float(loss) == pytest.approx(ce(1 / (1 + math.exp(-0.5))), rel=1e-5)  # the last layer is no part of it
    loss.backward()
    assert all(one.grad is None for one in (*both.student["exit_states"], both.student["logits"]))
    assert model.exits.heads[0].classifier.weight.grad is not None


def test_the_judge_learns_who_is_right() -> None:
    both = answers(Model(judge=True), [THREE, THREE], [0.0, 0.0], [0, 1])  # the first is right; the judge says 1/2
    plain = (ce(0.75) + ce(0.25)) / 2
    objective = ExitAnswers(weights="uniform", last=False)
    assert value(objective, both) == pytest.approx(plain + 0.25, rel=1e-5)
    numbers = answers(Model(judge=True, classes=1), [3.0, 3.0], [3.0], [3.0, 3.0])
    assert value(objective, numbers) == pytest.approx(0.25)


def test_every_other_batch_is_the_last_layers() -> None:
    both = answers(Model(), [0.0, THREE], [2 * THREE, 0.0], [0, 0])
    objective = ExitAnswers(weights="uniform", alternate=True)
    beside = objective.begin(both)
    found = [float(objective.value(both, beside)) for _ in range(4)]
    assert found == pytest.approx([ce(0.9), (ce(0.5) + ce(0.75) + ce(0.9)) / 3] * 2, rel=1e-5)


def test_what_is_refused() -> None:
    both = answers(Model(), [0.0, 0.0], [0.0, 0.0], None)
    with pytest.raises(LissomError, match="LSM-319 exits: exits learn from labels, and the rows have none"):
        ExitAnswers().begin(both)
    with pytest.raises(LissomError, match=r"LSM-319 exits: the model has no exits\. Put `add_exits` before `tune`"):
        ExitAnswers().begin(Answers(inputs=both.inputs, student=both.student, model=torch.nn.Linear(1, 1)))
    anatomy = Editor(tiny.model("bert", HEAD)).anatomy()
    with pytest.raises(LissomError, match="LSM-319 exits: alternate trains the last layer"):
        ExitAnswers(alternate=True, last=False).check(anatomy, None, ())


@pytest.mark.parametrize("options", [{}, {"backbone": "frozen"}, {"alternate": True}])
def test_a_run_that_is_cut_ends_as_one_that_is_not(tmp_path, options) -> None:
    torch.set_num_threads(1)
    objective = ExitAnswers(**options)

    def run(folder, stop=0):
        def report(phrase, fraction):
            if round(10 * fraction) == stop:
                raise KeyboardInterrupt

        student = tiny.model("bert", HEAD)
        Editor(student).apply(AddExits(layers=(1, 2), judge=True))
        torch.manual_seed(0)
        for one in student.exits.parameters():
            torch.nn.init.normal_(one, std=0.02)
        before = {name: one.clone() for name, one in student.state_dict().items()}
        more = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "save_seconds": 0, "report": report}
        done = train(student, rows(), {"exits": objective}, teachers=[], work=tmp_path / folder, **more)
        moved = {name for name, one in student.state_dict().items() if not torch.equal(one, before[name])}
        return student.state_dict(), done, moved

    whole, _, moved = run("whole")
    assert {name for name in whole if name.startswith("exits.")} <= moved
    assert (len(moved) == sum(name.startswith("exits.") for name in whole)) == (options == {"backbone": "frozen"})
    with pytest.raises(KeyboardInterrupt):
        run("cut", stop=7)
    again, done, _ = run("cut")
    assert done.resumed == 6
    assert all(torch.equal(whole[name], again[name]) for name in whole)
