import random

import numpy as np
import pytest
import torch

from lissom.errors import LissomError
from lissom.train import checkpoint
from tests import tiny


def test_random_state_survives_json():
    kept = checkpoint.random_state()
    drawn = random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002
    checkpoint.set_random_state(kept)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == drawn  # noqa: NPY002


def test_weights_name_shared_tensors_once_and_fill_keeps_them_shared():
    model = tiny.model("gpt2", "AutoModelForCausalLM")
    copies = checkpoint.copied(model)
    assert "transformer.wte.weight" in copies
    assert "lm_head.weight" not in copies
    other = tiny.model("gpt2", "AutoModelForCausalLM", seed=1)
    checkpoint.fill(other, copies)
    assert other.lm_head.weight is other.transformer.wte.weight
    assert torch.equal(other.lm_head.weight, model.lm_head.weight)


def test_fill_refuses_another_model():
    copies = checkpoint.copied(tiny.model("bert", hidden_size=16))
    with pytest.raises(LissomError, match=r"LSM-908 the checkpoint is of another model\. Remove the work folder\."):
        checkpoint.fill(tiny.model("bert"), copies)


def made(work, step):
    folder = work / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "a.json").write_text("{}")
    checkpoint.seal(folder)
    return folder


def test_newest_is_the_highest_step_whose_seal_holds(tmp_path):
    for step in (2, 9, 10):
        made(tmp_path, step)
    assert checkpoint.newest(tmp_path).name == "checkpoint-10"
    (tmp_path / "checkpoint-10" / "a.json").write_text("[]")
    (tmp_path / "checkpoint-9" / "extra.json").write_text("[]")
    assert checkpoint.newest(tmp_path).name == "checkpoint-2"
    assert [one.name for one in tmp_path.iterdir()] == ["checkpoint-2"]


def test_no_checkpoint(tmp_path):
    (tmp_path / "checkpoint-1.tmp").mkdir()
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.newest(tmp_path / "nowhere") is None


def test_keep_removes_the_oldest(tmp_path):
    for step in (10, 9, 2):
        made(tmp_path, step)
    checkpoint.keep(tmp_path, 2)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]
