"""Rows: which readings, in which order, with which provenance; and what equal runners give."""

import json
import re

import pytest

from lissom.bench.rows import check_row
from lissom.data import Data, load_data
from lissom.errors import LissomError
from lissom.measure import METRICS, Reading, Row, measure
from lissom.measure.reading import number, taken
from lissom.runtime import TorchRunner
from tests import tiny
from tests.measure.fakes import Fake, honest, reviews
from tests.runtime import made

FAST = {"rounds": 2, "speed_texts": 4}
QUALITY = ["accuracy", "f1", "mcc", "keep", "label_loyalty", "probability_loyalty"]


def test_two_subjects_give_two_rows_against_the_reference() -> None:
    wrong_once = Fake(lambda text: honest(text) if text != "good 0" else (3.0, 0.0))

    reference, other = measure({"ref": Fake(honest), "other": wrong_once}, reviews(), reference="ref", metrics=QUALITY)

    assert (reference.subject, other.subject, other.runtime, other.seed) == ("ref", "other", "torch", 0)
    assert other.data == {"name": "data", "split": "test", "digest": reviews().digest, "n": 20}
    values = {one.name: one.value for one in other.readings}
    assert values["accuracy"] == values["keep"] == values["label_loyalty"] == pytest.approx(0.95)
    assert values["probability_loyalty"] == pytest.approx(0.95, abs=0.02)
    assert {one.name: one.value for one in reference.readings if one.name not in ("f1", "mcc")} == {
        name: 1 for name in QUALITY if name not in ("f1", "mcc")
    }
    assert "this subject is the reference" in reference.reading("keep").how


def test_equal_runners_keep_everything_and_show_no_difference_in_answers() -> None:
    model = tiny.model("bert", "AutoModelForSequenceClassification", num_labels=2)
    runners = {name: TorchRunner(model, made.tokenizer()) for name in ("a", "b")}

    rows = measure(runners, reviews(), reference="a", metrics=QUALITY)

    first, second = ({one.name: (one.value, one.low, one.high) for one in row.readings} for row in rows)
    assert first == second
    for name in ("keep", "label_loyalty", "probability_loyalty"):
        assert second[name] == (1, 1, 1)


def test_without_a_reference_nothing_is_compared() -> None:
    (row,) = measure({"only": Fake(honest)}, reviews(), **FAST)

    names = [one.name for one in row.readings]
    assert names[:3] == ["accuracy", "f1", "mcc"]
    assert not {"keep", "speedup", "label_loyalty", "probability_loyalty"} & set(names)
    assert {"throughput", "latency_ms_p50", "size_mb", "peak_memory_mb"} <= set(names)


def test_a_row_is_what_the_contract_says(tmp_path: object) -> None:
    model = tiny.model("bert", "AutoModelForSequenceClassification", num_labels=2)
    subjects = {"a": TorchRunner(model, made.tokenizer()), "b": Fake(honest)}

    for row in measure(subjects, reviews(), reference="a", **FAST):
        found = json.loads(json.dumps(row.as_dict(), allow_nan=False))
        assert list(found) == ["subject", "runtime", "machine", "versions", "seed", "data", "readings"]
        fields = ["name", "value", "unit", "low", "high", "n", "better", "how"]
        assert [list(one) for one in found["readings"]] == [fields] * len(found["readings"])
        check_row(found, "row")


def test_only_what_is_asked_for_is_taken_and_what_does_not_fit_says_so() -> None:
    runner = Fake(honest)

    (row,) = measure({"a": runner}, reviews(), metrics=["mcc", "pearson"])

    assert [one.name for one in row.readings] == ["mcc", "pearson"]
    assert row.reading("mcc").value == 1
    assert row.reading("pearson").value is None
    assert row.reading("pearson").how == "Not taken: no measure of classification."
    assert runner.log == [("", 20)]  # one pass, nothing timed


def test_speed_says_how_many_threads_it_took() -> None:
    fake = Fake(honest)
    fake.threads = 3
    (row,) = measure({"a": fake}, reviews(), metrics=["throughput", "latency_ms_p50"], rounds=1)
    assert all(one.how.endswith("CPU threads: 3.") for one in row.readings)


