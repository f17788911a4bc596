import json
import logging
import multiprocessing

import pytest

from lissom.bench.rows import append_row, check_row, read_rows
from lissom.errors import LissomError

from .samples import pair, reading, row


def test_what_is_appended_is_read_back_in_order(tmp_path):
    file = tmp_path / "rows.jsonl"
    for one in pair():
        append_row(file, one)
    append_row(tmp_path / "more.jsonl", row("third", note={"later": [1, 2.5]}))
    assert read_rows([file, str(tmp_path / "more.jsonl")]) == [*pair(), row("third", note={"later": [1, 2.5]})]


@pytest.mark.parametrize("cut", [1, 40, 300])
def test_a_torn_last_line_is_left_out_and_the_next_append_removes_it(tmp_path, caplog, cut):
    file = tmp_path / "rows.jsonl"
    append_row(file, row())
    append_row(file, row("torn é"))
    file.write_bytes(file.read_bytes()[: -1 - cut])
    with caplog.at_level(logging.WARNING, logger="lissom"):
        assert read_rows([file]) == [row()]
    assert "rows.jsonl:2: the last line was cut off" in caplog.text
    append_row(file, row("new"))
    assert read_rows([file]) == [row(), row("new")]


def test_a_last_line_without_its_end_counts(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row()))
    append_row(file, row("new"))
    assert read_rows([file]) == [row(), row("new")]


def append_many(file, name):
    for _ in range(20):
        append_row(file, row(name))


def test_two_writers_do_not_mix_their_lines(tmp_path):
    file = tmp_path / "rows.jsonl"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=append_many, args=(file, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(one["subject"] for one in read_rows([file])) == ["a"] * 20 + ["b"] * 20


LINE = json.dumps(row())
BROKEN = {
    "not json": ("{]", "the line is not JSON"),
    "not an object": ("[1]", "expected a JSON object, found a list"),
    "bad utf-8": (b"\xff{}", "the line is not UTF-8"),
    "deep": ("[" * 100_000, "the line is nested too deeply"),
    "nan": (LINE.replace("0.921", "NaN"), "NaN is not a finite number"),
    "overflow": (LINE.replace("0.921", "1e999"), "1e999 is not a finite number"),
    "huge": (LINE.replace("0.921", "9" * 5000), "is too large a number"),
    "hidden nan": (LINE.replace('"cores": 2', '"cores": -Infinity'), "-Infinity is not a finite number"),
    "two keys": (LINE.replace('"seed": 0', '"seed": 0, "seed": 1'), "a key is there twice"),
    "no subject": (json.dumps(row("")), '"subject" is the text "", expected a text of 1 to 4096 characters'),
    "missing": (LINE.replace('"runtime"', '"engine"'), '"runtime" is missing'),
    "wrong type": (json.dumps(row(seed="0")), '"seed" is the text "0", expected a whole number or null'),
    "true as number": (LINE.replace("0.921", "true"), '"value" is true, expected a number or null'),
    "no direction": (
        LINE.replace('"higher"', '"up"', 1),
        '"better" is the text "up", expected one of higher, lower, none',
    ),
    "name": (LINE.replace('"accuracy"', '"<b>"', 1), '"name" is the text "<b>", expected a name such as size_mb'),
    "interval": (json.dumps(row(readings=[reading("f1", 1, 2, 0)])), "reading 1: the interval 2 to 0 has no order"),
    "half": (json.dumps(row(readings=[reading("f1", 1, 2)])), "the interval 2 to None has no order"),
    "twice": (json.dumps(row(readings=[reading("f1", 1)] * 2)), 'reading 2: "f1" is there twice'),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_line_is_named(tmp_path, kind):
    line, cause = BROKEN[kind]
    file = tmp_path / "rows.jsonl"
    file.write_bytes(LINE.encode() + b"\n" + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    with pytest.raises(LissomError) as caught:
        read_rows([file])
    assert caught.value.code == "LSM-841"
    assert caught.value.exit_code == 4
    assert f"{file}:2" in str(caught.value)
    assert cause in str(caught.value)


def test_a_line_has_a_limit(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row(note="x" * (1 << 20))) + "\n")
    with pytest.raises(LissomError, match=r"LSM-842 .*rows.jsonl:1: the line has 1,0.* bytes, 1,048,576 are allowed"):
        read_rows([file])
    with pytest.raises(LissomError, match="LSM-842"):
        append_row(tmp_path / "new.jsonl", row(note="x" * (1 << 20)))
    assert not (tmp_path / "new.jsonl").exists()


@pytest.mark.parametrize(
    ("content", "cause"), [(None, "No such file"), ("", "it holds no row"), ("\n\n", "it holds no row")]
)
def test_a_file_without_rows_is_an_error(tmp_path, content, cause):
    file = tmp_path / "rows.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(LissomError, match=f"LSM-843 .*rows.jsonl: no rows: {cause}"):
        read_rows([file])


def test_a_folder_is_no_file_of_rows(tmp_path):
    with pytest.raises(LissomError, match=r"LSM-843 .*it is not a regular file"):
        read_rows([tmp_path])


def test_an_invalid_row_is_never_written(tmp_path):
    with pytest.raises(LissomError, match=r"LSM-841 .*not plain finite JSON"):
        append_row(tmp_path / "rows.jsonl", row(readings=[reading("f1", float("nan"))]))
    with pytest.raises(LissomError, match="expected a JSON object, found a list"):
        check_row([], "here")
    assert not (tmp_path / "rows.jsonl").exists()
