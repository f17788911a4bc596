"""The OpenVINO engine answers as the others do, in float32, from its own files or from an ONNX graph."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.export import export
from lissom.measure.flops import flops
from lissom.measure.memory import peak_memory
from lissom.measure.size import size
from lissom.methods import Given
from lissom.methods.quantization.rtn import Rtn
from lissom.runtime import OnnxRunner, TorchRunner, open_runner
from tests import tiny
from tests.export.made import classifier, packed
from tests.runtime import made

openvino = pytest.importorskip("openvino", reason="the openvino extra is not installed")

from lissom.runtime.openvino import OpenVinoRunner, infer, open_model  # noqa: E402

TEXTS = ["good film", "a very bad film and a very bad end", "", "the end is near", "unknown", "good " * 60]


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> OpenVinoRunner:
    return OpenVinoRunner(made.exported(tmp_path_factory.mktemp("sums"), made.table()), threads=1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "out"
    export(classifier(num_hidden_layers=1), "openvino", folder, tokenizer=made.tokenizer())
    return folder


def test_an_onnx_graph_gives_the_sums_by_hand(sums: OpenVinoRunner) -> None:
    tokenizer = made.tokenizer()
    by_hand = [made.table()[tokenizer(text, truncation=True)["input_ids"]].sum(0) for text in TEXTS]
    np.testing.assert_allclose(sums.predict(TEXTS), by_hand, atol=1e-5)
    assert (sums.name, sums.labels, sums.max_length) == ("openvino", ("class 0", "class 1", "class 2"), 32)
    assert [file.name for file in sums.files] == ["model.onnx"]


def test_a_folder_of_the_target_opens_in_openvino_and_answers_as_torch(exported: Path) -> None:
    runner = open_runner(exported, device="auto", threads=1)
    assert isinstance(runner, OpenVinoRunner)
    expected = TorchRunner(classifier(num_hidden_layers=1), made.tokenizer()).predict(TEXTS)
    np.testing.assert_allclose(runner.predict(TEXTS), expected, atol=1e-4)
    assert [file.name for file in runner.files] == ["openvino_model.bin", "openvino_model.xml"]
    assert sorted(one.name for one in (exported / "openvino").iterdir()) == ["openvino_model.bin", "openvino_model.xml"]
    assert not (exported / "onnx").exists()
    manifest = json.loads((exported / "lissom.json").read_text())
    assert manifest["export"]["target"] == "openvino"
    assert manifest["export"]["parity"]["runtime"].startswith("openvino 20")
    assert str(exported.parent) not in (exported / "openvino" / "openvino_model.xml").read_text()


def test_a_bare_encoder_gives_the_embeddings_of_torch(tmp_path: Path) -> None:
    model = tiny.model("bert", num_hidden_layers=1)
    export(model, "openvino", tmp_path / "out", tokenizer=made.tokenizer())
    expected = TorchRunner(model, made.tokenizer()).predict(TEXTS)
    np.testing.assert_allclose(open_runner(tmp_path / "out").predict(TEXTS), expected, atol=1e-4)


def test_threads_and_precision_are_those_asked_for(exported: Path) -> None:
    runner = OpenVinoRunner(exported, threads=1)
    assert runner.compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert runner.compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
    low = OpenVinoRunner(exported, threads=1, precision="bf16")
    assert np.corrcoef(low.predict(TEXTS).ravel(), runner.predict(TEXTS).ravel())[0, 1] > 0.98


def test_two_threads_may_ask_at_once(sums: OpenVinoRunner) -> None:
    expected = sums.predict(TEXTS)
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(sums.predict(TEXTS))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for one in found:
        np.testing.assert_allclose(one, expected, atol=1e-5)


def test_answers_are_not_overwritten_by_the_next_batch(sums: OpenVinoRunner) -> None:
    batches = [sums.pad(sums.encode([text])) for text in ("good film", "bad end")]
    first = sums.forward(batches[0])["logits"]
    before = first.copy()
    sums.forward(batches[1])
    np.testing.assert_array_equal(first, before)


def test_dynamic_int8_is_proved_and_its_slowness_said(tmp_path: Path) -> None:
    model = packed(classifier())
    artifact = export(model, "openvino", tmp_path / "out", tokenizer=made.tokenizer())
    assert artifact.parity["unrounded_largest_difference"] < 1e-4
    assert artifact.parity["rounding_noise"] < 2
    (note,) = artifact.notes
    assert "int8: {mode: static}" in note
    assert "slowly" in note


@pytest.mark.parametrize("bits", [3, 4])
def test_groups_of_few_bits_stay_in_four_bits(bits: int, tmp_path: Path) -> None:
    model = classifier()
    editor = Editor(model)
    Rtn(bits=bits, group=16).apply(editor, Given())
    whole = export(classifier(), "openvino", tmp_path / "whole", tokenizer=made.tokenizer())
    artifact = export(editor.model, "openvino", tmp_path / "out", tokenizer=made.tokenizer())
    assert artifact.parity["largest_difference"] < 1e-4
    sizes = [(one.folder / "openvino" / "openvino_model.bin").stat().st_size for one in (whole, artifact)]
    maps = sum(slot.weight.numel() for slot in editor.anatomy().linears())
    assert sizes[0] - sizes[1] > 2 * maps  # of 4 bytes a weight, half a byte and what a group costs stay


def test_float_models_carry_no_note(exported: Path) -> None:
    assert "notes" not in json.loads((exported / "lissom.json").read_text())["export"]


def test_a_changed_file_is_not_opened(exported: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    (copy / "openvino").mkdir(parents=True)
    for path in exported.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(exported)).write_bytes(path.read_bytes())
    weights = copy / "openvino" / "openvino_model.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(LissomError, match="LSM-461"):
        OpenVinoRunner(copy)


def test_a_graph_outside_the_folder_is_not_opened(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "openvino").mkdir()
    for name in ("openvino_model.xml", "openvino_model.bin"):
        (tmp_path / "openvino" / name).symlink_to(exported / "openvino" / name)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LissomError, match=r"LSM-42[12]"):
        OpenVinoRunner(tmp_path)


BROKEN = (
    "",
    "no xml at all",
    "<net><layers/></net>",
    '<?xml version="1.0"?><net name="x">',
    '<!DOCTYPE net [<!ENTITY x SYSTEM "file:///etc/hostname">]><net name="&x;" version="11"><layers/></net>',
)


@pytest.mark.parametrize("text", BROKEN)
def test_broken_xml_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino" / "openvino_model.xml").write_text(text)
    (tmp_path / "openvino" / "openvino_model.bin").write_bytes(b"")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LissomError, match="LSM-472") as caught:
        OpenVinoRunner(tmp_path)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [('offset="0"', 'offset="99999999"'), ('shape="99, 32"', 'shape="9900, 32"'), ('type="Gather"', 'type="Gathre"')],
)
def test_xml_that_does_not_fit_its_weights_is_one_line(old: str, new: str, exported: Path, tmp_path: Path) -> None:
    for path in exported.rglob("*"):
        if path.is_file() and path.name != "lissom.json":  # nothing vouches for it then
            (tmp_path / path.relative_to(exported)).parent.mkdir(exist_ok=True)
            (tmp_path / path.relative_to(exported)).write_bytes(path.read_bytes())
    xml = tmp_path / "openvino" / "openvino_model.xml"
    assert old in xml.read_text()
    assert OpenVinoRunner(tmp_path).predict(["good film"]).shape == (1, 3)
    xml.write_text(xml.read_text().replace(old, new))
    with pytest.raises(LissomError, match="LSM-472"):
        OpenVinoRunner(tmp_path)


def test_other_devices_and_missing_graphs_are_named(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(LissomError, match=r'LSM-732 .*not on "cuda"'):
        OpenVinoRunner(exported, device="cuda")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LissomError, match="LSM-735"):
        OpenVinoRunner(tmp_path)
    with pytest.raises(LissomError, match="LSM-735"):
        open_runner(made.exported(tmp_path, made.table()), variant="fp16")
    assert isinstance(open_runner(tmp_path), OnnxRunner)


def test_without_openvino_the_line_to_install_it_is_given(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(LissomError, match=r'LSM-738 openvino is not installed.*pip install "lissom\[openvino\]"') as at:
        open_runner(exported)
    assert at.value.exit_code == 7
    with pytest.raises(LissomError, match="LSM-738"):
        export(classifier(), "openvino", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bytes_run_as_files_do(sums: OpenVinoRunner) -> None:
    compiled = open_model((sums.folder / "onnx" / "model.onnx").read_bytes(), threads=1)
    batch = sums.pad(sums.encode(["good film"]))
    found = infer(compiled.create_infer_request(), batch)
    np.testing.assert_allclose(found["logits"], sums.forward(batch)["logits"], atol=1e-6)


def test_sizes_and_memory_are_measured_in_openvino(exported: Path) -> None:
    runner = OpenVinoRunner(exported, threads=1)
    in_mb, numbers, sparsity = size(runner)
    assert in_mb.value == pytest.approx(sum(path.stat().st_size for path in runner.files) / 1e6)
    trained = sum(parameter.numel() for parameter in classifier(num_hidden_layers=1).parameters())
    assert numbers.value == pytest.approx(trained, rel=0.01)  # and a few numbers of the formulas
    assert sparsity.value is None
    memory = peak_memory(runner, TEXTS[:2], "classification", runs=1)
    assert memory.value is not None, memory.how
    assert flops(runner, TEXTS).value is None


def test_the_engine_needs_neither_torch_nor_onnxruntime(exported: Path) -> None:
    code = (
        "import sys; from lissom.runtime import open_runner; "
        f"print(open_runner({str(exported)!r}).predict(['good film']).shape); "
        "assert not {'torch', 'transformers', 'onnx', 'onnxruntime'} & set(sys.modules), 'a heavy import'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "(1, 3)"), done.stderr
