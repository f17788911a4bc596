"""Models that embed texts, from the files of sentence-transformers to a compressed artifact in every engine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import lissom
from lissom.anatomy import is_bare, note_sentence, sentence_of
from lissom.check import verify
from lissom.compress import data_for, measured_split
from lissom.data import encode, load_data
from lissom.errors import LissomError
from lissom.files import Sentence, read_sentence, write_sentence
from lissom.measure.loyalty import closeness
from lissom.measure.quality import scores_of, texts_of
from lissom.recipe import Recipe
from lissom.runtime import TorchRunner, open_runner
from lissom.runtime.runner import embed
from lissom.store import load, save
from tests import tiny
from tests.measure.fakes import Fake

TEXTS = {"train": {"text": tiny.texts(30)}, "test": {"text": tiny.texts(20, seed=1)}}
PAIRS = {
    split: {"text_a": tiny.texts(12, seed), "text_b": tiny.texts(12, seed + 5), "label": [row / 2 for row in range(12)]}
    for seed, split in enumerate(("train", "test"))
}
CLS = Sentence(pooling="cls", normalize=False, max_length=12)


def run(data: object, steps: str = "int8: {per: token}", model: object = None, **options: object):
    torch.set_num_threads(1)
    recipe = Recipe.parse(f"lissom: 1\nname: small\nsteps:\n  - {steps}\n", "small.yaml")
    return lissom.compress(
        model or tiny.model("bert"), recipe, data=data, tokenizer=tiny.tokenizer(), max_length=32, **options
    )


# the files of sentence-transformers


@pytest.mark.parametrize(
    "sentence", [CLS, Sentence(), Sentence(pooling="cls", max_length=7), Sentence(normalize=False)]
)
def test_what_is_written_is_read(tmp_path: Path, sentence: Sentence) -> None:
    write_sentence(sentence, tmp_path, 16)
    assert read_sentence(tmp_path) == sentence


def test_newer_files_name_the_pooling(tmp_path: Path) -> None:
    write_sentence(CLS, tmp_path, 16)
    (tmp_path / "1_Pooling" / "config.json").write_text('{"embedding_dimension": 16, "pooling_mode": "cls"}')
    kinds = ("base.modules.transformer.Transformer", "sentence_transformer.modules.pooling.Pooling")
    modules = [
        {"path": path, "type": f"sentence_transformers.{kind}"}
        for path, kind in zip(("", "1_Pooling"), kinds, strict=True)
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert read_sentence(tmp_path) == CLS


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", '[{"type": "a.Transformer"}, {"type": "b.Pooling"}, {"type": "c.Dense"}]', "asks for Transf"),
        ("modules.json", '{"a": 1}', "it is no list of modules"),
        ("1_Pooling/config.json", '{"pooling_mode_max_tokens": true}', "it pools by max_tokens; lissom knows mean and"),
        ("1_Pooling/config.json", '{"pooling_mode": ["mean", "cls"]}', "it pools by mean, cls; lissom knows"),
        ("sentence_bert_config.json", '{"do_lower_case": true}', "do_lower_case changes a text before it is read"),
        ("config_sentence_transformers.json", '{"default_prompt_name": "query"}', "default_prompt_name changes a text"),
    ],
)
def test_what_is_not_computed_is_refused(tmp_path: Path, file: str, content: str, message: str) -> None:
    write_sentence(Sentence(), tmp_path, 16)
    (tmp_path / file).write_text(content)
    with pytest.raises(LissomError, match=f"LSM-436 .*{message}"):
        read_sentence(tmp_path)


def test_a_path_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    write_sentence(Sentence(), tmp_path, 16)
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules[1]["path"] = "../elsewhere"
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(LissomError, match="LSM-421"):
        read_sentence(tmp_path)


def test_embeddings_by_hand() -> None:
    hidden, mask = np.array([[[3.0, 0.0], [3.0, 8.0], [99.0, 99.0]]], np.float32), np.array([[1, 1, 0]])
    for how, wanted in (
        (Sentence(), [0.6, 0.8]),
        (Sentence(normalize=False), [3.0, 4.0]),
        (Sentence(pooling="cls"), [1.0, 0.0]),
        (CLS, [3.0, 0.0]),
    ):
        np.testing.assert_allclose(embed(hidden, mask, how), [wanted], atol=1e-6)


@pytest.mark.parametrize(
    ("variant", "head", "bare"),
    [
        ("bert", "AutoModel", True),
        ("distilbert", "AutoModel", True),
        ("bert", "AutoModelForMaskedLM", False),
        ("gpt2", "AutoModelForCausalLM", False),
        ("bart", "AutoModel", False),
    ],
)
def test_which_models_embed_texts(variant: str, head: str, bare: bool) -> None:
    assert is_bare(tiny.model(variant, head)) == bare


# the task


@pytest.mark.parametrize(
    ("columns", "metric", "split"),
    [
        ({"text": ["a", "b"]}, "cosine", "test"),
        ({"text_a": ["a", "b"], "text_b": ["c", "d"]}, "cosine", "test"),
        ({"text_a": ["a", "b"], "text_b": ["c", "d"], "label": [0.5, 4.0]}, "spearman", "validation"),
    ],
)
def test_what_the_data_asks_of_a_model_without_a_head(columns: dict, metric: str, split: str) -> None:
    test = {name: cells for name, cells in columns.items() if name != "label"}
    found = data_for(tiny.model("bert"), load_data({"train": columns, "validation": columns, "test": test}), 0)
    assert (found.task.kind, found.task.metric, measured_split(found)) == ("embedding", metric, split)


@pytest.mark.parametrize(
    "columns", [{"text": ["a", "b"], "label": [0.5, 4.0]}, {"text": ["a", "b"], "label": ["x", "y"]}]
)
def test_labels_of_single_texts_want_a_head(columns: dict) -> None:
    with pytest.raises(LissomError, match=r"LSM-826 .*BertModel has no head for .*lissom finetune"):
        data_for(tiny.model("bert"), load_data({"train": columns}), 0)


def test_texts_of_a_pair_are_read_apart() -> None:
    data = load_data({"test": {"text_a": ["w3 w4", "w5"], "text_b": ["w6", "w7 w8 w9"]}}).for_embedding()
    rows = data.split("test")
    alone = [tiny.tokenizer()(text)["input_ids"] for text in ("w3 w4", "w6", "w5", "w7 w8 w9")]
    assert encode(rows, tiny.tokenizer(), data.task, 16)["input_ids"] == alone
    assert texts_of(rows, data.task) == ["w3 w4", "w5", "w6", "w7 w8 w9"]


def test_cosine_by_hand() -> None:
    mine, theirs = np.array([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), np.array([[1.0, 0.0], [3.0, 4.0], [1.0, 1.0]])
    assert closeness(mine, theirs).point() == pytest.approx((1 + 0.8 + 0) / 3)


def test_pairs_are_ranked_by_their_cosines() -> None:
    generator = np.random.default_rng(0)
    vectors, gold = generator.normal(size=(12, 4)), [0.0, 1.5, 3.0, 4.5, 5.0, 2.5]
    data = load_data({"test": {"text_a": list("abcdef"), "text_b": list("ghijkl"), "label": gold}}).for_embedding()
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    wanted = stats.spearmanr((units[:6] * units[6:]).sum(1), gold)[0]
    first, second = scores_of(vectors, data.split("test"), data.task)
    assert (first.name, second.name) == ("spearman", "pearson")
    assert first.point() == pytest.approx(wanted)
    assert "cosines of the texts of pairs" in first.how


@pytest.mark.parametrize("embeds", [True, False])
def test_one_that_embeds_and_one_that_does_not_are_not_compared(embeds: bool) -> None:
    runner = TorchRunner(tiny.model("bert"), tiny.tokenizer())
    data = load_data({"test": {"text": ["w3", "w4"], **({} if embeds else {"label": [0, 1]})}})
    subjects = {"bare": runner, "other": Fake()} if embeds else {"bare": runner}
    with pytest.raises(LissomError, match=r"LSM-826 the model answers (no )?embeddings, the data is for"):
        lissom.measure(subjects, data, metrics=["cosine", "accuracy"])


# from command to artifact


@pytest.fixture(scope="module")
def compressed():
    model = tiny.model("bert")
    note_sentence(model, CLS)
    return run(TEXTS, model=model, keep=0.9)


def test_texts_alone_are_judged_by_their_cosines(compressed) -> None:
    assert compressed.rows[0].reading("cosine").value == 1.0
    found = compressed.readings
    assert 0.9 < found["cosine"] < 1
    assert found["keep"] == pytest.approx(found["cosine"])
    assert compressed.met
    reading = compressed.rows[1].reading("cosine")
    assert reading.low <= reading.value <= reading.high
    assert reading.n == 20
    assert "label_loyalty" not in found


def test_pairs_are_judged_by_their_labels() -> None:
    done = run(PAIRS, keep=0.5)
    found = done.readings
    assert list(found)[:3] == ["spearman", "keep", "cosine"]
    assert found["keep"] == pytest.approx(found["spearman"] / done.rows[0].reading("spearman").value)
    assert done.rows[1].reading("cosine").n == 24


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_every_engine_embeds_alike(compressed, tmp_path: Path, target: str) -> None:
    pytest.importorskip({"onnx": "onnxruntime"}.get(target, target))
    compressed.save(tmp_path / "saved")
    texts = TEXTS["test"]["text"]
    first = open_runner(tmp_path / "saved")
    assert first.sentence == CLS
    assert first.max_length == 12
    ours = first.predict(texts)
    mine = TorchRunner(compressed.model, tiny.tokenizer())
    np.testing.assert_array_equal(ours, mine.predict(texts))
    lissom.export(tmp_path / "saved", target, tmp_path / "out")
    runner = open_runner(tmp_path / "out")
    assert (runner.sentence, runner.max_length) == (CLS, 12)
    assert closeness(runner.predict(texts), ours).point() > 0.999
    assert {"modules.json", "1_Pooling/config.json"} <= set(verify(tmp_path / "out"))


def test_a_student_keeps_how_the_original_pools(tmp_path: Path) -> None:
    model = tiny.model("bert")
    note_sentence(model, CLS)
    done = run(TEXTS, "fresh_student: {layers: 1}", model)
    assert sentence_of(load(save(done.model, tmp_path / "one"))) == CLS


def test_states_can_be_learnt_and_answers_cannot() -> None:
    learn = "tune: {max_steps: 2, batch_size: 8, learn: {%s: {}}}"
    done = run(PAIRS, learn % "hidden")
    assert done.readings["cosine"] < 1
    with pytest.raises(LissomError, match=r"LSM-319 .*learn: logits learns answers, and a model without a head"):
        run(PAIRS, learn % "logits")


def test_sentence_transformers_reads_the_folder(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    model = tiny.model("bert")
    note_sentence(model, Sentence(normalize=False, max_length=12))
    save(model, tmp_path / "saved", tokenizer=tiny.tokenizer())
    theirs = library.SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(TEXTS["test"]["text"])
    np.testing.assert_allclose(open_runner(tmp_path / "saved").predict(TEXTS["test"]["text"]), theirs, atol=1e-5)
