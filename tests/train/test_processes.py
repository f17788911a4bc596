"""Two processes train one model: started as a user starts them, on one machine, over gloo."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar
from unittest import mock

import pytest
import torch

from lissom.errors import LissomError
from lissom.files import read_safetensors
from lissom.train import checkpoint
from lissom.train.objectives import OBJECTIVES, Objective
from lissom.train.run import train
from tests import tiny
from tests.train.test_during import Scaling
from tests.train.test_run import CLASSIFIER, equal
from tests.train.tiny_rows import rows

ROOT = Path(__file__).resolve().parents[2]
EXACT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def together(*arguments):
    """The output of two processes that run a module."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command += map(str, arguments)
    done = subprocess.run(command, check=False, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneSided(Objective):
    """The first process alone uses the classifier."""

    name: ClassVar[str] = "one_sided"
    labels: ClassVar[bool] = True
    teacher: ClassVar[bool] = False
    reads: ClassVar[frozenset[str]] = frozenset({"hidden_states"})

    def value(self, answers, beside):
        if os.environ["RANK"] == "0":
            return answers.student["loss"]
        return answers.student["hidden_states"][-1].square().mean()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Broken(OneSided):
    """The loss of the second process is NaN: none waits for the other."""

    name: ClassVar[str] = "broken"

    def value(self, answers, beside):
        return answers.student["loss"] * (float("nan") if os.environ["RANK"] == "1" else 1.0)


RUNS = {
    # a projection beside the student, a parameter of `while`, batches of both kinds
    "rows": {"learn": ("task", "hidden"), "during": [Scaling(less=0.1)], "batch_size": 4},
    "tokens": {"learn": ("task", "hidden"), "during": [Scaling(less=0.1)], "batch_tokens": 40, "accumulate": 2},
    "stored": {"learn": ("logits",), "batch_size": 4},
    "one_sided": {"learn": ("one_sided",), "batch_size": 4},
    "whole": {"learn": ("task",), "batch_size": 20},
}


CUT = {"rows": 8, "tokens": 5}
"""The step at which such a run is interrupted, in the second epoch."""


def one_run(folder, learn, stop=None, **options):
    """Two epochs of `rows`; the model, what the run did, its losses, and how many rows the teacher was asked about."""
    torch.set_num_threads(1)
    losses, asked = [], []

    def heard(phrase, fraction):
        losses.append(float(phrase.split("loss ")[1].split(",")[0]))
        if len(losses) == stop:
            raise KeyboardInterrupt

    model = tiny.model("bert", CLASSIFIER, **EXACT)
    teacher = tiny.model("bert", CLASSIFIER, 1, hidden_size=16, **EXACT)
    teacher.register_forward_hook(
        lambda module, args, inputs, output: asked.append(len(inputs["input_ids"])), with_kwargs=True
    )
    with mock.patch("lissom.train.run.bf16_is_faster", return_value=False):
        done = train(
            model,
            rows(),
            {name: {**OBJECTIVES, "one_sided": OneSided, "broken": Broken}[name]() for name in learn},
            teachers=[teacher],
            validate=lambda one: float(len(losses)),  # the last epoch is the best
            learning_rate=1e-3,
            report=heard,
            work=folder,
            **options,
        )
    return model, done, losses, sum(asked)


def main(folder):
    """In each process: train, say how it went, and train once more, from the last checkpoint."""
    found = {}
    with pytest.raises(LissomError, match="LSM-219 tune: the processes have not the same model, rows and options"):
        one_run(folder, ("task",), batch_size=4 + int(os.environ["RANK"]))
    with pytest.raises(LissomError, match=r"LSM-905 tune: the \w+ loss is NaN or infinite at step 1 of 10"):
        one_run(folder, ("task", "broken"), batch_size=4)
    for name, options in RUNS.items():
        model, done, losses, asked = one_run(folder / name, **options)
        checkpoint.write(folder / f"{name}-{os.environ['RANK']}.safetensors", checkpoint.weights(model))
        resumed = one_run(folder / name, **options)[1].resumed
        if name in CUT:
            with pytest.raises(KeyboardInterrupt):
                one_run(folder / "cut", stop=CUT[name], save_seconds=0, **options)
            model, again, *_ = one_run(folder / "cut", **options)
            assert again.resumed == CUT[name] - 1
            checkpoint.write(folder / f"{name}-cut-{os.environ['RANK']}.safetensors", checkpoint.weights(model))
        found[name] = [asked, done.steps, done.best_step, done.score, done.rows_per_step, resumed, losses]
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    together("tests.train.test_processes", folder)
    return folder, [json.loads((folder / f"{number}.json").read_text()) for number in (0, 1)]


def weights(folder, name):
    return [read_safetensors(folder / f"{name}-{number}.safetensors") for number in (0, 1)]


@pytest.mark.parametrize("name", RUNS)
def test_all_processes_end_with_the_same_weights(trained, name):
    folder, (first, second) = trained
    one, other = weights(folder, name)
    assert equal(one, other)
    assert not equal(one, checkpoint.weights(tiny.model("bert", CLASSIFIER, **EXACT)))
    assert first[name][1:] == second[name][1:]


@pytest.mark.parametrize("name", CUT)
def test_an_interrupted_run_continues_to_the_same_bytes(trained, name):
    folder, _ = trained
    for cut, whole in zip(weights(folder, f"{name}-cut"), weights(folder, name), strict=True):
        assert equal(cut, whole)


@pytest.mark.parametrize("name", ["rows", "tokens", "stored"])
def test_they_learn(trained, name):
    *_, losses = trained[1][0][name]
    assert sum(losses[-3:]) < sum(losses[:3])


@pytest.mark.parametrize("name", RUNS)
def test_the_checkpoint_is_one_that_all_go_on_from(trained, name):
    folder, (found, _) = trained
    _, steps, best, _, _, resumed, losses = found[name]
    assert steps == len(losses) == resumed
    assert best is not None
    (last,) = (folder / name).glob(f"tune-*/checkpoint-{steps}")
    assert {one.name for one in last.glob("random-*")} == {"random-0.json", "random-1.json"}
    assert checkpoint.newest(last.parent) == last, "its seal is over the files of all processes"


def test_the_teacher_is_asked_by_the_first_process_alone(trained):
    assert [found["stored"][0] for found in trained[1]] == [40, 0]


def test_two_halves_are_the_run_of_one_process_on_the_whole(tmp_path, trained):
    folder, (found, _) = trained
    model, done, losses, _ = one_run(tmp_path, ("task",), batch_size=40)
    assert found["whole"][1:] == [2, done.best_step, pytest.approx(done.score, abs=1e-3), 40, 2, losses]
    for one in weights(folder, "whole"):
        for name, tensor in checkpoint.weights(model).items():
            torch.testing.assert_close(one[name], tensor, rtol=1e-2, atol=1e-4)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
