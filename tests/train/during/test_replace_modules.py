"""Module replacing: who answers at which probability, what moves, and that the student alone is left."""

import copy

import pytest
import torch

import lissom
from lissom.anatomy import dissect
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.base import Given
from lissom.methods.distillation.tune import Tune
from lissom.train.during.replace_modules import ReplaceModules, groups
from lissom.train.objectives import OBJECTIVES
from lissom.train.ramp import Ramp
from lissom.train.run import train
from tests import tiny
from tests.train.during.families import CLASSIFIER, in_layers, pair, quiet, rows

torch.set_num_threads(1)
SAME_LAYERS = [one for one in sorted(tiny.CONFIGS) if one != "modernbert"]
HEADS = {variant: "AutoModel" for variant in SAME_LAYERS if CLASSIFIER not in tiny.heads(variant)}
TASK = {"task": OBJECTIVES["task"]()}


def begin(student, teacher, **options):
    during = ReplaceModules(**options)
    during.check(dissect(student), teacher)
    acting = during.begin(Editor(student), teacher)
    acting.at(0.0)
    return acting


def answers(model, **changes):
    with torch.no_grad():
        return model(**tiny.batch(model), **changes)[0]


def test_groups_are_adjacent_and_hold_every_layer():
    assert groups(6, 12) == tuple(range(2 * i, 2 * i + 2) for i in range(6))
    assert groups(3, 3) == (range(1), range(1, 2), range(2, 3))
    assert groups(2, 3) == (range(2), range(2, 3))
    assert [list(one) for one in groups(5, 12)] == [[0, 1], [2, 3, 4], [5, 6], [7, 8, 9], [10, 11]]


@pytest.mark.parametrize("variant", SAME_LAYERS)
def test_with_probability_0_the_teacher_answers_and_with_1_the_student(variant):
    student, teacher = pair(variant, head=HEADS.get(variant, CLASSIFIER))
    alone, taught = answers(student), answers(teacher)
    assert not torch.allclose(alone, taught, atol=1e-3)
    quiet(student)
    acting = begin(student, teacher, probability=0.0)
    torch.testing.assert_close(answers(student), taught)
    student.eval()
    torch.testing.assert_close(answers(student), alone)
    acting.remove()
    quiet(student)
    acting = begin(student, teacher, probability=1.0)
    torch.testing.assert_close(answers(student), alone)
    acting.remove()


@pytest.mark.parametrize("variant", ["bert", "albert", "gpt2", "t5", "modernbert"])
def test_as_many_layers_as_the_teacher_has_are_grafted_one_by_one(variant, monkeypatch):
    student, teacher = pair(variant, keep=3, num_decoder_layers=3) if variant == "t5" else pair(variant, keep=3)
    quiet(student)
    acting = begin(student, teacher, probability=0.5)
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: 0.9)
    torch.testing.assert_close(answers(student), answers(teacher))
    acting.remove()


def test_each_layer_is_drawn_by_itself(monkeypatch):
    """Student layer 0, then the teacher's second group, computed here by hand."""
    student, teacher = pair("bert", head="AutoModel")
    quiet(student)
    acting = begin(student, teacher, probability=0.5)
    draws = iter([0.1, 0.9])
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: next(draws))
    inputs = tiny.batch(student)
    with torch.no_grad():
        found = student(**inputs).last_hidden_state
        mask = inputs["attention_mask"][:, None, None, :].bool().expand(-1, 1, 9, -1)
        states = student.embeddings(inputs["input_ids"])
        for block in (student.encoder.layer[0], teacher.encoder.layer[2]):
            states = block.eval()(states, mask)
    acting.remove()
    torch.testing.assert_close(found, states)


