"""What every metric of the table promises, whatever it measures."""

import re
from functools import cache

import pytest

from lissom.data import Data, load_data
from lissom.edits import AddExits, Editor, SetExits
from lissom.measure import METRICS, Reading, Row, measure
from lissom.runtime import OnnxRunner, TorchRunner
from tests import tiny
from tests.measure.fakes import reviews
from tests.runtime import made

UNITS = {"", "x", "MB", "numbers", "layers", "FLOP", "ms", "texts/s"}
TAKEN_BY = {
    "pearson": "regression",
    "spearman": "regression",
    "perplexity": "language_modelling",
    "cosine": "embedding",
    "exit_layers": "early_exit",
}


def _data(kind: str) -> Data:
    if kind == "regression":
        return load_data({"test": {"text": ["good", "bad", "film", "the end"], "label": [4.5, 0.5, 2.0, 3.0]}})
    if kind in ("language_modelling", "embedding"):
        return load_data({"test": {"text": ["the end is near and far"] * 9}})
    return reviews()


@cache
def _rows(kind: str) -> list[Row]:
    """A model against one of half its depth."""
    heads = {"language_modelling": "AutoModelForCausalLM", "embedding": "AutoModel"}
    head = heads.get(kind, "AutoModelForSequenceClassification")
    variant = "llama" if kind == "language_modelling" else "bert"
    labels = {"num_labels": 1 if kind == "regression" else 2}
    deep = tiny.model(variant, head, num_hidden_layers=4, **labels)
    shallow = tiny.model(variant, head, num_hidden_layers=2, **labels)
    if kind == "early_exit":
        editor = Editor(shallow)
        editor.apply(AddExits(layers=(1,)))
        editor.apply(SetExits(rule="confidence", points={"one": (0.6,)}, use="one"))
    subjects = {name: TorchRunner(one, made.tokenizer()) for name, one in (("deep", deep), ("shallow", shallow))}
    names = [name for name in METRICS if name != "peak_memory_mb"]
    return measure(subjects, _data(kind), reference="deep", metrics=names, rounds=2, speed_texts=8)


@cache
def _memory(folder: str) -> tuple[Reading, ...]:
    runner = OnnxRunner(folder, threads=1)
    (row,) = measure({"graph": runner}, reviews(), metrics=["peak_memory_mb"], speed_texts=4)
    return row.readings


@pytest.fixture(params=METRICS)
def reading(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reading:
    if request.param == "peak_memory_mb":
        folder = made.exported(tmp_path_factory.getbasetemp() / "graph", made.table(2))
        return _memory(str(folder))[0]
    found = _rows(TAKEN_BY.get(request.param, "classification"))[1].reading(request.param)
    assert found is not None
    return found


def test_it_has_a_value_in_its_interval(reading: Reading) -> None:
    assert reading.value is not None, reading.how
    if reading.low is not None:
        assert reading.low <= reading.value <= reading.high
    assert reading.n >= 1


def test_it_says_what_it_is(reading: Reading) -> None:
    metric = METRICS[reading.name]

    assert (reading.unit, reading.better) == (metric.unit, metric.better)
    assert metric.unit in UNITS
    assert metric.what
    assert re.fullmatch(r"[A-Z1-9].{20,}\.", reading.how), reading.how


def test_every_reading_that_is_noisy_has_an_interval(reading: Reading) -> None:
    exact = METRICS[reading.name].group in ("size", "flops")
    assert (reading.low is None) == exact


@pytest.mark.parametrize("name", ["size_mb", "parameters", "flops"])
def test_double_work_moves_it_the_right_way(name: str) -> None:
    deep, shallow = (row.reading(name) for row in _rows("classification"))

    assert METRICS[name].better == "lower"
    assert deep.value > shallow.value
