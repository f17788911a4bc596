"""MetaDistil: the teacher's gradient against the second derivative by autograd, and what a run leaves."""

import copy

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional

import lissom
from lissom.anatomy import dissect
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.train.during.meta import Meta, teach
from lissom.train.during.weights import transform, untransform
from lissom.train.objectives import OBJECTIVES
from lissom.train.run import train
from lissom.train.score import Validation
from tests import tiny
from tests.train.during.families import CLASSIFIER, pair, rows

torch.set_num_threads(1)
VARIANTS = [one for one in sorted(tiny.CONFIGS) if CLASSIFIER in tiny.heads(one)]
LABELS = torch.tensor([0, 1, 2, 1])


def models(variant, **changes):
    """A student and a teacher in double precision, whose attention has a second derivative."""
    found = [tiny.model(variant, CLASSIFIER, seed=seed, attn_implementation="eager", **changes) for seed in (1, 0)]
    return [one.double() for one in found]


def batches(student, labels=LABELS):
    quiz = tiny.batch(student, rows=4, seed=5) | {"labels": labels}
    return tiny.batch(student, rows=3), quiz


def through_the_step(student, teacher, batch, quiz, loss):
    """The teacher's gradient as autograd finds it when the pilot's step is part of the graph."""
    own = dict(student.named_parameters())
    lesson = loss(student(**batch)["logits"], teacher(**batch)["logits"])
    slopes = torch.autograd.grad(lesson, list(own.values()), create_graph=True, allow_unused=True)
    pilot = {name: one if slope is None else one - 0.05 * slope for (name, one), slope in zip(own.items(), slopes)}  # noqa: B905
    found = functional_call(student, pilot, kwargs=quiz)["loss"]
    return torch.autograd.grad(found, list(teacher.parameters()), allow_unused=True)


def kl(student, teacher):
    soft, mine = functional.softmax(teacher / 3.0, dim=-1), functional.log_softmax(student / 3.0, dim=-1)
    return 9.0 * (soft * (soft.log() - mine)).sum(dim=-1).mean()


def compare(teacher, wanted, tolerance):
    taken = [one.grad for one in teacher.parameters()]
    flat = [torch.cat([one.flatten() for one in some if one is not None]) for some in (taken, wanted)]
    assert [one is None for one in taken] == [one is None for one in wanted]
    assert flat[1].norm() > 1e-4
    assert (flat[0] - flat[1]).norm() < tolerance * flat[1].norm()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_gradient_is_that_through_the_pilots_step(variant):
    student, teacher = models(variant)
    batch, quiz = batches(student)
    wanted = through_the_step(student, teacher, batch, quiz, kl)
    before = {name: one.clone() for name, one in student.state_dict().items()}
    teach(student, teacher, batch, quiz, rate=0.05, temperature=3.0)
    compare(teacher, wanted, 1e-5)  # some families compute norms in single precision whatever they are given
    assert all(torch.equal(before[name], one) for name, one in student.state_dict().items())
    assert all(one.grad is None for one in student.parameters())


def test_the_gradient_is_the_same_with_fast_attention():
    student, teacher = models("bert")
    batch, quiz = batches(student)
    wanted = through_the_step(student, teacher, batch, quiz, kl)
    for one in (student, teacher):
        one.set_attn_implementation("sdpa")
    teach(student, teacher, batch, quiz, rate=0.05, temperature=3.0)
    compare(teacher, wanted, 1e-12)


def test_a_regression_learns_by_squared_error():
    student, teacher = models("bert", num_labels=1)
    batch, quiz = batches(student, torch.tensor([0.1, 0.9, 0.4, 0.5], dtype=torch.float64))
    wanted = through_the_step(student, teacher, batch, quiz, functional.mse_loss)
    teach(student, teacher, batch, quiz, rate=0.05, temperature=3.0)
    compare(teacher, wanted, 1e-12)


def test_a_step_of_the_teacher_makes_the_pilot_better():
    student, teacher = models("bert")
    batch, quiz = batches(student)

    def examined():
        learner = copy.deepcopy(student)
        with torch.no_grad():
            taught = teacher(**batch)["logits"]
        kl(learner(**batch)["logits"], taught).backward()
        torch.optim.SGD(learner.parameters(), lr=0.05).step()
        return learner(**quiz)["loss"].item()

    before = examined()
    teach(student, teacher, batch, quiz, rate=0.05, temperature=3.0)
    torch.optim.SGD(teacher.parameters(), lr=0.5).step()
    assert examined() < before


RUNS = []


class Watched(Meta):
    def begin(self, editor, teacher):
        RUNS.append(super().begin(editor, teacher))
        return RUNS[-1]


def run(work, variant="bert", during=None, data=None, **changes):
    student, teacher = pair(variant)
    options = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "work": work, "teachers": (teacher,), **changes}
    learn = {"logits": OBJECTIVES["logits"]()}
    done = train(student, data or rows(count=44), learn, during=[during or Watched(learning_rate=1e-3)], **options)
    return student, teacher, done


