import json
import re
from pathlib import Path

import pytest
import torch

import lissom
from lissom.bench.table import reasons
from lissom.check import check
from lissom.compress import data_for, measured_split
from lissom.errors import LissomError
from lissom.plan import plan
from lissom.recipe import Recipe
from lissom.store import save
from tests import tiny
from tests.train.tiny_rows import tokenizer as words

HEAD = "AutoModelForSequenceClassification"


def recipe(steps: str) -> Recipe:
    return Recipe.parse(f"{{lissom: 1, steps: [{steps}]}}", "here")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory):
    """int8 on a local folder with data."""
    teacher = save(tiny.model("bert", HEAD), tmp_path_factory.mktemp("made") / "teacher", tokenizer=tiny.tokenizer())
    data = {"train": tiny.labelled_texts(60), "test": tiny.labelled_texts(30, seed=1)}
    return lissom.compress(teacher, recipe("int8"), data=data)


def test_a_local_path_is_not_written_down(result, tmp_path: Path) -> None:
    result.save(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "lissom.json").read_text())["base"] is None
    assert "base_model" not in (tmp_path / "out" / "README.md").read_text()


def test_the_gate_of_the_examples_can_be_met(result, tmp_path: Path) -> None:
    result.save(tmp_path / "out")
    assert all(one.met for one in check(tmp_path / "out", "keep>=0.1,size_mb<=30"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_worked_on_and_planned_in_float32(dtype: torch.dtype) -> None:
    model, steps = tiny.model("bert", HEAD).to(dtype), recipe("keep_layers: {keep: 2}")
    made = lissom.compress(model, steps).model
    assert {one.dtype for one in made.parameters()} == {torch.float32}
    found = plan(model, steps, tokenizer=tiny.tokenizer())
    assert found.after.size_mb == sum(one.numel() for one in made.parameters()) * 4 / 1e6
    assert any("float32" in note for note in found.notes)
    assert model.dtype == dtype


def test_the_original_is_as_large_as_its_files(tmp_path: Path) -> None:
    model = tiny.model("bert", HEAD).half()
    folder = save(model, tmp_path / "half", tokenizer=tiny.tokenizer())
    data = {"train": tiny.labelled_texts(60), "test": tiny.labelled_texts(30, seed=1)}
    rows = lissom.compress(folder, recipe("keep_layers: {keep: 2}"), data=data).rows
    size = {row.subject: row.reading("size_mb").value for row in rows}
    assert size["original"] == (tmp_path / "half" / "model.safetensors").stat().st_size / 1e6
    assert size["compressed"] > size["original"], "float32 layers, though fewer, are more than all in float16"


@pytest.mark.parametrize("steps", ["tune", "prune_heads: {by: first-order}", "prune_neurons: {by: first-order}"])
def test_what_needs_gradients_refuses_packed_layers(result, steps: str) -> None:
    data = {"train": tiny.labelled_texts(60), "test": tiny.labelled_texts(30, seed=1)}
    with pytest.raises(LissomError, match=r"LSM-713 .*a packed layer has none"):
        lissom.compress(result.model, recipe(steps), data=data, tokenizer=tiny.tokenizer())


@pytest.mark.parametrize(("family", "head"), [("t5", "AutoModelForSeq2SeqLM"), ("bart", "AutoModel")])
def test_running_text_is_refused_before_any_work_by_models_that_do_not_go_on_with_it(family: str, head: str) -> None:
    texts = {"train": {"text": tiny.texts(30)}, "test": {"text": tiny.texts(20, seed=1)}}
    told: list[str] = []
    with pytest.raises(LissomError, match=r"LSM-826 .*language modelling"):
        lissom.compress(
            tiny.model(family, head),
            recipe("{keep_layers: {keep: 1, by: importance, stack: encoder}}"),
            data=texts,
            tokenizer=tiny.tokenizer(),
            report=lambda what, done: told.append(what),
        )
    assert not told


# texts without labels

TEXTS = {
    split: {"text": tiny.texts(count, seed)} for seed, (split, count) in enumerate({"train": 30, "test": 20}.items())
}


def test_without_labels_a_classifier_is_compared_with_the_original(tmp_path: Path) -> None:
    model = tiny.model("bert", HEAD)
    done = lissom.compress(model, recipe("keep_layers: {keep: 2}"), data=TEXTS, tokenizer=tiny.tokenizer())
    assert [row.data["split"] for row in done.rows] == ["test", "test"]
    found = done.readings
    assert 0 <= found["label_loyalty"] <= 1
    assert 0 < found["probability_loyalty"] < 1
    assert found["flops"] > 0
    assert found["accuracy"] is None
    assert "keep" not in found
    assert reasons([row.as_dict() for row in done.rows]) == ["Accuracy: Not taken: this split has no labels."]
    done.save(tmp_path / "out")
    assert not check(tmp_path / "out", "accuracy>=0.1")[0].met
    assert check(tmp_path / "out", "label_loyalty>=0")[0].met
    done.report(tmp_path / "page.html")


@pytest.mark.parametrize("split", ["", "test"])
def test_quality_without_labels_is_refused_before_any_work(split: str) -> None:
    told: list[str] = []
    with pytest.raises(LissomError, match=r"LSM-206 data: quality cannot be kept: the split test has no labels"):
        lissom.compress(
            tiny.model("bert", HEAD),
            recipe("keep_layers: {keep: 2}"),
            data=TEXTS,
            tokenizer=tiny.tokenizer(),
            keep=0.5,
            split=split,
            report=lambda what, done: told.append(what),
        )
    assert not told


@pytest.mark.parametrize(
    ("labelled", "measured"),
    [((), "test"), (("train",), "train"), (("validation",), "validation"), (("train", "test"), "test")],
)
def test_the_split_that_is_measured_has_labels_where_one_has(labelled: tuple[str, ...], measured: str) -> None:
    splits = {
        split: tiny.labelled_texts(30, seed) if split in labelled else {"text": tiny.texts(30, seed)}
        for seed, split in enumerate(("train", "validation", "test"))
    }
    assert measured_split(data_for(tiny.model("bert", HEAD), splits, 0)) == measured


# teachers other than the original

DATA = {"train": tiny.labelled_texts(40), "test": tiny.labelled_texts(20, seed=1)}
TUNE = "tune: {max_steps: 2, batch_size: 8}"


def distil(teacher: object, student: object = None, steps: str = TUNE, **changes: object):
    torch.set_num_threads(1)
    student = student or tiny.model("bert", HEAD, num_hidden_layers=2)
    return lissom.compress(student, recipe(steps), data=DATA, tokenizer=tiny.tokenizer(), teacher=teacher, **changes)


def test_a_teacher_is_learnt_from_and_compared_with(tmp_path: Path) -> None:
    large = tiny.model("bert", HEAD, seed=1, hidden_size=64)
    folder = save(large, tmp_path / "large", tokenizer=tiny.tokenizer())
    done = distil(folder, steps="tune: {max_steps: 3, batch_size: 8, learn: {logits: {}, hidden: {}}}", keep=0.0)
    assert [row.subject for row in done.rows] == [done.reference, "compressed"] == ["teacher", "compressed"]
    counted = sum(one.numel() for one in large.parameters())
    assert done.rows[0].reading("parameters").value == counted
    assert done.met
    other = distil(tiny.model("bert", HEAD, seed=2), steps="tune: {max_steps: 3, batch_size: 8, learn: {logits: {}}}")
    alone = distil(None, steps="tune: {max_steps: 3, batch_size: 8, learn: {logits: {}}}")
    assert alone.reference == "original"
    weights = [torch.cat([one.flatten() for one in made.model.parameters()]) for made in (other, alone)]
    assert not torch.equal(*weights)
    done.save(tmp_path / "out")
    assert "teacher" in (tmp_path / "out" / "README.md").read_text()
    done.report(tmp_path / "page.html")


def test_several_teachers_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    teachers = [tiny.model("bert", HEAD, seed=seed) for seed in (1, 2)]
    for number, one in enumerate(teachers):
        one.register_forward_hook(lambda module, args, output, number=number: asked.append(number))
    distil(teachers, steps="tune: {max_steps: 2, batch_size: 8, learn: {logits: {teachers: confidence}}}")
    assert set(asked) == {0, 1}


def test_teachers_that_read_or_answer_otherwise_are_refused(tmp_path: Path) -> None:
    folder = save(tiny.model("bert", HEAD, seed=1), tmp_path / "other", tokenizer=words())
    named = {"id2label": {0: "a", 1: "b", 2: "c"}}
    mixed = {"id2label": {0: "b", 1: "a", 2: "c"}}
    masked = tiny.model("bert", "AutoModelForMaskedLM")
    cases = (
        (
            folder,
            None,
            f"LSM-319 {folder}: the teacher reads other tokens than the model: 98 of 99 differ or are missing.",
        ),
        (tiny.model("bert", HEAD, vocab_size=50), None, "LSM-319 teacher: the teacher knows 50 tokens, the tokenizer"),
        (tiny.model("bert", HEAD, num_labels=4), None, "the teacher answers LABEL_0, LABEL_1, LABEL_2, LABEL_3, the"),
        (tiny.model("bert", HEAD, **mixed), tiny.model("bert", HEAD, **named), "answers b, a, c, the model a, b, c."),
        (masked, None, "LSM-826 data: BertForMaskedLM has no head for classification."),
    )
    for teacher, student, message in cases:
        with pytest.raises(LissomError) as caught:
            distil(teacher, student)
        assert message in str(caught.value)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_an_original_in_16_bits_is_compared_on_equal_terms(kind: torch.dtype, tmp_path: Path) -> None:
    model = tiny.model("bert", HEAD).to(kind)
    lissom.save(model, tmp_path / "half", tokenizer=tiny.tokenizer())
    for source in (model, tmp_path / "half"):
        (note,) = lissom.compress(source, recipe("keep_layers: {keep: 2}")).notes
        assert f"stored in {str(kind).removeprefix('torch.')}" in note
        before, after = (float(one) for one in re.findall(r"([\d.]+) MB", note))
        assert before >= after > 0
        assert "step half" in note
    assert not lissom.compress(source, recipe("{keep_layers: {keep: 2}}, {half: {}}")).notes
    assert not lissom.compress(tiny.model("bert", HEAD), recipe("keep_layers: {keep: 2}")).notes