@pytest.mark.parametrize("variant", ["bert", "t5", "deberta-v3"])
def test_gradients_flow_through_the_teacher_and_leave_it_alone(variant, monkeypatch):
    student, teacher = pair(variant)
    quiet(student)
    acting = begin(student, teacher, probability=0.5, frozen=False)
    draws = iter([0.1, 0.9, 0.9, 0.9])
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: next(draws))
    student(**tiny.batch(student))[0].square().sum().backward()
    acting.remove()
    first, second = (student.get_submodule(block.path) for block in dissect(student).stacks[0].blocks)
    assert next(first.parameters()).grad is not None
    assert next(second.parameters()).grad is None
    assert all(one.grad is None and one.requires_grad for one in teacher.parameters())


@pytest.mark.parametrize("reads", ["output_hidden_states"])
def test_states_of_the_teacher_are_noted_as_those_of_the_layer(reads):
    student, teacher = pair("bert")
    with torch.no_grad():
        wanted = teacher(**tiny.batch(teacher), **{reads: True}).hidden_states  # installs hooks that note states
    quiet(student)
    acting = begin(student, teacher, probability=0.0)
    found = student(**tiny.batch(student), **{reads: True}).hidden_states
    acting.remove()
    for mine, theirs in zip(found, (wanted[0], wanted[2], wanted[3]), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_kind_of_attention_is_the_students():
    student, teacher = pair("bert")
    taught = answers(teacher)
    student.set_attn_implementation("eager")
    quiet(student)
    acting = begin(student, teacher, probability=0.0)
    torch.testing.assert_close(answers(student), taught)
    acting.remove()
    assert teacher.config._attn_implementation == "sdpa"


def test_names_and_storage_stay():
    student, teacher = pair("bert")
    names, taught = list(student.state_dict()), {n: t.clone() for n, t in teacher.state_dict().items()}
    acting = begin(student, teacher)
    assert list(student.state_dict()) == names
    held = acting.stand_ins[0][0].attention.self.query.weight
    assert held.data_ptr() == teacher.bert.encoder.layer[0].attention.self.query.weight.data_ptr()
    acting.remove()
    acting.remove()
    assert not [one for one in student.modules() if "forward" in vars(one)]
    assert all(torch.equal(taught[name], one) for name, one in teacher.state_dict().items())


def run(work, variant="bert", during=None, learn=None, **changes):
    student, teacher = pair(variant)
    options = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "work": work, "teachers": (teacher,), **changes}
    done = train(student, rows(), learn or TASK, during=[during or ReplaceModules()], **options)
    return student, teacher, done


@pytest.mark.parametrize("variant", ["bert", "roberta", "distilbert", "albert", "gpt2", "llama", "t5", "bart"])
def test_only_layers_move_until_the_probability_is_1(tmp_path, variant):
    start, taught = pair(variant)
    student, teacher, _ = run(tmp_path / "work", variant, ReplaceModules(probability=0.5), max_steps=4)
    tables = tuple({block.attention.head_bias for stack in dissect(start).stacks for block in stack.blocks} - {""})
    for (name, old), new in zip(start.named_parameters(), student.parameters(), strict=True):
        still = not in_layers(start, name) or name.startswith(tables or "\0")
        if still:
            assert torch.equal(old, new), name
    moved = [not torch.equal(a, b) for a, b in zip(start.parameters(), student.parameters(), strict=True)]
    assert any(moved)
    assert all(torch.equal(a, b) for a, b in zip(taught.parameters(), teacher.parameters(), strict=True))
    lissom.save(student, tmp_path / "saved", tokenizer=None)
    again, inputs = lissom.load(tmp_path / "saved"), tiny.batch(student)
    assert torch.equal(tiny.outputs(student, inputs), tiny.outputs(again, inputs))


def test_everything_moves_once_the_probability_is_1(tmp_path):
    start, _ = pair("bert")
    student, _, _ = run(tmp_path, during=ReplaceModules(probability=Ramp(start=0.5, end=1.0, finish=0.2)))
    same = [name for (name, a), b in zip(start.named_parameters(), student.parameters(), strict=True) if a.equal(b)]
    assert same == []
    student, _, _ = run(tmp_path / "free", during=ReplaceModules(probability=0.5, frozen=False))
    pairs = zip(start.bert.embeddings.parameters(), student.bert.embeddings.parameters(), strict=True)
    assert not any(a.equal(b) for a, b in pairs)


