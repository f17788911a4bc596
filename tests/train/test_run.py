"""The contract of a training run: reproducible, resumable, without pickle, without a trace on the model."""

import ast
import dataclasses
import inspect
import textwrap
from typing import ClassVar

import pytest
import torch
import transformers

from lissom.data.batches import pad
from lissom.errors import LissomError
from lissom.files import refuse_pickle
from lissom.train import checkpoint
from lissom.train.engine import Engine
from lissom.train.objectives import OBJECTIVES, Objective
from lissom.train.objectives.logits import Logits
from lissom.train.run import train
from lissom.train.score import Validation
from tests import tiny
from tests.train.tiny_rows import rows

CLASSIFIER = "AutoModelForSequenceClassification"
TASK = {"task": OBJECTIVES["task"]()}
SOME_TASKS = {"mixup", "mlm", "sequence", "on_policy", "exits"}
"""Objectives that only some kinds of model can learn; each has tests of its own."""
ALL = {name: kind() for name, kind in OBJECTIVES.items() if name not in SOME_TASKS}


def state(model):
    return {name: one.clone() for name, one in model.state_dict().items()}


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def run(work, objectives=TASK, model=None, **changes):
    """Two epochs of five steps by default."""
    torch.set_num_threads(1)
    model = model or tiny.model("bert", CLASSIFIER)
    options = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "work": work, **changes}
    return model, train(model, options.pop("rows", None) or rows(), objectives, **options)


class Stop:
    """Reports nothing and interrupts at a step of ten."""

    def __init__(self, step):
        self.step = step

    def __call__(self, phrase, fraction):
        if round(10 * fraction) == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("options", [{}, {"max_steps": 8}], ids=["epochs", "steps"])
def test_a_run_that_is_cut_while_it_validates_does_not_lose_the_score(tmp_path, options):
    """The last step of an epoch is saved after its validation alone; the best weights are those of an unbroken run."""
    scores = iter((0.1, 0.9, 0.9))

    def validate(model):
        score = next(scores)
        if score == 0.9 and not cut:
            cut.append(score)
            raise KeyboardInterrupt
        return score

    cut = []
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, validate=validate, save_seconds=0, **options)
    done = run(tmp_path, validate=validate, save_seconds=0, **options)[1]
    assert (done.best_step, done.score) == (done.steps, 0.9)


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path):
    first, second, third = (run(tmp_path / str(i), seed=seed)[0] for i, seed in enumerate((0, 0, 1)))
    assert equal(state(first), state(second))
    assert not equal(state(first), state(third))


