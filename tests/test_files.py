from __future__ import annotations

import errno
import gzip
import io
import os
import pickle
import signal
import stat
import sys
import zipfile
from pathlib import Path

import pytest

from lissom import files
from lissom.errors import LissomError
from tests import hostile


def refused(code: str, call: object, *args: object, **options: object) -> str:
    """The text of the LissomError with this code that a call ends in."""
    with pytest.raises(LissomError) as caught:
        call(*args, **options)  # type: ignore[operator]
    assert caught.value.code == code, caught.value
    return str(caught.value)


# --------------------------------------------------------------------------------------------------------------- JSON


def test_json_reads_plain_values(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    value = {"a": [1, 2.5, None, True, "é"], "b": {"a": {}}}
    files.write_json(path, value)
    assert files.read_json(path) == value
    assert path.read_text().startswith('{\n  "a": [\n')
    assert path.read_text().endswith("}\n")


@pytest.mark.parametrize(
    ("raw", "code", "says"),
    [
        (b"", "LSM-405", "not valid JSON"),
        (b"{'a': 1}", "LSM-405", "not valid JSON"),
        (b"\xff\xfe{\0}\0", "LSM-405", "utf-8"),
        (b'{"a": 1, "a": 2}', "LSM-407", 'key "a" stands twice'),
        (b'{"x": {"__class__": 1, "__class__": 2}}', "LSM-407", "stands twice"),
        (b"[Infinity]", "LSM-407", "not a finite number"),
        (b"[-1e400]", "LSM-407", "not a finite number"),
        (b"[" * 100_000, "LSM-406", "100 levels"),
        (b"[" * 102 + b"]" * 102, "LSM-406", "100 levels"),
        (b"[" + b"0," * 3_000_000 + b"0]", "LSM-406", "values"),
        (b"9" * 5000, "LSM-405", "digits"),
    ],
)
def test_json_that_is_refused(tmp_path: Path, raw: bytes, code: str, says: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(raw)
    text = refused(code, files.read_json, path)
    assert says in text
    assert str(path) in text


def test_json_size_limit(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('"' + "a" * 2_000_000 + '"')
    assert "larger than 1 MB" in refused("LSM-406", files.read_json, path, limit_mb=1)
    assert len(files.read_json(path, limit_mb=3)) == 2_000_000


def test_a_hundred_levels_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"[" * 101 + b"]" * 101)
    files.read_json(path)


# -------------------------------------------------------------------------------------------------------- safetensors


@pytest.mark.parametrize("kind", hostile.SAFETENSORS)
def test_hostile_safetensors(tmp_path: Path, kind: str) -> None:
    raw, code = hostile.SAFETENSORS[kind]
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw)
    assert str(path) in refused(code, files.check_safetensors, path)


def test_truncated_text_names_tensor_and_sizes(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(hostile.pack(hostile.GOOD, hostile.DATA[:-3]))
    text = refused("LSM-413", files.check_safetensors, path)
    assert text.startswith(f'LSM-413 {path}: tensor "b" claims 4 bytes, 1 are left. The file is truncated or hostile.')


def test_sound_safetensors_load_equal(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    tensors = {
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "half": torch.randn(3, 5).to(torch.bfloat16),
        "flags": torch.tensor([True, False, True]),
        "wide": torch.arange(7),
        "tiny": torch.randn(8).to(torch.float8_e4m3fn),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    assert files.check_safetensors(path)["half"] == ("BF16", (3, 5))
    loaded = files.read_safetensors(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name].float(), tensor.float())


def test_loaded_tensors_survive_the_file(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(100_000)}, path)
    loaded = files.read_safetensors(path)["a"]
    path.write_bytes(b"\0" * path.stat().st_size)  # over the same bytes on the disk, not a new file
    assert torch.equal(loaded, torch.arange(100_000))


def test_mutated_safetensors_are_refused_or_sound(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    codes = set()
    for raw in hostile.mutations(hostile.pack(hostile.GOOD | {"__metadata__": {"format": "pt"}}), seed=7, count=3000):
        path.write_bytes(raw)
        try:
            found = files.check_safetensors(path)
            loaded = files.read_safetensors(path)
        except LissomError as error:
            codes.add(error.code)
        else:
            assert {name: tuple(tensor.shape) for name, tensor in loaded.items()} == {
                name: shape for name, (_, shape) in found.items()
            }
    assert all(code.startswith("LSM-4") for code in codes)
    assert {"LSM-405", "LSM-411", "LSM-412", "LSM-413", "LSM-415"} <= codes


# ------------------------------------------------------------------------------------------------------------ pickles


class Planted:
    """Unpickled, it would create the file `executed` in the working folder."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch executed",)


def _torch_file(value: object, *, zipped: bool) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def _zip_with_lies(value: bytes) -> bytes:
    """An archive with a pickle, whose flags claim encryption and whose checksum is wrong."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", value)
    raw = bytearray(buffer.getvalue())
    raw[6] |= 1
    raw[14:18] = b"\0\0\0\0"
    return bytes(raw)


def _pickles() -> dict[str, bytes]:
    import numpy as np

    payload = Planted()
    arrays = io.BytesIO()
    np.save(arrays, np.array([payload], dtype=object), allow_pickle=True)
    kinds = {f"protocol {number}": pickle.dumps(payload, protocol=number) for number in range(6)}
    kinds |= {f"state in protocol {number}": pickle.dumps({"w": [1, payload]}, protocol=number) for number in range(6)}
    return kinds | {
        "list in protocol 0": pickle.dumps([payload], protocol=0),
        "list in protocol 1": pickle.dumps([payload], protocol=1),
        "instance opcode": b"(S'touch executed'\nios\nsystem\n.",
        "torch zip": _torch_file({"w": payload}, zipped=True),
        "torch legacy": _torch_file({"w": payload}, zipped=False),
        "zip with lies": _zip_with_lies(pickle.dumps(payload)),
        "empty zip": b"PK\x05\x06" + b"\0" * 18,
        "tar": b"storages".ljust(257, b"\0") + b"ustar  \0" + b"\0" * 250,
        "numpy": arrays.getvalue(),
        "hdf5": b"\x89HDF\r\n\x1a\n" + b"\0" * 600,
    }


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "config.json", "weights"])
def test_pickles_by_content(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for kind, raw in _pickles().items():
        path = tmp_path / name
        path.write_bytes(raw)
        assert "or convert it where you trust it" in refused("LSM-401", files.refuse_pickle, path), kind
        refused("LSM-401", files.read_safetensors, path)
    assert sorted(one.name for one in tmp_path.iterdir()) == [name]


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".joblib", ".h5", ".keras", ".npy", ".PT"])
def test_pickles_by_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"harmless")
    assert str(path) in refused("LSM-401", files.refuse_pickle, path)