def test_a_step_without_any_layer_of_the_student_changes_nothing(tmp_path):
    start, _ = pair("bert")
    student, _, _ = run(tmp_path, during=ReplaceModules(probability=0.0), max_steps=2)
    assert all(a.equal(b) for a, b in zip(start.parameters(), student.parameters(), strict=True))


def test_weights_are_chosen_when_the_student_is_alone(tmp_path):
    scores = iter([0.9, 0.8, 0.7, 0.6])
    _, _, done = run(tmp_path, epochs=4, validate=lambda model: next(scores))
    assert (done.best_step, done.score) == (10, 0.8), "the first epoch at whose end p is 1"


def test_hidden_states_can_be_learnt_with_it(tmp_path):
    learn = {"hidden": OBJECTIVES["hidden"](), "logits": OBJECTIVES["logits"]()}
    student, _, done = run(tmp_path, learn=learn, max_steps=3)
    assert done.steps == 3
    assert not torch.equal(answers(student), answers(pair("bert")[0]))


class Stop:
    def __call__(self, phrase, fraction):
        if round(10 * fraction) == 7:
            raise KeyboardInterrupt


@pytest.mark.parametrize("variant", ["bert", "albert"])
def test_an_interrupted_run_continues_to_the_same_bytes(tmp_path, variant):
    options = {"save_seconds": 0, "during": ReplaceModules(probability=Ramp(start=0.3, end=1.0, finish=0.8))}
    whole, _, _ = run(tmp_path / "whole", variant, **options)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", variant, report=Stop(), **options)
    resumed, _, done = run(tmp_path / "cut", variant, **options)
    assert done.resumed == 6
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def fails(student, teacher):
    with pytest.raises(LissomError) as caught:
        ReplaceModules().check(dissect(student), teacher)
    return str(caught.value)


def test_what_cannot_stand_in_is_said_before_any_work():
    bert = tiny.model("bert")
    assert "LSM-319 replace_modules: 3 layers of the student for 2" in fails(bert, pair("bert")[0])
    assert "states are 32 numbers wide, the teacher's 64" in fails(bert, tiny.model("bert", hidden_size=64))
    assert "heads are 8 numbers wide, the teacher's 16" in fails(bert, tiny.model("bert", num_attention_heads=2))
    assert "kind BertLayer, the teacher's RobertaLayer" in fails(bert, tiny.model("roberta"))
    assert "not the same stacks" in fails(bert, tiny.model("gpt2"))
    assert "position bias of 4 heads, the teacher's 2" in fails(tiny.model("t5"), tiny.model("t5", num_heads=2))
    student, teacher = pair("modernbert")
    assert "LSM-715" in fails(student, teacher)
    packed = copy.deepcopy(bert)
    packed.encoder.layer[0].output.dense = lissom.nn.Int8Linear(48, 32)
    assert "LSM-713" in fails(bert, packed)


def test_a_recipe_is_told_what_it_lacks():
    student, teacher = pair("bert")
    step, reader = Tune(learn={"task": {}}, while_=({"replace_modules": {}},)), tiny.tokenizer()
    step.check(dissect(student), Given(teacher=teacher, tokenizer=reader))
    with pytest.raises(LissomError, match="LSM-317 while: replace_modules works with a teacher"):
        step.check(dissect(student), Given(tokenizer=reader))


@pytest.mark.parametrize("during", ["replace_modules", "layer_drop"])
def test_attention_of_layers_that_do_not_run_cannot_be_learnt(during):
    student, teacher = pair("bert")
    step = Tune(learn={"attention": {}}, while_=({during: {}},))
    with pytest.raises(LissomError, match=f"LSM-319 while: attention compares .*, which layers lack under {during}"):
        step.check(dissect(student), Given(teacher=teacher, tokenizer=tiny.tokenizer()))