def test_loyalty_needs_no_labels() -> None:
    data = reviews()
    unlabelled = Data(
        name="x",
        task=data.task,
        splits={"test": data.split("test").remove_columns("label")},
        columns={},
        digest="0",
    )

    rows = measure({"a": Fake(honest), "b": Fake(honest)}, unlabelled, reference="a", metrics=["label_loyalty"])

    assert rows[1].reading("label_loyalty").value == 1

    every = measure({"a": Fake(honest), "b": Fake(honest)}, unlabelled, reference="a", **FAST)

    for name in ("accuracy", "keep"):
        found = every[1].reading(name)
        assert (found.value, found.how) == (None, "Not taken: this split has no labels.")
    assert every[1].reading("f1") is None
    assert every[1].reading("probability_loyalty").value == 1


def test_a_language_model_is_measured_by_its_perplexity() -> None:
    runner = TorchRunner(tiny.model("llama", "AutoModelForCausalLM"), made.tokenizer())
    data = load_data({"test": {"text": ["the end is near and far", "a very good film"] * 10}})

    (row,) = measure({"lm": runner}, data, metrics=["perplexity", "throughput", "flops", "label_loyalty"], **FAST)

    assert [one.name for one in row.readings] == ["perplexity", "flops", "throughput"]
    assert row.reading("perplexity").value > 1
    assert row.reading("flops").value > 0


def test_tagging_is_measured_by_spans() -> None:
    runner = TorchRunner(tiny.model("bert", "AutoModelForTokenClassification"), made.tokenizer())
    sentences = {"tokens": [["good", "film"], ["the", "end", "is"]], "tags": [["O", "B-A"], ["B-A", "I-A", "O"]]}
    data = load_data({"test": sentences}, model_labels=("O", "B-A", "I-A"))

    rows = measure({"a": runner, "b": runner}, data, reference="a", metrics=QUALITY)

    assert rows[1].readings[0].name == "f1"
    assert rows[1].reading("label_loyalty").value == 1
    assert 0 <= rows[1].reading("accuracy").value <= 1


def test_questions_are_measured_by_words() -> None:
    runner = TorchRunner(tiny.model("bert", "AutoModelForQuestionAnswering"), made.tokenizer())
    context = "a very good film and a bad end"
    rows = {"question": ["the film is"], "context": [context], "answers": [{"text": ["good"], "answer_start": [7]}]}

    (row,) = measure({"a": runner}, load_data({"test": rows}), metrics=["f1", "throughput"], **FAST)

    assert 0 <= row.reading("f1").value <= 1
    assert row.reading("throughput").value > 0


def test_progress_ends_at_one_and_never_falls() -> None:
    seen: list[float] = []

    measure({"a": Fake(honest)}, reviews(), report=lambda what, fraction: seen.append(fraction), **FAST)

    assert seen == sorted(seen)
    assert seen[-1] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": "teach"}, 'LSM-215 the reference "teach" is not among the subjects. Did you mean "teacher"?'),
        ({"metrics": ["acuracy"]}, 'LSM-216 there is no metric "acuracy". Did you mean "accuracy"?'),
        ({"split": "dev"}, 'LSM-817 data: there is no split "dev"'),
        ({"rounds": 0}, "LSM-217 0 rounds of 256 texts are asked for, at least 1 of 1 is needed"),
    ],
)
def test_wrong_requests_are_explained(changes: dict[str, object], message: str) -> None:
    with pytest.raises(LissomError, match=re.escape(message)):
        measure({"teacher": Fake(honest)}, reviews(), **changes)  # type: ignore[arg-type]


def test_numbers_for_people() -> None:
    assert [number(value) for value in (None, 0.91324, 3.0, 17389824, 1234.56, 0.00001234)] == [
        "n/a",
        "0.9132",
        "3",
        "17,389,824",
        "1,235",
        "1.234e-05",
    ]
    assert str(taken("size_mb", 18.942, "h", low=18.0, high=19.0)) == "size_mb 18.94 MB (18 to 19)"
    assert str(taken("flops", None, "no engine")) == "flops n/a (no engine)"


def test_a_row_finds_its_readings() -> None:
    reading = taken("mcc", 0.5, "by hand", low=0.6, high=0.7, n=3)
    row = Row(subject="a", runtime="torch", machine={}, versions={}, seed=0, data={}, readings=(reading,))

    assert isinstance(row.reading("mcc"), Reading)
    assert (reading.low, reading.unit, reading.better) == (0.5, METRICS["mcc"].unit, "higher")  # widened to the value
    assert row.reading("f1") is None