@pytest.mark.parametrize("stop", [3, 7])
@pytest.mark.parametrize("save_seconds", [0, 60], ids=["each-step", "each-epoch"])
def test_an_interrupted_run_continues_to_the_same_bytes(tmp_path, stop, save_seconds):
    narrow = tiny.model("bert", CLASSIFIER, hidden_size=16, seed=1)
    data = rows()
    options = {
        "teachers": [narrow],
        "rows": data,
        "save_seconds": save_seconds,
        "validate": Validation(rows=data.to_list(), metric="accuracy"),
    }
    whole, done = run(tmp_path / "whole", ALL, **options)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", ALL, report=Stop(stop), **options)
    resumed, again = run(tmp_path / "cut", ALL, **options)
    assert again.resumed == (stop - 1 if save_seconds == 0 else 5 * (stop // 5))
    assert equal(state(whole), state(resumed))
    assert (done.steps, done.score, done.best_step) == (again.steps, again.score, again.best_step)


def test_a_broken_checkpoint_is_passed_over(tmp_path):
    whole, _ = run(tmp_path / "whole")
    run(tmp_path / "cut")
    last = next(tmp_path.glob("cut/*/checkpoint-10"))
    broken = last / "optimizer.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1] + b"\x01")
    resumed, done = run(tmp_path / "cut")
    assert done.resumed == 5
    assert equal(state(whole), state(resumed))


def test_a_half_written_checkpoint_is_passed_over(tmp_path):
    run(tmp_path)
    next(tmp_path.glob("*/checkpoint-10/sealed.json")).unlink()
    assert run(tmp_path)[1].resumed == 5


def test_a_finished_run_is_not_trained_again(tmp_path):
    first, _ = run(tmp_path)
    second, done = run(tmp_path)
    assert (done.resumed, done.steps) == (10, 10)
    assert equal(state(first), state(second))


def test_other_options_are_another_run(tmp_path):
    run(tmp_path)
    assert run(tmp_path, learning_rate=2e-3)[1].resumed == 0
    assert run(tmp_path, rows=rows(seed=5))[1].resumed == 0
    assert run(tmp_path, model=tiny.model("bert", CLASSIFIER, seed=5))[1].resumed == 0


def test_two_checkpoints_are_kept(tmp_path):
    run(tmp_path, epochs=4)
    assert sorted(one.name for one in tmp_path.glob("*/*")) == ["checkpoint-15", "checkpoint-20"]


def test_nothing_is_pickled(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("pickle")

    for name in ("save", "load"):
        monkeypatch.setattr(torch, name, refuse)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, report=Stop(7), save_seconds=0)
    run(tmp_path)
    files = [one for one in tmp_path.rglob("*") if one.is_file()]
    assert {one.suffix for one in files} == {".json", ".safetensors"}
    for one in files:
        refuse_pickle(one)


def test_every_method_of_trainer_that_pickles_is_replaced():
    """Pins transformers' private names: a release that pickles elsewhere fails here."""
    unreachable = {"_push_from_checkpoint", "_tune_save_checkpoint"}  # the hub, Ray
    tree = ast.parse(textwrap.dedent(inspect.getsource(transformers.Trainer)))
    pickling = {
        method.name
        for method in tree.body[0].body
        if isinstance(method, ast.FunctionDef)
        and any(text in ast.unparse(method) for text in ("torch.save(", "torch.load(", "pickle", "load_sharded"))
    }
    assert {"_save", "_load_rng_state", "_save_optimizer_and_scheduler"} <= pickling
    assert pickling - unreachable <= vars(Engine).keys()
    replaced = {name for name in vars(Engine) if name.startswith(("_save", "_load", "_get"))}
    assert replaced <= vars(transformers.Trainer).keys()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Broken(Objective):
    """NaN from the given step on."""

    name: ClassVar[str] = "broken"
    teacher: ClassVar[bool] = False
    labels: ClassVar[bool] = True
    at: int = 1
    asked: ClassVar[list[int]] = []

    def value(self, answers, beside):
        self.asked.append(1)
        return answers.student["loss"] * (float("nan") if len(self.asked) >= self.at else 1.0)


@pytest.mark.parametrize(("at", "kept"), [(3, 0), (8, 5)])
def test_nan_stops_and_the_last_good_weights_come_back(tmp_path, at, kept):
    Broken.asked.clear()
    model = tiny.model("bert", CLASSIFIER)
    before = state(model)
    with pytest.raises(LissomError) as caught:
        run(tmp_path, {**TASK, "broken": Broken(at=at)}, model)
    where = next(tmp_path.iterdir())
    there = f"in {where}" if kept else "as they were before"
    assert str(caught.value) == (
        f"LSM-905 tune: the broken loss is NaN or infinite at step {at} of 10. "
        f"The weights of step {kept} are put back and kept {there}. Use a smaller learning_rate."
    )
    assert equal(before, state(model)) == (kept == 0)
    assert all(torch.isfinite(one).all() for one in state(model).values())
    assert not model.training


def test_the_teacher_is_asked_once_a_batch_and_left_as_it_is(tmp_path):
    teacher = tiny.model("bert", CLASSIFIER, seed=1)
    before, calls = state(teacher), []
    teacher.register_forward_hook(lambda module, args, output: calls.append(module.training))
    model, _ = run(tmp_path, {name: OBJECTIVES[name]() for name in ("logits", "hidden")}, teachers=[teacher])
    assert calls == [False] * 11  # ten batches, and the first row before them
    assert equal(before, state(teacher))
    assert all(one.grad is None for one in teacher.parameters())
    assert not any(one is teacher for one in model.modules())


def test_hidden_states_are_asked_for_only_when_read(tmp_path):
    model, asked = tiny.model("bert", CLASSIFIER), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: asked.append(kwargs.get("output_hidden_states", False)), with_kwargs=True
    )
    run(tmp_path, {"logits": OBJECTIVES["logits"]()}, model, teachers=[tiny.model("bert", CLASSIFIER, seed=1)])
    assert not any(asked)


def test_distillation_brings_the_student_to_the_teacher(tmp_path):
    model, teacher = (tiny.model("bert", CLASSIFIER, seed) for seed in (0, 1))
    teacher.classifier.weight.data *= 10
    batch = rows(count=8)
    inputs = {name: one for name, one in pad(batch.to_list(), 0).items() if name != "labels"}

    def distance():
        with torch.no_grad():
            return float((model(**inputs).logits - teacher(**inputs).logits).norm())

    before = distance()
    learn = {"logits": Logits(loss="mse")}  # kl would leave a constant between the logits
    run(tmp_path, learn, model, teachers=[teacher], epochs=30, learning_rate=5e-3, rows=batch)
    assert distance() < before / 2


def test_the_best_epoch_is_kept(tmp_path):
    scores, seen = iter([0.1, 0.9, 0.9, 0.5]), []

    def validate(model):
        seen.append(state(model))
        return next(scores)

    model, done = run(tmp_path, epochs=4, validate=validate)
    assert (done.best_step, done.score) == (10, 0.9)
    assert equal(state(model), seen[1])


def test_the_model_is_left_as_it_came_but_for_weights(tmp_path):
    model = tiny.model("gpt2", "AutoModelForCausalLM")
    next(model.parameters()).requires_grad_(False)
    kept = {name: one.requires_grad for name, one in model.named_parameters()}
    names, config = set(vars(model)), model.config.to_dict()
    hooks = sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules())
    numbers = checkpoint.random_state()
    run(tmp_path, model=model, rows=rows("language_modelling"))
    assert {name: one.requires_grad for name, one in model.named_parameters()} == kept
    assert set(vars(model)) == names
    assert model.config.to_dict() == config
    assert sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules()) == hooks
    assert not model.training
    assert all(one.grad is None for one in model.parameters())
    assert checkpoint.random_state() == numbers