def test_plain_files_are_no_pickles(tmp_path: Path) -> None:
    plain = {
        "vocab.txt": b"cat\ndog\nmouse\n",
        "import.csv": b"content\nhello\npeople\n",
        "x.json": b"{}",
        "x.jsonl": b'{"text": "c"}\n',
        "x.jsonl.gz": gzip.compress(b"{}"),
        "README.md": b"# title\n",
        "empty": b"",
    }
    for length in range(0x80, 0x600, 0x100):  # a header length that starts like a pickle of protocol 0 to 5
        header = b'{"__metadata__":{"n":"' + b"n" * (length - 25) + b'"}}'
        plain[f"{length}.safetensors"] = hostile.pack(header, b"")
    for name, raw in plain.items():
        (tmp_path / name).write_bytes(raw)
        files.refuse_pickle(tmp_path / name)
    assert all(files.check_safetensors(path) == {} for path in tmp_path.glob("*.safetensors"))


# -------------------------------------------------------------------------------------------------------- containment


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            ".",
            "..",
            "../x",
            "a/../../x",
            "a/..",
            "/etc/passwd",
            "//host/share",
            "\\\\host\\share",
            "\\x",
            "a\\..\\x",
        ),
        *(
            "C:\\x",
            "C:x",
            "c:/x",
            "a\0b",
            "a\nb",
            "a\x1b[2J",
            "a\x7f",
            "\ud800",
            "x" * 201,
            "é" * 101,
            "a/" + "x" * 300,
        ),
    ],
)
def test_names_that_lead_outside(tmp_path: Path, name: str) -> None:
    refused("LSM-421", files.inside, tmp_path, name)


