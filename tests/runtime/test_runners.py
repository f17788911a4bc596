"""Both engines answer with the same call; answers come in the asked order whatever the batches."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissom.errors import LissomError
from lissom.files import Sentence
from lissom.runtime import OnnxRunner, Runner, TorchRunner, open_runner
from lissom.runtime.runner import embed, usable_length
from tests import tiny
from tests.runtime import made

TEXTS = ["good film", "a very bad film and a very bad end", "", "the end is near", "unknown", "good " * 60]


@pytest.fixture(scope="module")
def bert() -> TorchRunner:
    return TorchRunner(tiny.model("bert", "AutoModelForSequenceClassification"), made.tokenizer())


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> OnnxRunner:
    return OnnxRunner(made.exported(tmp_path_factory.mktemp("sums"), made.table()), threads=1)


@pytest.fixture(params=["bert", "sums"])
def runner(request: pytest.FixtureRequest) -> Runner:
    found: Runner = request.getfixturevalue(request.param)
    return found


def test_answers_equal_those_of_the_plain_model(bert: TorchRunner) -> None:
    tokenizer = made.tokenizer()
    with torch.inference_mode():
        alone = [bert.model(**tokenizer(text, truncation=True, return_tensors="pt")).logits[0] for text in TEXTS]

    np.testing.assert_allclose(bert.predict(TEXTS), torch.stack(alone).numpy(), atol=1e-5)


def test_the_graph_reads_the_same_tokens_and_leaves_padding_out(sums: OnnxRunner) -> None:
    tokenizer = made.tokenizer()
    by_hand = [made.table()[tokenizer(text, truncation=True)["input_ids"]].sum(0) for text in TEXTS]

    np.testing.assert_allclose(sums.predict(TEXTS), by_hand, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(texts=st.lists(st.lists(st.sampled_from(made.WORDS), max_size=20).map(" ".join), max_size=12), data=st.data())
def test_order_and_batches_change_nothing(texts: list[str], data: st.DataObject) -> None:
    runner = _shared_bert()
    whole = runner.predict(texts)
    order = data.draw(st.permutations(range(len(texts))))
    budget = data.draw(st.integers(1, 200))

    shuffled = runner.predict([texts[row] for row in order], tokens_per_batch=budget)

    assert whole.shape == (len(texts), 3)
    np.testing.assert_allclose(shuffled, whole[order], atol=1e-5)


def test_no_texts_give_no_answers(runner: Runner) -> None:
    assert runner.predict([]).shape == (0, 3)


def test_names_limits_and_inputs(bert: TorchRunner, sums: OnnxRunner) -> None:
    assert (bert.name, sums.name) == ("torch", "onnxruntime")
    assert (bert.labels, sums.labels) == (("LABEL_0", "LABEL_1", "LABEL_2"), ("class 0", "class 1", "class 2"))
    assert (bert.max_length, sums.max_length) == (32, 32)
    assert sums.inputs == {"input_ids", "attention_mask"}
    assert [file.name for file in sums.files] == ["model.onnx"]
    assert bert.files == ()


def test_a_pair_is_read_as_a_pair(bert: TorchRunner) -> None:
    pair = ("good film", "bad end")
    with torch.inference_mode():
        expected = bert.model(**made.tokenizer()(*pair, return_tensors="pt")).logits.numpy()

    np.testing.assert_allclose(bert.predict([pair]), expected, atol=1e-5)


def test_words_are_answered_at_their_first_token() -> None:
    runner = TorchRunner(tiny.model("bert", "AutoModelForTokenClassification"), made.tokenizer(), max_length=6)
    words = [["unknown", "end"], ["good"], ["a", "unknown", "unknown", "far"], []]
    with torch.inference_mode():
        first = runner.model(**made.tokenizer()(words[0], is_split_into_words=True, return_tensors="pt")).logits[0]

    answers = runner.predict(words)

    assert answers.shape == (4, 4, 3)
    np.testing.assert_allclose(answers[0, :2], first[[1, 3]].numpy(), atol=1e-5)  # [CLS] un ##known end [SEP]
    assert np.isnan(answers[0, 2:]).all()
    assert np.isnan(answers[2, 3]).all()  # [CLS] a un ##known un [SEP]: "far" was cut off
    assert not np.isnan(answers[2, :3]).any()
    assert np.isnan(answers[3]).all()


def test_a_word_without_a_token_leaves_the_others_in_their_places() -> None:
    runner = TorchRunner(tiny.model("bert", "AutoModelForTokenClassification"), made.tokenizer())
    whole, gap = runner.predict([["good", "end", "near"], ["good", " ", "near"]])
    assert np.isnan(gap[1]).all()  # as BERT's own normaliser leaves nothing of a lone variation selector
    assert not np.isnan(gap[[0, 2]]).any()
    assert np.allclose(gap[2], runner.predict([["good", "near"]])[0][1], atol=1e-6)
    assert not np.isnan(whole).any()


def test_a_bare_encoder_gives_unit_means_of_its_states() -> None:
    runner = TorchRunner(tiny.model("bert"), made.tokenizer())

    vectors = runner.predict(TEXTS)

    with torch.inference_mode():
        states = runner.model(**made.tokenizer()(TEXTS[0], return_tensors="pt")).last_hidden_state[0]
    mean = states.mean(0).numpy()
    np.testing.assert_allclose(vectors[0], mean / np.linalg.norm(mean), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert runner.labels == ()


def test_pooling_by_hand() -> None:
    hidden = np.array([[[3.0, 0.0], [3.0, 8.0], [99.0, 99.0]]], np.float32)

    np.testing.assert_allclose(embed(hidden, np.array([[1, 1, 0]]), Sentence()), [[0.6, 0.8]], atol=1e-6)


@pytest.mark.parametrize("variant", ["distilbert", "roberta", "gpt2", "t5"])
def test_other_families_answer_alike_alone_and_padded(variant: str) -> None:
    tokenizer = made.tokenizer()
    tokenizer.eos_token = "[SEP]"
    model = tiny.model(variant, "AutoModelForSequenceClassification", eos_token_id=3)
    runner = TorchRunner(model, tokenizer)
    texts = TEXTS[:2] + TEXTS[3:5]

    together = runner.predict(texts)

    np.testing.assert_allclose(together, np.concatenate([runner.predict([text]) for text in texts]), atol=1e-4)


def test_a_language_model_gives_logits_to_forward_and_refuses_predict() -> None:
    runner = TorchRunner(tiny.model("llama", "AutoModelForCausalLM"), made.tokenizer())
    ids = np.array([[3, 4, 5]])

    logits = runner.forward({"input_ids": ids, "attention_mask": np.ones_like(ids)})["logits"]

    assert logits.shape == (1, 3, 99)
    with pytest.raises(LissomError, match="one answer a text is asked for, and this model answers every token"):
        runner.predict(["good"])


def test_running_text_is_tokenized_whole(runner: Runner) -> None:
    assert len(runner.token_ids("good " * 100)) == 100
    assert runner.token_ids("unknown film") == [9, 10, 6]


def test_running_text_keeps_its_order_when_texts_are_cut_on_the_left() -> None:
    tokenizer = made.tokenizer()
    tokenizer.truncation_side = "left"
    runner = TorchRunner(tiny.model("bert"), tokenizer, max_length=4)

    assert runner.token_ids("a very good film and a bad end") == [7, 8, 4, 6, 15, 7, 5, 12]
    assert runner.encode(["good film and end"])[0].ids == [2, 15, 12, 3]


def test_the_callers_model_and_tokenizer_stay_as_they_are() -> None:
    model, tokenizer = tiny.model("bert").train(), made.tokenizer()
    before = tokenizer.backend_tokenizer.to_str()
    runner = TorchRunner(model, tokenizer, max_length=5)

    first, second = runner.predict(["good film"]), runner.predict(["good film"])

    assert model.training
    np.testing.assert_array_equal(first, second)  # no dropout
    assert tokenizer.backend_tokenizer.to_str() == before


def test_two_threads_may_ask_at_once(runner: Runner) -> None:
    expected = runner.predict(TEXTS)
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(runner.predict(TEXTS))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 2
    for answers in found:
        np.testing.assert_allclose(answers, expected, atol=1e-5)


def test_nan_is_an_error_that_names_the_text(tmp_path: Path) -> None:
    weights = made.table()
    weights[made.VOCABULARY["bad"]] = np.nan
    runner = OnnxRunner(made.exported(tmp_path, weights), threads=1)

    with pytest.raises(LissomError, match=r"LSM-901 text 2: the model computes NaN or Inf\. Its weights are damaged"):
        runner.predict(["good", "bad", "good film"])


def test_mixed_kinds_of_text_are_refused(runner: Runner) -> None:
    with pytest.raises(LissomError, match=r"LSM-213 texts must be all str, .* found str, tuple\. Call once"):
        runner.predict(["good", ("good", "bad")])


def test_without_a_tokenizer_texts_cannot_be_read() -> None:
    with pytest.raises(LissomError, match=r"LSM-212 .*without a tokenizer.* Give it with tokenizer="):
        TorchRunner(tiny.model("bert"), None).predict(["good"])


def test_more_tokens_than_positions_are_refused() -> None:
    with pytest.raises(LissomError, match=r"LSM-211 a maximum length of 100 tokens .* reads 1 to 64"):
        TorchRunner(tiny.model("bert"), made.tokenizer(), max_length=100)
    assert usable_length(None, None, None) == 512
    assert usable_length(None, 128, 512) == 128
    assert usable_length(4000, None, None) == 4000


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        model_max_length = 10
        model_input_names = ("input_ids",)
        pad_token_id = 0
        truncation_side = "right"

    with pytest.raises(LissomError, match=r"LSM-734 Slow has no fast version"):
        TorchRunner(tiny.model("bert"), Slow())  # type: ignore[arg-type]


def test_the_quantized_graph_goes_first_and_a_variant_chooses(tmp_path: Path) -> None:
    made.exported(tmp_path, made.table(), file="model.onnx")
    made.exported(tmp_path, made.table() * 2, file="model_quantized.onnx")

    assert OnnxRunner(tmp_path).graph.name == "model_quantized.onnx"
    assert OnnxRunner(tmp_path, variant="fp32").graph.name == "model.onnx"
    with pytest.raises(LissomError, match=r'LSM-735 .*: no graph "quantised"\. Did you mean "quantized"\?'):
        OnnxRunner(tmp_path, variant="quantised")


def test_a_folder_without_a_graph_says_what_writes_one(tmp_path: Path) -> None:
    with pytest.raises(LissomError, match=r"no graph onnx/model\*\.onnx\. Write one with `lissom export`\."):
        OnnxRunner(tmp_path)


def test_a_broken_graph_is_a_broken_file(tmp_path: Path) -> None:
    made.exported(tmp_path, made.table())
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"no graph")

    with pytest.raises(LissomError, match=r"LSM-471 .*model\.onnx: onnxruntime cannot read the graph") as caught:
        OnnxRunner(tmp_path)
    assert caught.value.exit_code == 4


def test_an_input_that_no_tokenizer_gives_is_named(tmp_path: Path) -> None:
    with pytest.raises(LissomError, match=r"LSM-735 .*: the graph reads past_key, which no tokenizer gives"):
        OnnxRunner(made.exported(tmp_path, made.table(), inputs=("past_key",)))


def test_a_device_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LissomError, match=r'LSM-732 onnxruntime cannot run on "npu" here'):
        OnnxRunner(made.exported(tmp_path, made.table()), device="npu")


def test_the_onnx_engine_needs_neither_torch_nor_transformers(tmp_path: Path) -> None:
    made.exported(tmp_path, made.table())
    code = (
        "import sys; from lissom.runtime import open_runner; "
        f"print(open_runner({str(tmp_path)!r}).predict(['good film']).shape); "
        "assert not {'torch', 'transformers', 'onnx'} & set(sys.modules), 'a heavy import'"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout.strip()) == (0, "(1, 3)"), done.stderr


def test_a_subject_opens_with_its_engine(tmp_path: Path) -> None:
    made.exported(tmp_path, made.table())

    assert isinstance(open_runner(tmp_path), OnnxRunner)
    assert isinstance(open_runner(tiny.model("bert"), tokenizer=made.tokenizer()), TorchRunner)
    with pytest.raises(LissomError, match=r'LSM-214 "fp16" names a graph, and BertModel is no folder'):
        open_runner(tiny.model("bert"), variant="fp16")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_saved_folder_opens_in_torch_and_in_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tiny.model("bert", "AutoModelForSequenceClassification").to(dtype)
    model.save_pretrained(tmp_path)
    made.tokenizer().save_pretrained(tmp_path)

    runner = open_runner(tmp_path, max_length=20, threads=1)

    assert isinstance(runner, TorchRunner)
    assert (runner.model.dtype, runner.max_length, runner.folder) == (torch.float32, 20, tmp_path)
    assert [file.name for file in runner.files] == ["model.safetensors"]
    expected = TorchRunner(model.float(), made.tokenizer()).predict(TEXTS[:2])
    np.testing.assert_allclose(runner.predict(TEXTS[:2]), expected, atol=1e-5)


def _shared_bert(cache: list[TorchRunner] = []) -> TorchRunner:  # noqa: B006  one model for all examples
    if not cache:
        cache.append(TorchRunner(tiny.model("bert", "AutoModelForSequenceClassification"), made.tokenizer()))
    return cache[0]


def test_a_long_text_fits_a_model_that_counts_from_behind_its_padding() -> None:
    model = tiny.model("roberta", "AutoModelForSequenceClassification", pad_token_id=1)
    runner = TorchRunner(model, tiny.tokenizer())
    assert runner.max_length == 62
    assert runner.predict([" ".join(["w5"] * 100)]).shape == (1, 3)
    with pytest.raises(LissomError, match="LSM-211"):
        TorchRunner(model, tiny.tokenizer(), max_length=63)
