"""Every way in gives the same data, and every fault has its own sentence."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lissom.data import Data, Task, load_data, read
from lissom.errors import LissomError

ROWS = [
    {"text": "a fine film", "label": "positive"},
    {"text": 'NA "null", None', "label": "negative"},
    {"text": "línea\nuno\u2028deux 🙂", "label": "positive"},
    {"text": "NA", "label": "negative"},
    {"text": " null", "label": "positive"},
]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_gz(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()))


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


WRITERS = {".jsonl": write_jsonl, ".jsonl.gz": write_gz, ".csv": write_csv, ".parquet": write_parquet}


def fault(source: Any, **options: Any) -> str:
    with pytest.raises(LissomError) as caught:
        load_data(source, **options)
    return str(caught.value)


def broken(folder: Path, content: str | bytes, name: str = "train.jsonl") -> str:
    """The message for a file with this content."""
    raw = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    (folder / name).write_bytes(raw)
    return fault(folder)


def labelled(*labels: Any) -> dict[str, Any]:
    return {"text": [f"text {at}" for at in range(len(labels))], "label": list(labels)}


# formats


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_same_data(tmp_path: Path, kind: str) -> None:
    for split in ("train", "dev", "test"):
        WRITERS[kind](tmp_path / f"{split}{kind}", ROWS)
    data = load_data(tmp_path)
    whole = {"text": [row["text"] for row in ROWS], "label": [1, 0, 1, 0, 1]}
    assert list(data.splits) == ["train", "validation", "test"]
    assert data.split("test").to_dict() == whole
    assert data.task == Task(kind="classification", labels=("negative", "positive"), metric="accuracy")
    assert data.columns == {"text": "text", "label": "label"}
    plain = {"train": labels_as_text(), "validation": labels_as_text(), "test": labels_as_text()}
    assert data.digest == load_data(plain).digest == load_data(datasets.DatasetDict(as_datasets(plain))).digest


def labels_as_text() -> dict[str, list[str]]:
    return {"text": [row["text"] for row in ROWS], "label": [row["label"] for row in ROWS]}


def as_datasets(splits: dict[str, dict[str, list[Any]]]) -> dict[str, datasets.Dataset]:
    return {name: datasets.Dataset.from_dict(columns) for name, columns in splits.items()}


@pytest.mark.parametrize("kind", WRITERS)
def test_numbers_and_integers_are_alike_in_every_format(tmp_path: Path, kind: str) -> None:
    scores = [{"sentence1": "a b", "sentence2": "c", "label": value} for value in (0.0, 3.6, 5.0)]
    (tmp_path / "scores").mkdir()
    WRITERS[kind](tmp_path / "scores" / f"train{kind}", scores)
    data = load_data(tmp_path / "scores")
    assert data.task == Task(kind="regression", labels=(), metric="pearson")
    assert data.split("train")["label"][:] == [0.0, 3.6, 5.0]
    assert data.columns == {"text": "sentence1", "text_b": "sentence2", "label": "label"}
    stars = [{"content": f"text {at}", "labels": at % 5 + 1} for at in range(10)]
    (tmp_path / "stars").mkdir()
    WRITERS[kind](tmp_path / "stars" / f"train{kind}", stars)
    data = load_data(tmp_path / "stars")
    assert data.task.labels == ("1", "2", "3", "4", "5")
    assert data.split("train")["label"][:5] == [0, 1, 2, 3, 4]


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), min_size=2, max_size=6)
)
@pytest.mark.parametrize("kind", WRITERS)
def test_odd_texts_come_back_unchanged(tmp_path_factory: pytest.TempPathFactory, kind: str, texts: list[str]) -> None:
    texts = [text if text.strip() else text + "." for text in texts]
    folder = tmp_path_factory.mktemp("odd")
    WRITERS[kind](folder / f"train{kind}", [{"text": text, "label": at % 2} for at, text in enumerate(texts)])
    assert load_data(folder).split("train")["text"][:] == texts


def test_a_long_text_and_a_byte_order_mark_are_fine(tmp_path: Path) -> None:
    long = "x" * 1_000_000
    (tmp_path / "train.csv").write_bytes(b"\xef\xbb\xbf" + f"text,label\n{long},0\nb,1\n".encode())
    write_jsonl(tmp_path / "test.jsonl", [{"text": "a", "label": 1}])
    (tmp_path / "test.jsonl").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "test.jsonl").read_bytes())
    data = load_data(tmp_path)
    assert data.split("train")["text"][0] == long
    assert csv.field_size_limit() < 1_000_000  # the process keeps its own limit


def test_one_file_answers_for_every_split(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "reviews.jsonl", ROWS)
    data = load_data(tmp_path / "reviews.jsonl")
    assert data.name == "reviews"
    assert data.split("train") is data.split("test")
    assert data.notes == (
        "One table without splits: it answers for every split, so nothing measured on it is held out.",
    )


def test_meta_names_labels_and_set(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "validation.jsonl", [{"text": f"t {at}", "label": at % 2} for at in range(4)])
    (tmp_path / "meta.json").write_text('{"name": "cola", "label_names": ["unacceptable", "acceptable"]}')
    data = load_data(tmp_path)
    assert (data.name, data.task.metric, data.task.labels) == ("cola", "mcc", ("unacceptable", "acceptable"))
    assert load_data(tmp_path / "validation.jsonl").task == data.task


def test_features_name_labels(tmp_path: Path) -> None:
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = datasets.Dataset.from_dict({"sentence": ["a", "b"], "label": [1, 0]}, features=features)
    assert load_data(rows).task.labels == ("no", "yes")
    rows.to_parquet(tmp_path / "train.parquet")
    assert load_data(tmp_path).task.labels == ("no", "yes")


def test_arrays_are_lists() -> None:
    data = load_data({"text": np.array(["a", "b"]), "label": np.array([0, 1])})
    assert data.split("train")["label"][:] == [0, 1]


# columns


@pytest.mark.parametrize(
    ("columns", "mapped"),
    [
        (["sentence", "label", "idx"], {"text": "sentence", "label": "label"}),
        (["Text", "LABEL"], {"text": "Text", "label": "LABEL"}),
        (["premise", "hypothesis", "label"], {"text": "premise", "text_b": "hypothesis", "label": "label"}),
        (["question", "sentence", "label"], {"text": "question", "text_b": "sentence", "label": "label"}),
        (["question1", "question2", "label"], {"text": "question1", "text_b": "question2", "label": "label"}),
        (["text_a", "text_b", "text", "label"], {"text": "text_a", "text_b": "text_b", "label": "label"}),
    ],
)
def test_usual_columns_are_found(columns: list[str], mapped: dict[str, str]) -> None:
    source = {name: ["a", "b"] for name in columns}
    assert load_data(source).columns == mapped


def test_columns_can_be_named() -> None:
    source = {"text": ["a", "b"], "title": ["c", "d"], "topic": ["x", "y"]}
    data = load_data(source, columns={"text": "title", "label": "topic"})
    assert data.columns == {"text": "title", "label": "topic"}
    assert data.split("train")["text"][:] == ["c", "d"]
    assert "Columns that were not used: title, topic." in load_data(source).notes[-1]


def test_faults_of_columns() -> None:
    source = {"headline": ["a", "b"], "topic": ["x", "y"]}
    assert fault(source) == (
        'LSM-819 data: no text column among: headline, topic. Name it: columns={"text": ...}, or --column text=NAME.'
    )
    assert fault(source, columns={"text": "headlin"}) == (
        'LSM-818 data: there is no column "headlin". Did you mean "headline"?'
    )
    assert fault(source, columns={"txt": "headline"}).startswith(
        'LSM-818 "txt" is no normalised column. Did you mean "text"'
    )
    assert fault(source, columns={"text": "headline", "tags": "topic"}).startswith(
        'LSM-818 data: "tags" does not go with text'
    )
    splits = {"train": labelled("a", "b"), "test": {"sentence": ["a"], "label": ["a"]}}
    assert fault(splits) == 'LSM-818 test: there is no column "text", which another split has. It has: sentence, label.'


# labels


def test_labels_follow_the_model() -> None:
    data = load_data(
        labelled("neutral", "entailment", "contradiction"), model_labels=["CONTRADICTION", "ENTAILMENT", "Neutral"]
    )
    assert data.task.labels == ("CONTRADICTION", "ENTAILMENT", "Neutral")
    assert data.split("train")["label"][:] == [2, 1, 0]
    generic = load_data(labelled("b", "a"), model_labels=["LABEL_0", "LABEL_1"])
    assert (generic.task.labels, generic.split("train")["label"][:]) == (("a", "b"), [1, 0])
    some = load_data(labelled(0, 2, 0), model_labels=["x", "y", "z"])
    assert (some.task.labels, some.split("train")["label"][:]) == (("x", "y", "z"), [0, 2, 0])


def test_declared_names_follow_the_model(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text": "a", "label": 0}, {"text": "b", "label": 1}])
    (tmp_path / "meta.json").write_text('{"label_names": ["negative", "positive"]}')
    assert load_data(tmp_path, model_labels=["POSITIVE", "NEGATIVE"]).split("train")["label"][:] == [1, 0]
    assert fault(tmp_path, model_labels=["a", "b", "c"]) == (
        "LSM-820 the data has 2 labels, the model has 3. The data has negative, positive; the model has a, b, c."
    )
    assert fault(tmp_path, model_labels=["good", "bad"]).startswith(
        "LSM-820 the labels of the data are not those of the model."
    )


def test_one_output_is_a_regression() -> None:
    data = load_data(labelled(1, 2, 5), model_labels=["LABEL_0"])
    assert (data.task.kind, data.split("train")["label"][:]) == ("regression", [1.0, 2.0, 5.0])


def test_truth_values_are_labels() -> None:
    data = load_data(labelled(True, False, True))
    assert (data.task.labels, data.split("train")["label"][:]) == (("False", "True"), [1, 0, 1])


def test_minus_one_is_no_label() -> None:
    data = load_data({"train": labelled(*[0, 1] * 20, -1), "test": labelled(-1, -1)})
    assert len(data.split("train")) == 40
    assert data.notes[0] == "1 of 41 rows of train have no label (-1) and were left out."
    assert data.split("test").column_names == ["text"]
    assert load_data(labelled(*[-1, 1] * 3)).task.labels == ("-1", "1")
    assert fault(labelled(-1, 0, 1, -1)) == (
        'LSM-813 data row 1, column "label": 2 of 4 labels are -1, which may be a class or mean no label. '
        "Name the classes: label_names in meta.json, or texts as labels."
    )


def test_minus_one_where_names_are_declared(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text": f"t {at}", "label": at % 3 - 1} for at in range(9)])
    (tmp_path / "meta.json").write_text('{"label_names": ["no", "yes"]}')
    data = load_data(tmp_path)
    assert data.split("train")["label"][:] == [0, 1] * 3
    assert data.notes == ("3 of 9 rows of train.jsonl have no label (-1) and were left out.",)
    (tmp_path / "meta.json").unlink()  # the model's placeholders do not tell whether -1 is a class
    assert fault(tmp_path, model_labels=["LABEL_0", "LABEL_1"]).startswith("LSM-813 train.jsonl row 1, ")


def test_a_split_without_labels_still_has_texts() -> None:
    data = load_data({"train": labelled("a", "b"), "test": {"text": ["c"], "label": [None]}})
    assert data.split("test").to_dict() == {"text": ["c"]}
    assert data.notes == ("test has no labels.",)
    alone = load_data({"text": ["a", "b"], "label": [float("nan"), None]})
    assert (alone.task.kind, alone.notes[-1]) == ("language_modelling", "No split has labels.")
    known = load_data({"text": ["a", "b"]}, model_labels=["x", "y"])
    assert (known.task.kind, known.task.labels) == ("classification", ("x", "y"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", None, "b"], 'LSM-812 data row 2, column "label": the label is missing. Add it, leave the row out'),
        (["a", " ", "b"], 'LSM-812 data row 2, column "label": the label is missing.'),
        ([1.5, float("nan")], 'LSM-812 data row 2, column "label": the label is missing.'),
        ([1.5, float("inf")], 'LSM-813 data row 2, column "label": the label is infinite.'),
        (["a", ["b"]], 'LSM-813 data row 2, column "label": the label is "[\'b\']": a nested value, not one label.'),
        (["a", {"b": 1}], 'LSM-813 data row 2, column "label": the label is "{\'b\': 1}": a nested value'),
        ([f"id {at}" for at in range(60)], "LSM-813 60 different labels in 60 rows are no set of classes."),
        (["a", "a"], 'LSM-816 data column "label": all rows have one label, "a". Add rows of another class.'),
    ],
)
def test_faults_of_labels(labels: list[Any], message: str) -> None:
    assert fault(labelled(*labels)).startswith(message)


def test_a_train_split_of_one_class(tmp_path: Path) -> None:
    splits = {"train": labelled("b", "b"), "test": labelled("a", "b")}
    assert fault(splits) == 'LSM-816 train column "label": all rows have one label, "b". Add rows of another class.'


def test_a_label_outside_the_names(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text('{"label_names": ["negative", "positive"]}')
    rows = [{"text": f"t {at}", "label": at % 2} for at in range(811)] + [{"text": "x", "label": 7}]
    write_jsonl(tmp_path / "train.jsonl", rows)
    assert fault(tmp_path) == (
        'LSM-811 train.jsonl row 812, column "label": label "7" is not one of negative, positive '
        "or an index from 0 to 1. Correct the row."
    )
    write_csv(
        tmp_path / "test.csv", [{"text": "two\nlines", "label": "positive"}, {"text": "x", "label": "so\x1b[1mso"}]
    )
    write_jsonl(tmp_path / "train.jsonl", rows[:4])
    where = 'LSM-811 test.csv row 4, column "label": label "so\N{REPLACEMENT CHARACTER}[1mso"'
    assert fault(tmp_path) == f"{where} is not one of negative, positive. Correct the row."


def test_numbers_among_names_of_digits(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text": f"t {at}", "label": at % 5 + 1} for at in range(9)])
    (tmp_path / "meta.json").write_text('{"label_names": ["1", "2", "3", "4", "5"]}')
    assert load_data(tmp_path).split("train")["label"][:5] == [0, 1, 2, 3, 4]
    write_jsonl(tmp_path / "train.jsonl", [{"text": f"t {at}", "label": at % 5} for at in range(9)])
    assert load_data(tmp_path).split("train")["label"][:5] == [0, 1, 2, 3, 4]


# texts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"  "', 'LSM-810 train.jsonl row 2, column "text": the text is empty. Fill it in or leave the row out.'),
        ("null", 'LSM-810 train.jsonl row 2, column "text": the text is missing.'),
        ("12", 'LSM-814 train.jsonl row 2, column "text": "12" is no text. Give it in quotes.'),
        ('["a", "b"]', "LSM-814 train.jsonl row 2, column \"text\": \"['a', 'b']\" is no text."),
        ('"a\\u0000b"', 'LSM-814 train.jsonl row 2, column "text": the text holds a NUL character. Take it out.'),
        (
            '"ab\\ud83d"',
            'LSM-814 train.jsonl row 2, column "text": the text holds half a surrogate pair at character 3.',
        ),
    ],
)
def test_faults_of_texts(tmp_path: Path, text: str, message: str) -> None:
    content = f'{{"text": "a", "label": "x"}}\n{{"text": {text}, "label": "y"}}\n'
    assert broken(tmp_path, content).startswith(message)


def test_a_row_without_the_text(tmp_path: Path) -> None:
    content = '{"text": "a", "label": 0}\n\n{"label": 1}\n'
    assert broken(tmp_path, content).startswith('LSM-810 train.jsonl row 3, column "text": the text is missing.')


def test_blank_rows_of_running_text_are_left_out() -> None:
    data = load_data({"text": ["", "a", " ", "b"]})
    assert data.split("all")["text"][:] == ["a", "b"]
    assert data.notes[-1] == "2 blank rows of data were left out."
    assert fault({"text": ["", " "]}) == "LSM-809 data: holds no texts."


def test_texts_in_two_splits_are_told() -> None:
    data = load_data({"train": labelled("a", "b", "a"), "test": labelled("a", "b")})
    assert data.notes == ("2 texts of test also stand in train.",)


# files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "LSM-809 train.jsonl: holds no rows."),
        ("\n\n", "LSM-809 train.jsonl: holds no rows."),
        (
            '{"text": "a", "label": 0}\n{"text": "b", "la',
            "LSM-807 train.jsonl row 2: is not JSON: Unterminated string starting at at character 15. "
            "The file ends here: it may have been cut off; write it again.",
        ),
        ('{"text": "a"\n{"text": "b"}\n', "LSM-807 train.jsonl row 1: is not JSON: Expecting"),
        ('["a", 1]\n', "LSM-807 train.jsonl row 1: the line is \"['a', 1]\", not an object with named values."),
        ("[" * 100_000 + "\n", "LSM-807 train.jsonl row 1: is nested too deeply."),
        ('{"label": ' + "1" * 5000 + "}\n", "LSM-807 train.jsonl row 1: is not usable JSON: Exceeds the limit"),
        (
            '{"text": "a", "label": 0, "text": "b"}\n',
            'LSM-808 train.jsonl row 1: the key "text" stands twice in one object.',
        ),
        ('{"text": "a\0", "label": 0}\n', "LSM-806 train.jsonl row 1: holds a NUL byte, so it is not UTF-8 text."),
        (
            b'{"text": "a"}\n{"text": "caf\xe9"}\n',
            "LSM-806 train.jsonl row 2: byte 14 of the line (0xe9) is not UTF-8. "
            "Save the file as UTF-8; it may be Latin-1.",
        ),
        ('{"text": "a"}\n'.encode("utf-16"), "LSM-806 train.jsonl row 1: is UTF-16, not UTF-8."),
    ],
)
def test_faults_of_jsonl(tmp_path: Path, content: str | bytes, message: str) -> None:
    assert broken(tmp_path, content).startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\n", "LSM-809 train.csv: holds no rows."),
        ("text,text\na,b\n", 'LSM-808 train.csv row 1: the column "text" stands twice.'),
        (
            'text,label\n"a\nb",0\nc, d,1\n',
            "LSM-807 train.csv row 4: the row has 3 cells, the header has 2. Quote texts that hold a comma.",
        ),
        ('text,label\na,0\n"b,1\n', "LSM-807 train.csv row 3: is not CSV: unexpected end of data."),
        (b"text,label\na,0\ncaf\xe9,1\n", "LSM-806 train.csv row 3: byte 4 of the line (0xe9) is not UTF-8."),
        ("text;label\na;0\n", "LSM-819"),
        ("text,label\na,0\nb,\nc,1\n", 'LSM-812 train.csv row 3, column "label": the label is missing.'),
    ],
)
def test_faults_of_csv(tmp_path: Path, content: str | bytes, message: str) -> None:
    assert broken(tmp_path, content, "train.csv").startswith(message)


def test_faults_of_parquet(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", ROWS)
    whole = (tmp_path / "train.parquet").read_bytes()
    for content in (b"", b"PAR1", whole[:-7], whole[: len(whole) // 2], b"PAR1" + os.urandom(64) + b"PAR1"):
        assert broken(tmp_path, content, "train.parquet").startswith(
            "LSM-807 train.parquet: is not a whole Parquet file: "
        )
    latin = pa.array([b"ok", b"caf\xe9"]).view(pa.utf8())
    pq.write_table(pa.table({"text": latin, "label": ["a", "b"]}), tmp_path / "train.parquet")
    assert fault(tmp_path) == 'LSM-806 train.parquet row 2, column "text": byte 4 is not UTF-8.'


def test_faults_of_gzip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert broken(tmp_path, b"no gzip", "train.jsonl.gz").startswith("LSM-807 train.jsonl.gz: is not a whole gzip file")
    packed = gzip.compress(b'{"text": "a", "label": 0}\n' * 1000)
    assert broken(tmp_path, packed[:-9], "train.jsonl.gz").startswith(
        "LSM-807 train.jsonl.gz: is not a whole gzip file"
    )
    monkeypatch.setattr(read, "FREE_BYTES", 1000)
    monkeypatch.setattr(read, "MAX_RATIO", 20)
    assert " unpacks to more than " in broken(tmp_path, packed, "train.jsonl.gz")
    monkeypatch.setattr(read, "MAX_ROW_BYTES", 1 << 20)
    assert broken(tmp_path, gzip.compress(b" " * (2 << 20)), "train.jsonl.gz") == (
        "LSM-805 train.jsonl.gz: a row is longer than 1 MB."
    )


@pytest.mark.parametrize("kind", WRITERS)
def test_a_mutated_file_loads_or_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"train{kind}"
    WRITERS[kind](path, ROWS * 20)
    whole = path.read_bytes()
    dice = np.random.default_rng(0)
    for _ in range(60):
        raw = bytearray(whole)
        for at in dice.integers(0, len(raw), 3):
            raw[at] = dice.integers(0, 256)
        path.write_bytes(raw[: dice.integers(len(raw) // 2, 2 * len(raw))])
        with contextlib.suppress(LissomError):
            load_data(path)


def test_faults_of_folders(tmp_path: Path) -> None:
    assert fault(tmp_path / "away") == f"LSM-801 {tmp_path / 'away'}: there is no such file or folder."
    assert fault(str(tmp_path / "away.csv")).startswith("LSM-801")
    assert fault(tmp_path) == (
        f"LSM-802 {tmp_path}: no data here. Expected train, validation or test as .jsonl, .jsonl.gz, .csv, .parquet."
    )
    (tmp_path / "notes.txt").write_text("x")
    assert fault(tmp_path / "notes.txt").startswith("LSM-802 notes.txt: is no data file")
    write_jsonl(tmp_path / "dev.jsonl", ROWS)
    write_csv(tmp_path / "validation.csv", ROWS)
    assert fault(tmp_path) == (
        f"LSM-803 {tmp_path.name}: dev.jsonl and validation.csv are both the split validation. Leave one of them out."
    )
    assert fault(3) == "LSM-801 data must be a folder, a file, a datasets object, a dict or a hub id, not int."
    assert fault("https://host/data.json") == ("LSM-801 https://host/data.json: there is no such file or folder.")


def test_links_out_and_devices_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").symlink_to(write_jsonl(tmp_path / "secret.jsonl", ROWS))
    assert fault(folder).startswith(f'LSM-422 {folder}: "train.jsonl" leads through a link.')
    (folder / "train.jsonl").unlink()
    os.mkfifo(folder / "train.jsonl")
    assert fault(folder).startswith(f"LSM-403 {folder / 'train.jsonl'}: it is not a regular file.")


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ("[]", "LSM-822 meta.json: is no object with named values."),
        ('{"name": 1}', "LSM-822 meta.json: name is no text."),
        ('{"label_names": "ab"}', "LSM-822 meta.json: label_names must be a list of texts."),
        ('{"label_names": ["a", "A"]}', "LSM-822 meta.json: a name stands twice in label_names."),
        ('{"label_names": ["a"', "LSM-405 "),
        ('{"name": "a", "name": "b"}', "LSM-407 "),
    ],
)
def test_faults_of_meta(tmp_path: Path, meta: str, message: str) -> None:
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    (tmp_path / "meta.json").write_text(meta)
    assert fault(tmp_path).startswith(message)


def test_faults_of_objects() -> None:
    assert fault({"text": ["a", "b"], "label": [1]}) == (
        "LSM-807 data: the columns differ in length: {'text': 2, 'label': 1}."
    )
    assert fault({"text": [], "label": []}) == "LSM-809 data: holds no rows."
    assert fault({"text": "a"}) == 'LSM-801 data column "text": is no list of values but str.'
    assert fault({"dev": labelled(0, 1), "val": labelled(0, 1)}) == (
        'LSM-803 data: "val" is a second split validation. Leave one of them out.'
    )


class Builder:
    """What `datasets.load_dataset_builder` gives for a set of Parquet files on the hub."""

    __module__ = "datasets.packaged_modules.parquet.parquet"
    repo_id = "nyu-mll/glue"

    def download_and_prepare(self) -> None:
        pass

    def as_dataset(self) -> datasets.DatasetDict:
        rows = datasets.Dataset.from_dict({"sentence": ["a", "b"], "label": [0, 1], "idx": [0, 1]})
        return datasets.DatasetDict({"train": rows, "validation": rows, "test": rows, "unsupervised": rows})


def test_a_hub_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lissom.data.load._reached", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda path, name: Builder())
    data = load_data("nyu-mll/glue:cola")
    assert (list(data.splits), data.task.metric) == (["train", "validation", "test"], "mcc")


def test_a_hub_id_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lissom.data.load._reached", lambda: True)

    def refuse(path: str, name: str | None) -> None:
        raise FileNotFoundError(f"Couldn't find {path} and {name} in the cache")

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    assert fault("nyu-mll/glue:cola") == (
        "LSM-801 nyu-mll/glue:cola: no such file or folder, and the hub does not give it: "
        'Couldn\'t find nyu-mll/glue and cola in the cache. Some sets need a configuration: "nyu-mll/glue:cola".'
    )


@pytest.mark.parametrize("name", ["csv", "pandas", "imagefolder"])
def test_a_reader_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("lissom.data.load._reached", lambda: True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train_.csv").write_text("text,label\na,0\nb,1\n")
    assert fault(name).startswith(f"LSM-801 {name}: no such file or folder, and the hub does not give it: ")


# tagging, questions


def test_tags() -> None:
    source = {"words": [["a", "b"], ["c"]], "ner_tags": [["O", "B-x"], ["I-x"]], "pos_tags": [[0, 1], [1]]}
    data = load_data(source)
    assert data.task == Task(kind="tagging", labels=("B-x", "I-x", "O"), metric="f1")
    assert data.split("all").to_dict() == {"tokens": [["a", "b"], ["c"]], "tags": [[2, 0], [1]]}
    other = load_data(source, columns={"tags": "pos_tags"})
    assert (other.task.metric, other.split("all")["tags"][:]) == ("accuracy", [[0, 1], [1]])


@pytest.mark.parametrize(
    ("tokens", "tags", "message"),
    [
        (["a", "b"], ["O"], 'LSM-815 data row 2, column "tags": 2 words have 1 tags. Give each word one tag.'),
        ("a b", ["O", "O"], 'LSM-815 data row 2, column "tokens": "a b" is no list of words.'),
        ([], [], 'LSM-815 data row 2, column "tokens": "[]" is no list of words.'),
        (["a", ""], ["O", "O"], 'LSM-810 data row 2, column "tokens": the word is empty.'),
        (["a", 1], ["O", "O"], 'LSM-814 data row 2, column "tokens": "1" is no word.'),
        (["a", "b"], None, 'LSM-815 data row 2, column "tags": "None" is no list of tags.'),
        (["a", "b"], ["O", None], 'LSM-812 data row 2, column "tags": "None" is no tag.'),
    ],
)
def test_faults_of_tags(tokens: Any, tags: Any, message: str) -> None:
    assert fault({"tokens": [["x", "y"], tokens], "tags": [["B-x", "O"], tags]}).startswith(message)


def test_tags_outside_the_model() -> None:
    message = fault({"tokens": [["x", "y"]], "tags": [["B-x", "O"]]}, model_labels=["O", "B-y"])
    assert message == 'LSM-811 data row 1, column "tags": label "B-x" is not one of O, B-y. Correct the row.'


@pytest.mark.parametrize(
    "answers", [{"text": ["b c"], "answer_start": [2]}, {"text": ["b c"], "start": [2]}, [{"text": "b c", "start": 2}]]
)
def test_questions(answers: Any) -> None:
    data = load_data({"question": ["what"], "context": ["a b c"], "answers": [answers]})
    assert data.task == Task(kind="question_answering", labels=(), metric="f1")
    assert data.split("all")[0]["answers"] == {"text": ["b c"], "answer_start": [2]}


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ("b", '"b" holds no answers. Give'),
        ({"text": ["b"], "start": []}, "the lists text and start differ in length, or one is not there."),
        ({"text": ["b"]}, "the lists text and start differ in length, or one is not there."),
        ({"text": ["b"], "start": ["2"]}, '"b" at "2" is no answer.'),
        (
            {"text": ["b"], "start": [3]},
            'the context does not hold "b" at character 3. Starts count characters from 0.',
        ),
    ],
)
def test_faults_of_answers(answers: Any, message: str) -> None:
    found = fault({"question": ["what"], "context": ["a b c"], "answers": [answers]})
    assert found.startswith(f'LSM-828 data row 1, column "answers": {message}')


# splits


def test_a_split_that_is_not_there() -> None:
    data = load_data({"train": labelled("a", "b"), "dev": labelled("a", "b")})
    with pytest.raises(LissomError) as caught:
        data.split("test")
    assert str(caught.value) == 'LSM-817 data: there is no split "test". There is: train, validation.'


def test_validation_is_cut_from_train() -> None:
    data = load_data({"train": labelled(*["a"] * 80, *["b"] * 20), "test": labelled("a", "b")})
    cut = data.with_validation(0, share=0.1)
    assert list(cut.splits) == ["train", "validation", "test"]
    assert sorted(cut.split("validation")["label"][:]) == [0] * 8 + [1] * 2
    assert not set(cut.split("train")["text"]) & set(cut.split("validation")["text"])
    assert len(cut.split("train")) == 90
    assert cut.split("test") is data.split("test")
    assert cut.notes[-1] == "No validation split: 10 of 100 rows of train were set aside for it (seed 0)."
    assert cut.digest == data.with_validation(0).digest != data.with_validation(1).digest
    assert cut.with_validation(0) is cut


def test_validation_of_few_rows() -> None:
    scores: Data = load_data(labelled(1.5, 2.0, 3.0)).with_validation(0)
    assert (len(scores.split("train")), len(scores.split("validation"))) == (2, 1)
    rare = load_data(labelled("a", "a", "a", "b")).with_validation(0, share=0.5)
    assert len(rare.split("train")) == 2
    with pytest.raises(LissomError, match="LSM-809 data: 1 rows are too few to cut a validation split from"):
        load_data(labelled(1.5)).with_validation(0)


# real sets


@pytest.mark.parametrize(
    ("name", "kind", "metric", "labels", "size"),
    [
        ("sst2", "classification", "accuracy", 2, ("test", 911)),
        ("trec6", "classification", "accuracy", 6, ("validation", 500)),
        ("mrpc", "classification", "f1", 2, ("train", 3655)),
        ("cola", "classification", "mcc", 2, ("validation", 1043)),
        ("stsb", "regression", "pearson", 0, ("test", 690)),
        ("wnut17", "tagging", "f1", 13, ("test", 1287)),
        ("atis_pos", "tagging", "accuracy", 14, ("test", 586)),
        ("squad_dev_part", "question_answering", "f1", 0, ("validation", 1190)),
        ("wikitext2", "language_modelling", "perplexity", 0, ("test", 62)),
    ],
)
def test_real_sets_load(
    shared: Callable[[str], Path], name: str, kind: str, metric: str, labels: int, *, size: tuple[str, int]
) -> None:
    split, rows = size
    data = load_data(shared(f"data/{name}"))
    assert (data.name, data.task.kind, data.task.metric, len(data.task.labels)) == (name, kind, metric, labels)
    assert len(data.split(split)) == rows
    assert data.notes == ()


def test_a_hub_that_is_out_of_reach_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    asked = []

    def builder(name: str, configuration: str | None) -> None:
        asked.append(constants.HF_HUB_OFFLINE and datasets.config.HF_HUB_OFFLINE)
        raise ConnectionError("Couldn't reach it")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    assert fault("nowhere") == (
        "LSM-801 nowhere: no such file or folder, not in the cache of the hub, and the hub cannot be reached. "
        "Check the path, or the network."
    )
    assert asked == [True]
    assert not constants.HF_HUB_OFFLINE