def test_names_that_stay_inside(tmp_path: Path) -> None:
    assert files.inside(tmp_path, "onnx/model.onnx") == tmp_path.resolve() / "onnx" / "model.onnx"
    assert files.inside(tmp_path, "model-00001-of-00002.safetensors").parent == tmp_path.resolve()
    assert files.inside(tmp_path, "a..b").name == "a..b"
    assert files.inside(tmp_path, "モデル.json").name == "モデル.json"


def test_links_are_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("token")
    folder = tmp_path / "model"
    (folder / "real").mkdir(parents=True)
    (folder / "file").symlink_to(secret)
    (folder / "parent").symlink_to(tmp_path)
    (folder / "within").symlink_to(folder / "real")
    (folder / "dangling").symlink_to(tmp_path / "nothing")
    (folder / "hard").hardlink_to(secret)
    for name in ("file", "parent/secret", "within/x", "dangling", "hard"):
        assert "link" in refused("LSM-422", files.inside, folder, name)
    assert files.inside(folder, "hard", hard_links=True).read_text() == "token"
    refused("LSM-422", files.digests, folder)


def test_a_folder_that_is_itself_a_link_is_the_users_choice(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "config.json").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert files.inside(tmp_path / "link", "config.json").read_text() == "{}"


def test_links_of_a_hub_snapshot(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--x" / "snapshots" / "abc"
    blobs = tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "123").write_text("{}")
    (tmp_path / "secret").write_text("token")
    (snapshot / "config.json").symlink_to("../../blobs/123")
    (snapshot / "stolen.json").symlink_to(tmp_path / "secret")
    assert files.inside(snapshot, "config.json").read_text() == "{}"
    refused("LSM-422", files.inside, snapshot, "stolen.json")


@pytest.mark.skipif(os.name != "posix", reason="FIFOs and device files are POSIX")
def test_special_files_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path):
        for call in (files.read_json, files.check_safetensors, files.refuse_pickle, files.digest):
            with pytest.raises(LissomError) as caught:
                call(path)
            assert caught.value.code in ("LSM-402", "LSM-403")


def test_a_missing_file(tmp_path: Path) -> None:
    assert "there is no such file" in refused("LSM-402", files.read_json, tmp_path / "config.json")
    refused("LSM-402", files.read_json, Path("a\0b"))


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").write_bytes(b"abc")
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "lissom.json").write_bytes(b"{}")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.digest(tmp_path / "b" / "x") == abc
    found = files.digests(tmp_path, but=["lissom.json"])
    assert list(found) == ["a", "b/x"]
    assert found["b/x"] == abc


# ------------------------------------------------------------------------------------------------------------ writing


def write(target: Path, text: str, *, force: bool = True) -> None:
    """An artifact of three files, the last of which says that it is complete."""
    with files.new_folder(target, force=force) as folder:
        (folder / "model.safetensors").write_text(text * 1000)
        (folder / "onnx").mkdir()
        (folder / "onnx" / "model.onnx").write_text(text)
        files.write_json(folder / "lissom.json", files.digests(folder))


def whole(target: Path) -> str:
    """The text of a complete artifact of `write`; fails when a file is missing, torn or from another save."""
    listed = files.read_json(target / "lissom.json")
    assert files.digests(target, but=["lissom.json"]) == listed
    return (target / "onnx" / "model.onnx").read_text()


def test_new_folder_appears_when_done(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "out"
    with files.new_folder(target) as folder:
        assert not target.exists()
        assert folder.parent == target.parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "x").write_text("1")
        (folder / "x").chmod(0o600)
    assert [one.name for one in target.parent.iterdir()] == ["out"]
    plain = tmp_path / "plain"
    plain.mkdir()
    assert target.stat().st_mode == plain.stat().st_mode
    assert stat.S_IMODE((target / "x").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode) & 0o666