@pytest.mark.parametrize("variant", ["bert", "gpt2", "t5"])
def test_a_copy_of_the_teacher_is_trained_and_taught_from(tmp_path, variant):
    start, given = pair(variant)
    student, teacher, _ = run(tmp_path, variant, max_steps=4, warmup=0.0)
    assert all(torch.equal(a, b) for a, b in zip(given.parameters(), teacher.parameters(), strict=True))
    copied = RUNS[-1].teacher
    assert not all(torch.equal(a, b) for a, b in zip(given.parameters(), copied.parameters(), strict=True))
    assert student.state_dict().keys() == start.state_dict().keys()
    plain, _, _ = run(tmp_path, variant, Watched(learning_rate=1e-12), max_steps=4, warmup=0.0)
    assert not torch.equal(tiny.outputs(student, tiny.batch(student)), tiny.outputs(plain, tiny.batch(plain)))
    lissom.save(student, tmp_path / "saved", tokenizer=None)
    again = lissom.load(tmp_path / "saved")
    assert torch.equal(tiny.outputs(student, tiny.batch(student)), tiny.outputs(again, tiny.batch(again)))


def test_a_single_number_a_text_works_too(tmp_path):
    student, teacher = pair("bert", num_labels=1)
    for one in (student, teacher):
        one.config.problem_type = "regression"
    learn = {"logits": OBJECTIVES["logits"]()}
    data = rows(kind="regression")
    done = train(student, data, learn, during=[Meta()], teachers=(teacher,), max_steps=2, batch_size=8, work=tmp_path)
    assert done.steps == 2


def test_the_quiz_is_kept_from_training(tmp_path):
    data, seen, asked = rows(count=44), [], []

    class Noted(Watched):
        def begin(self, editor, teacher):
            acting = super().begin(editor, teacher)
            plain = acting.before

            def before(engine, inputs):
                seen.extend(inputs["input_ids"].tolist())
                asked[:] = engine.held["input_ids"]
                plain(engine, inputs)

            acting.before = before
            return acting

    run(tmp_path, during=Noted(quiz=0.25), data=data, epochs=1)
    assert len(asked) == 11
    shown = {tuple(token for token in one if token) for one in seen}
    assert len(shown) == 33
    assert not shown & {tuple(one) for one in asked}


def test_the_teacher_learns_in_every_so_manieth_step(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("lissom.train.during.meta.teach", lambda *args, **options: calls.append(options["rate"]))
    run(tmp_path, during=Watched(every=3), max_steps=10, warmup=0.0)
    assert calls == pytest.approx([1e-3 * (10 - step) / 10 for step in (0, 3, 6, 9)]), "the student's rate"
    calls.clear()
    run(tmp_path, during=Watched(pilot_rate=0.5), max_steps=3)
    assert calls == [0.5] * 3


def test_it_learns_once_a_step_of_several_batches(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("lissom.train.during.meta.teach", lambda *args, **options: calls.append(len(args[2]["labels"])))
    run(tmp_path, max_steps=3, accumulate=2, warmup=0.0)
    assert len(calls) == 3


class Stop:
    def __call__(self, phrase, fraction):
        if round(10 * fraction) == 7:
            raise KeyboardInterrupt


def test_an_interrupted_run_continues_to_the_same_bytes(tmp_path):
    data = rows(count=44)
    options = {"data": data, "save_seconds": 0, "validate": Validation(rows=data.to_list(), metric="accuracy")}
    whole, _, _ = run(tmp_path / "whole", **options)
    taught = RUNS[-1]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", report=Stop(), **options)
    resumed, _, done = run(tmp_path / "cut", **options)
    assert done.resumed == 6
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    left, right = taught.state(), RUNS[-1].state()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def fails(student, teacher):
    with pytest.raises(LissomError) as caught:
        Meta().check(dissect(student), teacher)
    return str(caught.value)


def test_what_it_cannot_do_is_said_before_any_work(tmp_path):
    student, teacher = pair("bert")
    words = tiny.model("bert", "AutoModelForTokenClassification")
    assert "LSM-715 meta: the quiz asks for one answer a text, and BertForTokenClassification" in fails(words, teacher)
    other = tiny.model("bert", CLASSIFIER, num_labels=5)
    assert "LSM-319 meta: the student answers with 3 values, the teacher with 5" in fails(student, other)
    teacher.bert.encoder.layer[0].output.dense = lissom.nn.Int8Linear(48, 32)
    assert "LSM-713" in fails(student, teacher)
    with pytest.raises(LissomError, match="LSM-317"):
        Meta().begin(Editor(student), None)
    with pytest.raises(LissomError, match="LSM-827"):
        run(tmp_path, data=rows(count=1))
    with pytest.raises(LissomError, match="LSM-317 meta: the quiz needs labels"):
        run(tmp_path, data=rows().remove_columns("labels"), warmup=0.0)


class Rounded(torch.autograd.Function):
    """Has a backward pass only, as straight-through estimators have."""

    @staticmethod
    def forward(ctx, weight):
        return weight.round(decimals=1)

    @staticmethod
    def backward(ctx, slope):
        return slope


def test_a_student_without_a_forward_derivative_is_refused():
    student, teacher = models("bert")

    class Through(torch.nn.Module):
        def forward(self, weight):
            return Rounded.apply(weight)

    made = transform([student.classifier], lambda module, tensor: Through())
    with pytest.raises(LissomError, match="LSM-715 meta: something that acts on the student has no forward derivative"):
        teach(student, teacher, *batches(student), rate=0.05, temperature=2.0)
    untransform(student, made, bake=False)