def test_tied_weights_stay_tied(tmp_path):
    model = tiny.model("gpt2", "AutoModelForCausalLM")
    before = state(model)
    run(tmp_path, ALL, model, rows=rows("language_modelling"), teachers=[tiny.model("gpt2", "AutoModelForCausalLM", 1)])
    assert model.lm_head.weight is model.transformer.wte.weight
    assert not torch.equal(before["lm_head.weight"], model.lm_head.weight)
    tensors = next(tmp_path.glob("*/checkpoint-10/model.safetensors"))
    assert b"lm_head" not in tensors.read_bytes()[:5000]


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("regression", CLASSIFIER),
        ("tagging", "AutoModelForTokenClassification"),
        ("question_answering", "AutoModelForQuestionAnswering"),
    ],
)
def test_every_kind_of_task_learns_from_everything(tmp_path, kind, head):
    changes = {"num_labels": 1, "problem_type": "regression"} if kind == "regression" else {}
    model, teacher = (tiny.model("bert", head, seed, **changes) for seed in (0, 1))
    before = state(model)
    run(tmp_path, ALL, model, rows=rows(kind), teachers=[teacher])
    assert not equal(before, state(model))


def test_unlabelled_rows_are_enough_for_a_teacher(tmp_path):
    model = tiny.model("bert", CLASSIFIER)
    teachers = [tiny.model("bert", CLASSIFIER, 1)]
    run(tmp_path, {"logits": OBJECTIVES["logits"]()}, model, rows=rows(""), teachers=teachers)
    with pytest.raises(LissomError, match="LSM-319 task: the model computes no loss: the rows have no labels"):
        run(tmp_path, rows=rows(""))


def test_half_precision_weights_are_trained_in_full(tmp_path):
    model, _ = run(tmp_path, model=tiny.model("bert", CLASSIFIER).half())
    assert model.dtype == torch.float32


def test_max_steps_ends_early_and_goes_beyond(tmp_path):
    assert run(tmp_path, max_steps=3)[1].steps == 3
    assert run(tmp_path, max_steps=12)[1].steps == 12
    assert run(tmp_path, epochs=0.5)[1].steps == 3


def test_progress_is_reported_and_nothing_is_printed(tmp_path, capfd):
    heard = []
    run(tmp_path, report=lambda phrase, fraction: heard.append((phrase, fraction)))
    assert [fraction for _, fraction in heard] == pytest.approx([i / 10 for i in range(1, 11)])
    assert heard[0][0].startswith("epoch 1 of 2, loss ")
    assert heard[-1][0].startswith("epoch 2 of 2, loss ")
    assert capfd.readouterr() == ("", "")


def test_no_rows(tmp_path):
    with pytest.raises(LissomError, match=r"LSM-827 there are no rows to train on\. Give more or longer texts\."):
        train(tiny.model("bert", CLASSIFIER), rows().select([]), TASK, work=tmp_path)
