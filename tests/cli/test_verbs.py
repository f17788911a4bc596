"""Every verb on a tiny model and tiny data, in the order in which a person would use them."""

from __future__ import annotations

import io
import json
import random
import sys

import pytest

from lissom.cli import run
from lissom.store import save
from tests import tiny
from tests.train.tiny_rows import WORDS, tokenizer

RECIPE = """
lissom: 1
name: small
steps:
  - keep_layers: {keep: 2}
  - tune: {max_steps: 2, learn: {logits: {weight: 1.0}}}
  - int8
"""


def recipe_and_data(place):
    return ["--recipe", place / "recipe.yaml", "--data", place / "data", "--max-length", 32]


def call(capsys, *arguments):
    """Exit code, document and notes of one command with --json."""
    capsys.readouterr()
    code = run([*map(str, arguments), "--json"])
    streams = capsys.readouterr()
    return code, json.loads(streams.out), streams.err


def said(capsys, *arguments):
    """Exit code, output and notes of one command."""
    capsys.readouterr()
    code = run(list(map(str, arguments)))
    streams = capsys.readouterr()
    return code, streams.out, streams.err


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, data and a recipe."""
    folder = tmp_path_factory.mktemp("place")
    model = tiny.model(
        "bert", "AutoModelForSequenceClassification", num_labels=2, id2label={0: "sport", 1: "business"}, label2id={}
    )
    save(model, folder / "model", tokenizer=tokenizer())
    (folder / "recipe.yaml").write_text(RECIPE)
    data = folder / "data"
    data.mkdir()
    generator = random.Random(0)
    for split, count in (("train", 64), ("validation", 16), ("test", 24)):
        rows = []
        for i in range(count):
            words = [WORDS[4 + 3 * (i % 2)], *generator.choices(WORDS[7:], k=4), split, str(i)]
            rows.append({"text": " ".join(words), "label": ("sport", "business")[i % 2]})
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def compressed(place):
    """The same, with the model compressed into `out`."""
    arguments = [*recipe_and_data(place), "--out", place / "out", "--keep", "0"]
    assert run(["compress", str(place / "model"), *map(str, arguments), "-q"]) == 0
    return place


def test_doctor(capsys):
    code, document, _ = call(capsys, "doctor")
    assert code == 0
    assert {"machine", "versions", "accelerators", "energy", "extras", "problems"} <= set(document)
    code, text, _ = said(capsys, "doctor")
    assert code == 0
    assert "CPU " in text


def test_inspect(capsys, place):
    code, document, _ = call(capsys, "inspect", place / "model")
    assert code == 0
    assert document["family"] == "bert"
    assert sum(document["parts"].values()) == document["parameters"]
    assert document["stacks"][0]["layers"] == 3
    assert document["methods"]["tune"] == "yes, with data"
    code, text, _ = said(capsys, "inspect", place / "model")
    assert "encoder: 3 layers: 4 heads, feed-forward 48" in text


def test_inspect_shows_what_suffers_from_fewer_bits(capsys, place):
    asked = ["inspect", place / "model", "--sensitivity", "--data", place / "data", "--samples", 8, "--max-length", 32]
    code, document, _ = call(capsys, *asked, "--bits", 4)
    found = document["sensitivity"]
    assert code == 0
    assert (found["bits"], found["measure"], found["answers"]) == (4, "kl", 8)
    assert len(found["slots"]) == 18
    assert set(found["slots"][0]) == {"path", "weights", "weight_db", "output_db", "damage"}
    damages = [one["damage"] for one in found["slots"]]
    assert damages == sorted(damages, reverse=True)
    code, text, _ = said(capsys, *asked)
    assert code == 0
    assert found["rule"] in text
    assert "Each map alone with 8 bit weights and 8 bit inputs, the most damaging first:" in text
    assert "keep in higher precision: " in text
    assert found["step"] == ({"rtn": {"bits": 4, "skip": list(found["keep"])}} if found["keep"] else {})


def test_inspect_needs_data_to_show_what_suffers(capsys, place):
    code, _, error = said(capsys, "inspect", place / "model", "--sensitivity")
    assert code == 2
    assert "LSM-208 --sensitivity needs --data: texts that the model is asked about" in error
    code, _, error = said(capsys, "inspect", place / "model", "--data", place / "data")
    assert code == 2
    assert "--data is read with --sensitivity only" in error


def test_plan_counts_what_compress_leaves(capsys, compressed):
    place = compressed
    code, plan, _ = call(capsys, "plan", place / "model", *recipe_and_data(place), "--threads", 1)
    assert code == 0
    _, found, _ = call(capsys, "inspect", place / "out")
    assert plan["after"]["parameters"] == found["parameters"]
    assert plan["after"]["size_mb"] == pytest.approx(found["size_mb"])
    assert plan["after"]["flops"] < plan["before"]["flops"]
    assert [step["name"] for step in plan["steps"]] == ["keep_layers", "tune", "int8"]
    assert plan["columns"] == {"text": "text", "label": "label"}
    assert plan["steps"][1]["speed"].startswith("trains; neither shape nor speed change")
    assert all("here in torch" in plan["steps"][i]["speed"] for i in (0, 2))


def test_plan_without_data_says_what_is_missing(capsys, place):
    code, text, _ = said(capsys, "plan", place / "model", "--recipe", place / "recipe.yaml", "--max-length", 32)
    assert code == 0
    assert "tune needs data: give --data to compress." in text
    assert "No data: latency and FLOPs are those of one made-up sentence." in text


def test_compress_without_data_says_so_before_any_work(capsys, place):
    out = place / "none"
    code, _, error = said(capsys, "compress", place / "model", "--recipe", place / "recipe.yaml", "--out", out)
    assert code == 3
    assert "LSM-317 small, step 2 (tune): needs labelled training data. Give --data" in error
    assert not out.exists()
    assert not (place / ".none.unfinished").exists()
    code, _, error = said(capsys, "compress", place / "model", "--recipe", "demo", "--out", out, "--keep", "0.9")
    assert code == 2
    assert "LSM-206" in error


def test_a_file_that_cannot_be_written_is_refused_before_any_work(capsys, place):
    nowhere = place / "nowhere" / "page.html"
    data = recipe_and_data(place)
    for arguments in (
        ["measure", place / "no-model", "--data", place / "data", "--out", nowhere],
        ["compress", place / "no-model", *data, "--out", place / "out-of-this", "--report", nowhere],
        ["compress", place / "no-model", *data, "--out", place / "out-of-this", "--report", place / "data"],
    ):
        code, document, _ = call(capsys, *arguments)
        assert (code, document["code"]) == (6, "LSM-603")


def test_compress_keeps_what_is_there(capsys, compressed):
    place = compressed
    arguments = [*recipe_and_data(place), "--out", place / "out"]
    code, document, _ = call(capsys, "compress", place / "model", *arguments)
    assert (code, document["code"]) == (2, "LSM-201")
    assert (place / "out" / "lissom.json").exists()
    assert not (place / ".out.unfinished").exists()


def test_a_missed_gate_is_exit_5_with_the_rows(capsys, place):
    arguments = [*recipe_and_data(place), "--out", place / "missed", "--keep", "9"]
    code, document, error = call(capsys, "compress", place / "model", *arguments, "--report", place / "page.html")
    assert (code, document["code"]) == (5, "LSM-501")
    assert [row["subject"] for row in document["rows"]] == ["original", "compressed"]
    assert "keep is" in error
    assert (place / "page.html").read_text().startswith("<!doctype html>")
    assert (place / "missed" / "lissom.json").exists()


def test_compress_learns_from_teachers_that_are_named(capsys, place):
    labels = {"num_labels": 2, "id2label": {0: "sport", 1: "business"}}
    large = tiny.model("bert", "AutoModelForSequenceClassification", 1, hidden_size=64, **labels)
    save(large, place / "large", tokenizer=tokenizer())
    arguments = [*recipe_and_data(place), "--teacher", place / "large", "--teacher", place / "model", "--threads", 1]
    code, document, _ = call(capsys, "compress", place / "model", *arguments, "--out", place / "taught")
    assert code == 0
    assert [row["subject"] for row in document["rows"]] == ["teacher", "compressed"]
    code, text, _ = said(capsys, "compress", place / "model", *arguments, "--out", place / "taught", "--force")
    assert "teacher" in text
    code, document, _ = call(capsys, "compress", place / "model", *arguments, "--out", place / "large", "--force")
    assert (code, document["code"]) == (2, "LSM-203")


def test_check_holds_the_stored_readings_against_a_gate(capsys, compressed):
    out = compressed / "out"
    code, document, _ = call(capsys, "check", out, "--gate", "keep>=0,parameters>1")
    assert code == 0
    assert document["met"]
    code, text, error = said(capsys, "check", out, "--gate", "keep>=9")
    assert code == 5
    assert text.startswith("NOT MET: keep is ")
    assert "error LSM-501 the gate is not met: keep is " in error
    assert call(capsys, "check", out, "--gate", "energy_j<=1")[:1] == (5,)
    assert call(capsys, "check", out, "--gate", "keep")[1]["code"] == "LSM-205"
    assert call(capsys, "check", compressed / "data", "--gate", "keep>0")[1]["code"] == "LSM-463"


def test_check_refuses_a_changed_file(capsys, compressed, tmp_path):
    import shutil

    copy = shutil.copytree(compressed / "out", tmp_path / "copy")
    with (copy / "rows.jsonl").open("a") as file:
        file.write(" ")
    code, document, _ = call(capsys, "check", copy, "--gate", "keep>=0")
    assert (code, document["code"]) == (4, "LSM-461")


def test_measure_and_report(capsys, compressed):
    place = compressed
    code, document, _ = call(
        capsys,
        *("measure", place / "out", "--vs", place / "model", "--data", place / "data"),
        *("--metrics", "accuracy,keep,size_mb,speedup", "--out", place / "rows.jsonl", "--threads", 1),
    )
    assert code == 0
    assert [row["subject"] for row in document["rows"]] == [str(place / "model"), str(place / "out")]
    assert [one["name"] for one in document["rows"][1]["readings"]] == ["accuracy", "keep", "size_mb", "speedup"]
    page = place / "report.html"
    (place / "measured.json").write_text(json.dumps(document) + "\n")
    assert run(["report", str(place / "measured.json"), "--out", str(page)]) == 0
    code, text, _ = said(capsys, "report", place / "rows.jsonl", "--vs", place / "model", "--out", page)
    assert (code, text) == (0, f"{page}\n")
    assert page.read_text().startswith("<!doctype html>")
    assert call(capsys, "measure", place / "out", "--data", place / "data", "--metrics", "acuracy")[0] == 2
    assert call(capsys, "measure", place / "out", "--data", place / "data", "--split", "tset")[0] == 4


def test_export_and_predict(capsys, compressed, monkeypatch):
    place = compressed
    code, document, _ = call(capsys, "export", place / "out", "--to", "onnx", "--out", place / "onnx", "--force")
    assert code == 0
    assert "lissom.json" in document["files"]
    texts = place / "texts.txt"
    texts.write_text("the ball\n\nbank of money\n")
    code, lines, _ = said(capsys, "predict", place / "onnx", "--input", texts)
    answers = [json.loads(line) for line in lines.splitlines()]
    assert code == 0
    assert len(answers) == 3
    assert all(answer["label"] in ("sport", "business") and 0.5 <= answer["score"] <= 1 for answer in answers)
    rows = place / "texts.jsonl"
    rows.write_text('{"text": "the ball"}\n{"text": ""}\n\n{"text": "bank of money"}\n')
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(rows.read_bytes())))
    assert call(capsys, "predict", place / "onnx", "--input", "-")[1] == {"answers": answers}
    assert call(capsys, "export", place / "out", "--to", "onxx", "--out", place / "x")[0] == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "LSM-831 {}: there is no such file."),
        ("a.txt", b"good\n\xff\n", "LSM-832 {}:2: is not UTF-8."),
        ("a.jsonl", b"{", "LSM-833 {}:1: is not JSON."),
        ("a.jsonl", b'{"text": "a"}\n{"txt": 1}', "LSM-833 {}:2: is no object with a text. Write"),
        ("a.jsonl", b"[" * 9999, "LSM-833 {}:1: is not JSON."),
    ],
)
def test_predict_names_the_bad_line(capsys, place, tmp_path, name, content, message):  # noqa: PLR0917
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    code, _, error = said(capsys, "predict", place / "model", "--input", path)
    assert code == 4
    assert message.format(path) in error


def test_finetune(capsys, place):
    arguments = ["--data", place / "data", "--out", place / "teacher", "--max-steps", 2, "--max-length", 32]
    code, document, _ = call(capsys, "finetune", place / "model", *arguments)
    assert code == 0
    assert document["steps"] == 2
    assert document["metric"] == "accuracy"
    assert (place / "teacher" / "lissom.json").exists()
    assert not (place / ".teacher.unfinished").exists()


def test_a_folder_that_is_no_model(capsys, place):
    code, document, _ = call(capsys, "inspect", place / "data")
    assert code == 4
    assert document["code"].startswith("LSM-4")
    assert call(capsys, "inspect", place / "nowhere")[0] == 4


def test_columns_are_named_or_refused(capsys, place):
    code, document, _ = call(
        capsys, "measure", place / "model", "--data", place / "data", "--column", "text=body", "--metrics", "accuracy"
    )
    assert code == 4
    assert "body" in document["message"]
    assert call(capsys, "measure", place / "model", "--data", place / "data", "--column", "text")[0] == 2


def test_folders_that_are_not_written(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    before = sorted(place.iterdir())
    recipe = ["--recipe", "recipe.yaml", "--data", "data"]
    for out, code in (
        (".", "203"),
        ("", "203"),
        ("/", "203"),
        ("model", "203"),
        ("data", "203"),
        ("recipe.yaml", "202"),
    ):
        status, document, _ = call(capsys, "compress", "model", *recipe, "--force", "--out", out)
        assert (status, document["code"]) == (2, f"LSM-{code}"), out
    assert call(capsys, "export", "model", "--to", "onnx", "--out", "model", "--force")[1]["code"] == "LSM-203"
    assert call(capsys, "compress", "model", *recipe, "--out", "recipe.yaml/x")[1]["code"] == "LSM-603"
    assert sorted(place.iterdir()) == before


def test_a_gate_is_read_before_any_work(place, capsys, tmp_path):
    out = ["--out", tmp_path / "out", "--keep", "nan"]
    status, document, _ = call(capsys, "compress", "nowhere", *recipe_and_data(place), *out)
    assert (status, document["code"]) == (2, "LSM-205")


def test_a_folder_to_check_or_predict_that_is_none(place, capsys, tmp_path):
    status, document, _ = call(capsys, "check", tmp_path / "nothing", "--gate", "keep>=1")
    assert (status, document["code"]) == (4, "LSM-402")
    assert "is no file" in call(capsys, "predict", place / "model", "--input", tmp_path)[1]["message"]


def test_no_room_for_a_text(place, capsys, tmp_path):
    (tmp_path / "texts.txt").write_text("one text\n")
    arguments = ["predict", place / "model", "--input", tmp_path / "texts.txt", "--max-length"]
    assert call(capsys, *arguments, 2)[1]["code"] == "LSM-824"
    assert call(capsys, *arguments, 3)[0] == 0


def test_a_missed_gate_names_what_to_do_instead_of_exporting(capsys, place):
    out = place / "missed"
    arguments = [*recipe_and_data(place), "--out", out, "--force"]
    code, _, error = said(capsys, "compress", place / "model", *arguments, "--keep", "9")
    assert code == 5
    assert f"Next: {out} keeps too little. Remove less" in error
    assert "lissom export" not in error
    code, _, error = said(capsys, "compress", place / "model", *arguments)
    assert code == 0
    assert f"Next: lissom export {out}" in error


def test_predict_tells_of_empty_texts(capsys, compressed, tmp_path):
    (tmp_path / "texts.txt").write_text("a goal\n\n  \n")
    code, lines, error = said(capsys, "predict", compressed / "out", "--input", tmp_path / "texts.txt")
    assert code == 0
    assert len(lines.splitlines()) == 3
    assert "2 of 3 texts are empty" in error
    (tmp_path / "none.txt").write_text("")
    code, lines, error = said(capsys, "predict", compressed / "out", "--input", tmp_path / "none.txt")
    assert (code, lines) == (0, "")
    assert "No text was given." in error


def test_names_of_methods_stand_apart_from_what_is_said(capsys, place):
    _, lines, _ = said(capsys, "inspect", place / "model")
    told = [line for line in lines.splitlines() if line.startswith(("factorize_vocabulary", "svd"))]
    assert len({line.index("yes") for line in told}) == 1
    assert all(line.split()[1] == "yes" for line in told)


def test_a_device_that_is_not_there_is_named(capsys, place, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    arguments = [*recipe_and_data(place), "--out", place / "none", "--device", "cuda"]
    code, document, _ = call(capsys, "compress", place / "model", *arguments)
    assert (code, document["code"]) == (7, "LSM-732")
    assert not (place / "none").exists()
