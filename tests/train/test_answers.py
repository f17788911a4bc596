"""A teacher's answers are computed once, and never taken for those of other rows or another teacher."""

import pytest
import torch

from lissom.files import read_safetensors
from lissom.train.objectives import OBJECTIVES
from tests import tiny
from tests.train.test_run import run
from tests.train.tiny_rows import rows

CLASSIFIER = "AutoModelForSequenceClassification"
LOGITS = {"logits": OBJECTIVES["logits"]()}


class Counted:
    """A teacher, and how many rows it was asked about."""

    def __init__(self, seed=1, **changes):
        self.model = tiny.model("bert", CLASSIFIER, seed, **changes)
        self.rows = 0
        self.model.register_forward_hook(self.count, with_kwargs=True)

    def count(self, module, args, kwargs, output):
        self.rows += len(kwargs["input_ids"])

    def taken(self):
        found, self.rows = self.rows, 0
        return found


@pytest.fixture
def teacher():
    return Counted()


def test_two_epochs_ask_once_for_each_row(tmp_path, teacher):
    run(tmp_path, LOGITS, teachers=[teacher.model])
    assert teacher.taken() == 40


def test_a_second_run_on_the_same_rows_does_not_ask(tmp_path, teacher):
    run(tmp_path, LOGITS, teachers=[teacher.model])
    teacher.taken()
    run(tmp_path, LOGITS, teachers=[teacher.model], learning_rate=2e-3)
    assert teacher.taken() == 0


def test_the_answers_are_the_teachers_own_in_the_order_of_the_rows(tmp_path, teacher):
    data = rows()
    run(tmp_path, LOGITS, teachers=[teacher.model], rows=data)
    (path,) = tmp_path.glob("answers-*.safetensors")
    stored = read_safetensors(path)["logits"]
    with torch.no_grad():
        for i in (0, 17, 39):
            own = teacher.model(input_ids=torch.tensor([data[i]["input_ids"]])).logits[0]
            torch.testing.assert_close(stored[i], own, rtol=0.05, atol=0.02)  # bf16 where the processor has it


def test_a_torn_file_is_made_anew(tmp_path, teacher):
    run(tmp_path / "a", LOGITS, teachers=[teacher.model])
    (path,) = (tmp_path / "a").glob("answers-*.safetensors")
    whole = path.read_bytes()
    for torn in (whole[: len(whole) // 2], b"", b"\xff" * 64):
        path.write_bytes(torn)
        teacher.taken()
        run(tmp_path / "a", LOGITS, teachers=[teacher.model], learning_rate=2e-3)
        assert teacher.taken() == 40
        assert path.read_bytes() == whole


def test_other_rows_and_another_teacher_are_asked(tmp_path, teacher):
    run(tmp_path, LOGITS, teachers=[teacher.model])
    teacher.taken()
    run(tmp_path, LOGITS, teachers=[teacher.model], rows=rows(seed=3))
    assert teacher.taken() == 40
    other = Counted(seed=2)
    run(tmp_path, LOGITS, teachers=[other.model])
    assert (other.taken(), teacher.taken()) == (40, 0)


def test_all_objectives_share_one_question(tmp_path, teacher):
    """Where states are read too, answers are not stored: each batch is asked about once, whatever is learnt."""
    learn = {name: OBJECTIVES[name]() for name in ("task", "logits", "hidden")}
    run(tmp_path, learn, teachers=[teacher.model])
    assert teacher.taken() == 1 + 2 * 40  # the first row before training, then each row once an epoch
    assert not list(tmp_path.glob("answers-*"))


def test_no_teacher_is_asked_for_nothing(tmp_path, teacher):
    run(tmp_path, teachers=[teacher.model])
    assert teacher.taken() == 0


def test_rows_that_are_not_reached_are_not_asked_about(tmp_path, teacher):
    run(tmp_path, LOGITS, teachers=[teacher.model], max_steps=2)
    assert teacher.taken() == 1 + 2 * 8
    run(tmp_path, LOGITS, teachers=[teacher.model], max_steps=5)
    assert teacher.taken() == 40
