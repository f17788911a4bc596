import shutil

import pytest
import torch

from lissom.data import Task, load_data
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods import METHODS, Given
from lissom.store import load, save
from lissom.train.finetune import finetune, with_head
from tests import tiny
from tests.train.tiny_rows import tokenizer, topics


def task(kind="classification", labels=("a", "b", "c")):
    return Task(kind=kind, labels=labels, metric="accuracy")


def equal_bodies(left, right):
    right = right.base_model.state_dict()
    return all(torch.equal(one, right[name]) for name, one in left.base_model.state_dict().items() if name in right)


def test_a_bare_encoder_gets_a_head_with_names():
    bare = tiny.model("bert")
    made = with_head(bare, task())
    assert type(made).__name__ == "BertForSequenceClassification"
    assert made.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert made.config.label2id == {"a": 0, "b": 1, "c": 2}
    assert made.config.num_labels == 3
    assert made.config.problem_type == "single_label_classification"
    assert equal_bodies(made, bare)
    assert bare.config.id2label != made.config.id2label


@pytest.mark.parametrize(
    ("kind", "labels", "name", "outputs"),
    [
        ("regression", (), "SequenceClassification", 1),
        ("tagging", ("O", "B-x", "I-x"), "TokenClassification", 3),
        ("question_answering", (), "QuestionAnswering", 2),
    ],
)
def test_a_head_for_every_kind(kind, labels, name, outputs):
    bare = tiny.model("bert", num_labels=2)
    made = with_head(bare, task(kind, labels))
    assert type(made).__name__ == f"BertFor{name}"
    assert made.config.num_labels == outputs
    assert equal_bodies(made, bare)


def test_the_head_depends_on_the_seed_alone():
    first, second, third = (with_head(tiny.model("bert"), task(), seed=seed).classifier.weight for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_a_head_that_fits_is_kept_and_another_is_replaced():
    model = tiny.model("bert", "AutoModelForSequenceClassification", num_labels=3)
    assert torch.equal(with_head(model, task()).classifier.weight, model.classifier.weight)
    assert with_head(model, task(labels=("a", "b"))).classifier.weight.shape == (2, 32)


def test_a_decoder_learns_which_token_pads():
    bare = tiny.model("gpt2", pad_token_id=None)
    assert with_head(bare, task(), pad_id=7).config.pad_token_id == 7


def test_no_such_head():
    with pytest.raises(LissomError) as caught:
        with_head(tiny.model("t5", "AutoModelForSeq2SeqLM"), task("language_modelling"))
    assert str(caught.value) == "LSM-716 there is no head for language modelling on t5. Use a model of another family."


@pytest.mark.parametrize("head", ["AutoModel", "AutoModelForMaskedLM", "AutoModelForSequenceClassification"])
def test_an_encoder_cannot_learn_to_go_on_with_texts(head, tmp_path):
    data = load_data({split: {"text": tiny.texts(20)} for split in ("train", "validation")})
    with pytest.raises(LissomError, match=r"LSM-826 Bert\w+ reads a text in one go, .* Give texts with labels"):
        finetune(tiny.model("bert", head), data, tokenizer=tiny.tokenizer(), work=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("family", "changes"), [("gpt2", {}), ("llama", {}), ("bert", {"is_decoder": True})])
def test_a_decoder_goes_on_with_texts(family, changes):
    made = with_head(tiny.model(family, **changes), task("language_modelling", ()))
    assert "LM" in type(made).__name__


def test_a_compressed_model_is_refused():
    model = tiny.model("bert")
    model.encoder.layer[0].intermediate.dense = torch.nn.Linear(32, 8)
    with pytest.raises(
        LissomError, match=r"LSM-716 encoder\.layer\.0\.intermediate\.dense\.bias: the model does not have"
    ):
        with_head(model, task())


@pytest.mark.parametrize("name", ["int8", "svd"])
def test_layers_that_hold_something_else_are_never_read_as_weights(name):
    editor = Editor(tiny.model("bert", "AutoModelForSequenceClassification"))
    METHODS[name]().apply(editor, Given())
    with pytest.raises(LissomError, match="LSM-716"):
        with_head(editor.model, task())


def test_a_bare_encoder_becomes_a_teacher(tmp_path):
    torch.set_num_threads(1)
    data = topics()
    bare = tiny.model("bert")
    before = {name: one.clone() for name, one in bare.state_dict().items()}
    made, done = finetune(
        bare, data, tokenizer=tokenizer(), epochs=4, learning_rate=1e-2, batch_size=8, max_length=16, work=tmp_path
    )
    assert done.score > 0.9
    assert not made.training
    assert all(torch.equal(one, before[name]) for name, one in bare.state_dict().items())


def test_nothing_is_resumed_from_a_folder_that_is_named_as_a_model(tmp_path, monkeypatch):
    """Files of another trainer in a model's folder are pickles, or of another run: none of them is opened."""

    def refuse(*args, **kwargs):
        raise AssertionError("opened")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr("lissom.train.checkpoint.read_optimizer", refuse)
    torch.set_num_threads(1)
    options = {"tokenizer": tokenizer(), "epochs": 1, "batch_size": 8, "max_length": 16}
    clean, _ = finetune(tiny.model("bert"), topics(), work=tmp_path / "a", **options)
    folder = tmp_path / "model"
    save(tiny.model("bert"), folder)
    left = next((tmp_path / "a").glob("tune-*/checkpoint-*"))
    for place in (folder, folder / left.name):
        shutil.copytree(left, place / left.parent.name / left.name)
        shutil.copytree(left, place / left.name)
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
            (place / name).write_bytes(b"\x80\x02.")
        shutil.copy(left / "trainer_state.json", place)
    made, done = finetune(load(folder), topics(), work=tmp_path / "b", **options)
    assert (done.resumed, done.steps) == (0, 12)
    assert all(torch.equal(one, clean.state_dict()[name]) for name, one in made.state_dict().items())