def test_an_empty_folder_is_taken_and_a_full_one_refused(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    write(target, "1", force=False)
    text = refused("LSM-201", write, target, "2", force=False)
    assert text == f"LSM-201 output folder {target} exists and is not empty. Use --force or another --out."
    assert whole(target) == "1"
    write(target, "3")
    assert whole(target) == "3"
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_targets_that_are_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    refused("LSM-202", write, tmp_path / "file", "1")
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    for target in (Path(), Path(".."), Path("~"), tmp_path, Path("/")):
        refused("LSM-203", write, target, "1")
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(2)])
def test_a_failure_leaves_the_old_artifact_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "out"
    write(target, "old")

    def fail() -> None:
        with files.new_folder(target, force=True) as folder:
            (folder / "x").write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert whole(target) == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("form", [OSError(errno.ENOSPC, "no space"), RuntimeError("I/O error: full (os error 28)")])
def test_a_full_disk(tmp_path: Path, form: Exception) -> None:
    target = tmp_path / "out"
    write(target, "old")

    def fill() -> None:
        with files.new_folder(target, force=True) as folder:
            (folder / "x").write_text("half")
            raise form

    text = refused("LSM-602", fill)
    assert "the disk is full" in text
    assert "MB are free" in text
    assert whole(target) == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_a_disk_that_is_full_at_the_last_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    write(target, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LissomError, match="LSM-602"), files.new_folder(target, force=True) as folder:
        (folder / "x").write_text("new")
    refused("LSM-602", files.write_text, tmp_path / "out" / "onnx" / "model.onnx", "new")
    monkeypatch.undo()
    assert whole(target) == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    text = refused("LSM-603", write, tmp_path / "file" / "out", "1")
    assert "it cannot be written" in text
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none" / "x.html", tmp_path / "folder", tmp_path / ("x" * 300)):
        refused("LSM-603", files.write_text, path, "1")


def test_two_writers_without_force_do_not_mix(tmp_path: Path) -> None:
    target = tmp_path / "out"

    def race() -> None:
        with files.new_folder(target) as folder:
            (folder / "x").write_text("slow")
            write(target, "fast", force=False)

    refused("LSM-201", race)
    assert whole(target) == "fast"
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_two_writers_with_force_both_end_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write(target, "old")
    with files.new_folder(target, force=True) as folder:
        (folder / "x").write_text("slow")
        write(target, "fast")  # must not sweep away the folder that is being filled
        assert whole(target) == "fast"
    assert [one.name for one in target.iterdir()] == ["x"]
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_recover_is_quiet_when_nothing_happened(tmp_path: Path) -> None:
    files.recover(tmp_path / "out")
    write(tmp_path / "out", "1")
    files.recover(tmp_path / "out")
    assert whole(tmp_path / "out") == "1"


def _write_until(target: Path, point: int) -> int:
    """Replace `target` in a child that is killed before its `point`-th file operation; its exit status."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = point
    fsync = os.fsync

    def count(event: str, _: object = None) -> None:
        nonlocal left
        if event in {"open", "fsync", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "shutil.rmtree"}:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def counted(handle: int) -> None:
        count("fsync")
        fsync(handle)

    os.fsync = counted
    sys.addaudithook(count)
    try:
        write(target, "new")
        left = -1  # done
        status = 0 if whole(target) == "new" else 1
    except BaseException:  # noqa: BLE001 - a forked test runner must end here, whatever happened
        status = 2
    os._exit(status)


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_kill_at_every_file_operation_leaves_old_or_new(tmp_path: Path) -> None:
    states, point, code = set(), 0, -9
    while code == -9:
        point += 1
        place = tmp_path / str(point)
        target = place / "out"
        place.mkdir()
        write(target, "old")
        code = _write_until(target, point)
        assert code in (-9, 0)
        if target.exists():
            states.add(whole(target))
        files.recover(target)
        states.add(after := whole(target))
        assert code == -9 or after == "new"
        write(target, "next")  # the same command again
        assert whole(target) == "next"
        assert [one.name for one in place.iterdir()] == ["out"], f"killed at {point}"
    assert states == {"old", "new"}
    assert point > 25
