"""Data with texts that are to be written, and the models with an encoder and a decoder that write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

import lissom
from lissom.compress import data_for, measured_split
from lissom.data import encode, load_data
from lissom.data.batches import pad
from lissom.errors import LissomError
from lissom.measure.written import foreseen
from lissom.recipe import Recipe
from lissom.runtime import TorchRunner
from lissom.train.answers import forced
from lissom.train.finetune import finetune
from lissom.train.objectives.base import Answers
from lissom.train.objectives.layers import sides
from tests import tiny
from tests.train.tiny_rows import tokenizer

HEAD = "AutoModelForSeq2SeqLM"
FAMILIES = ("t5", "bart")


def copied(count: int, seed: int) -> dict[str, list[str]]:
    """Targets that repeat the first word of the text."""
    found = tiny.texts(count, seed, words=5)
    return {"text": found, "target": [one.split()[0] for one in found]}


DATA = {"train": copied(60, 0), "validation": copied(10, 1), "test": copied(20, 2)}


def run(model, steps: str, **options):
    torch.set_num_threads(1)
    recipe = Recipe.parse(f"lissom: 1\nname: small\nsteps:\n  - {steps}\n", "small.yaml")
    return lissom.compress(model, recipe, data=DATA, tokenizer=tiny.tokenizer(), max_length=32, **options)


# reading


@pytest.mark.parametrize(
    "names",
    [
        ("text", "target"),
        ("source", "target"),
        ("src", "tgt"),
        ("document", "summary"),
        ("article", "highlights"),
        ("dialogue", "summary"),
    ],
)
def test_the_usual_names_are_found(names: tuple[str, str]) -> None:
    data = load_data({names[0]: ["a long text", "another"], names[1]: ["short", "other"]})
    assert (data.task.kind, data.task.metric) == ("text_to_text", "perplexity")
    assert data.splits["all"][0] == {"text": "a long text", "target": "short"}


def test_other_names_are_given() -> None:
    columns = {"text": "en", "target": "fr"}
    data = load_data({"en": ["yes", "no"], "fr": ["oui", "non"]}, columns=columns)
    assert data.splits["all"]["target"][:] == ["oui", "non"]


def test_a_label_beside_the_target_is_the_task() -> None:
    data = load_data({"text": ["a", "b"], "target": ["c", "d"], "label": [0, 1]}, model_labels=("no", "yes"))
    assert data.task.kind == "classification"


def test_a_target_that_is_a_class_is_explained() -> None:
    with pytest.raises(LissomError) as caught:
        load_data({"text": ["a", "b"], "target": [0, 1]})
    assert str(caught.value).startswith('LSM-814 data row 1, column "target": "0" is no text.')
    assert "--column label=target" in str(caught.value)
    assert load_data({"text": ["a", "b"], "target": [0, 1]}, columns={"label": "target"}).task.kind == "classification"


def test_what_is_written_is_labelled() -> None:
    data = load_data({"text": ["ball goal match bank", "money"], "target": ["goal", "bank of money"]})
    rows = encode(data.splits["all"], tokenizer(), data.task, 5)
    assert rows["input_ids"][:] == [[2, 4, 5, 6, 3], [2, 8, 3]]
    assert rows["labels"][:] == [[2, 5, 3], [2, 7, 12, 8, 3]]
    assert pad(rows.to_list(), 0)["labels"].tolist() == [[2, 5, 3, -100, -100], [2, 7, 12, 8, 3]]


@pytest.mark.parametrize(
    ("variant", "head", "fits"),
    [("t5", HEAD, True), ("bart", HEAD, True), ("gpt2", "AutoModelForCausalLM", False), ("bert", "AutoModel", False)],
)
def test_who_writes_answers(variant: str, head: str, fits: bool) -> None:
    model = tiny.model(variant, head)
    if fits:
        assert measured_split(data_for(model, DATA, 0)) == "test"
        return
    with pytest.raises(LissomError, match=r"LSM-826 data: .* has no head for text to text"):
        data_for(model, DATA, 0)


def test_a_classifier_asks_for_the_label() -> None:
    with pytest.raises(LissomError, match="If target is the label, say so: --column label=target"):
        data_for(tiny.model("bert", "AutoModelForSequenceClassification"), DATA, 0)


# measuring


@pytest.mark.parametrize("variant", FAMILIES)
def test_loss_and_tokens_are_those_of_the_model(variant: str) -> None:
    model, words = tiny.model(variant, HEAD), tiny.tokenizer()
    pairs = [("w3 w4 w5", "w9 w7"), ("w8", "w6 w6 w5 w4")]
    found = foreseen(TorchRunner(model, words), pairs)
    for row, (text, target) in enumerate(pairs):
        labels = words(target, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(**words(text, return_tensors="pt"), labels=labels).logits[0]
        assert found.counts[row, 0] == pytest.approx(
            float(functional.cross_entropy(logits, labels[0], reduction="sum"))
        )
        assert found.said[row].tolist() == logits.argmax(-1).tolist()
        assert found.counts[row, 1:].tolist() == [int((logits.argmax(-1) == labels[0]).sum()), labels.shape[1]]


def test_perplexity_accuracy_and_loyalty_by_hand() -> None:
    class Spoken:
        """Says token 5 at each place with the odds 1/2, and each of two others with 1/4."""

        name, sentence, max_length, folder, files, labels = "torch", None, 16, None, (), ()
        tokens_per_batch, tokenizer = 64, None

        def __init__(self, likely: int) -> None:
            self.model, self.inner, self.likely = tiny.model("bart", HEAD), None, likely
            self.encode, self.pad = (getattr(TorchRunner(self.model, tokenizer()), name) for name in ("encode", "pad"))

        def forward(self, batch):
            logits = np.full((*batch["decoder_input_ids"].shape, 99), -1e9, np.float32)
            logits[..., [2, 3, 5]] = np.log(0.25)
            logits[..., self.likely] = np.log(0.5)
            return {"logits": logits}

    # special token 2, words, special token 3: (2 5 5 3) and (2 5 3)
    data = load_data({"test": {"text": ["ball", "goal"], "target": ["goal goal", "goal"]}})
    subjects = {"first": Spoken(5), "second": Spoken(3)}
    rows = lissom.measure(
        subjects, data, reference="first", metrics=["perplexity", "accuracy", "keep", "label_loyalty"]
    )
    first, second = (
        {one.name: one.value for one in row.readings} for row in rows
    )  # 3 of 7 tokens at 1/2, and 2 of 7 for the second
    assert first["perplexity"] == pytest.approx(2 ** (3 / 7) * 4 ** (4 / 7))
    assert second["perplexity"] == pytest.approx(2 ** (2 / 7) * 4 ** (5 / 7))
    assert (first["accuracy"], second["accuracy"]) == (pytest.approx(3 / 7), pytest.approx(2 / 7))
    assert second["keep"] == pytest.approx(first["perplexity"] / second["perplexity"])
    assert second["label_loyalty"] == 0


def test_models_that_do_not_write_are_refused() -> None:
    runner = TorchRunner(tiny.model("gpt2", "AutoModelForCausalLM"), tiny.tokenizer())
    with pytest.raises(LissomError, match="LSM-737 the data has written answers"):
        lissom.measure({"a": runner}, load_data(DATA), metrics=["perplexity"])


@pytest.mark.parametrize("variant", FAMILIES)
def test_a_plan_of_a_model_that_writes(variant: str) -> None:
    recipe = Recipe.parse("lissom: 1\nsteps: [int8]\n", "a.yaml")
    planned = lissom.plan(tiny.model(variant, HEAD), recipe, data=DATA, tokenizer=tiny.tokenizer(), max_length=32)
    assert planned.after.size_mb < planned.before.size_mb
    assert planned.before.latency_ms > 0


# training


@pytest.mark.parametrize("variant", FAMILIES)
def test_the_decoder_reads_the_labels_one_token_later(variant: str) -> None:
    model = tiny.model(variant, HEAD)
    labels = torch.tensor([[7, 8, 9], [5, -100, -100]])
    given = forced(model, {"input_ids": labels.clamp(0), "labels": labels})["decoder_input_ids"]
    first = model.config.decoder_start_token_id
    assert given.tolist() == [[first, 7, 8], [first, 5, model.config.pad_token_id]]


def test_each_side_has_its_own_mask() -> None:
    both = {"input_ids": torch.ones(1, 4, dtype=torch.long), "attention_mask": torch.tensor([[1, 1, 1, 0]])}
    written = {"labels": torch.tensor([[7, 8, -100]]), "decoder_input_ids": torch.ones(1, 3, dtype=torch.long)}
    output = tiny.model("bart", HEAD)(**both, **written, output_attentions=True, output_hidden_states=True)
    encoder, decoder, cross = sides(Answers(inputs={**both, **written}, student=output, teacher=output))
    assert encoder.mask.tolist() == [[True, True, True, False]]
    assert decoder.mask.tolist() == cross.mask.tolist() == [[True, True, False]]
    assert encoder.keys is decoder.keys is None
    assert cross.keys.tolist() == encoder.mask.tolist()


@pytest.mark.parametrize("variant", FAMILIES)
def test_it_is_learnt_distilled_and_saved(variant: str, tmp_path: Path) -> None:
    teacher, did = finetune(
        tiny.model(variant, HEAD),
        load_data(DATA),
        tokenizer=tiny.tokenizer(),
        epochs=4,
        learning_rate=3e-3,
        batch_size=8,
        work=tmp_path,
    )
    assert did.loss[1] < 0.8 * did.loss[0]
    learn = "{task: {}, logits: {}, hidden: {}, attention: {of: maps}}"
    done = run(teacher, f"tune: {{max_steps: 4, batch_size: 8, learn: {learn}}}", keep=0.1)
    assert all(np.isfinite(one) for one in done.steps[0]["did"]["loss"])
    assert {"perplexity", "keep", "label_loyalty"} <= set(done.readings)
    assert done.met
    done.save(tmp_path / "out")
    again = TorchRunner(lissom.load(tmp_path / "out"), tiny.tokenizer(), max_length=32)
    row = lissom.measure({"again": again}, load_data(DATA), metrics=["perplexity"])[0]
    assert row.reading("perplexity").value == pytest.approx(done.readings["perplexity"])


@pytest.mark.parametrize("variant", FAMILIES)
@pytest.mark.parametrize("steps", ["prune_heads: {ratio: 0.5, by: first-order}", "int8: {mode: static}"])
def test_other_steps_work_on_it(variant: str, steps: str) -> None:
    assert run(tiny.model(variant, HEAD), steps).readings["label_loyalty"] > 0


def test_export_says_why_not(tmp_path: Path) -> None:
    with pytest.raises(LissomError, match="LSM-741 T5ForConditionalGeneration generates with an encoder and a decoder"):
        lissom.export(tiny.model("t5", HEAD), "onnx", tmp_path / "out", tokenizer=tiny.tokenizer())
