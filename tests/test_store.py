from __future__ import annotations

import json
import logging
import os
import random
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

import lissom
from lissom.edits import Editor, KeepHeads, KeepLayers, KeepNeurons, Record, ShareLayers
from lissom.errors import LissomError
from lissom.files import digest
from lissom.store import load, load_tokenizer, save
from tests import tiny
from tests.contracts.test_edits import edit

ROOT = Path(__file__).parents[1]
HEAD = "AutoModelForSequenceClassification"


def refused(code: str, call: Callable[..., object], *args: object, **options: object) -> str:
    """The text of the LissomError with this code that a call ends in."""
    with pytest.raises(LissomError) as caught:
        call(*args, **options)
    assert caught.value.code == code, caught.value
    return str(caught.value)


def narrow(variant: str = "bert", head: str = HEAD) -> PreTrainedModel:
    """A model that a plain loader cannot build: fewer neurons than its config says."""
    model = tiny.model(variant, head)
    Editor(model).apply(KeepNeurons(neurons=tuple(tuple(range(8 + i)) for i in range(3))))
    return model


def change(path: Path, **entries: object) -> None:
    """Set entries of a JSON file, and correct its digest in `lissom.json` as an attacker would."""
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    resign(path)


def resign(path: Path) -> None:
    manifest = path.with_name("lissom.json")
    if manifest.exists() and path != manifest:
        content = json.loads(manifest.read_text())
        content["files"][path.name] = digest(path)
        manifest.write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A lissom folder with a narrow model."""
    return save(narrow(), tmp_path / "out")


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A folder as transformers writes it."""
    tiny.model("bert", HEAD).save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


# ------------------------------------------------------------------------------------------------------------- saving


def test_what_a_folder_holds(tmp_path: Path) -> None:
    recipe = {"name": "mine", "steps": [{"prune_neurons": {"ratio": 0.5}}]}
    made = save(
        narrow(),
        tmp_path / "out",
        tokenizer=tiny.tokenizer(),
        base="org/model@abc",
        recipe=recipe,
        rows=[{"subject": "x"}],
        card="| a |\n",
    )
    manifest = json.loads((made / "lissom.json").read_text())
    assert manifest["format"] == 1
    assert manifest["class"] == "BertForSequenceClassification"
    assert manifest["base"] == {"model": "org/model", "revision": "abc"}
    assert manifest["recipe"] == recipe
    assert manifest["edits"][0]["edit"] == "KeepNeurons"
    assert set(manifest["versions"]) == {"python", "lissom", "torch", "transformers", "safetensors"}
    others = {path.name for path in made.iterdir()} - {"lissom.json"}
    assert manifest["files"] == {name: digest(made / name) for name in sorted(others)}
    assert {"config.json", "model.safetensors", "README.md", "rows.jsonl", "tokenizer.json"} <= others
    config = json.loads((made / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "lissom"
    assert "_name_or_path" not in config


def test_the_card(tmp_path: Path) -> None:
    base = "x: [1]\n--- \nlicense"
    text = (save(narrow(), tmp_path / "out", base=base, card="| table |") / "README.md").read_text()
    front, body = text.split("---\n", 2)[1:]
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "tags": ["lissom", "model-compression"],
        "base_model": base,
    }
    assert body.strip().splitlines()[0].startswith("Run `import lissom` before `BertForSequenceClassification.from_")
    assert body.endswith("| table |\n")
    text = (save(tiny.model("bert"), tmp_path / "plain") / "README.md").read_text()
    assert "Plain transformers loads this model" in text


def test_short_edits_load_and_full_ones_are_remembered(tmp_path: Path) -> None:
    model = tiny.model("bert")
    Editor(model).apply(KeepHeads(heads=((1, 3), (0,), (2, 3))))
    made = save(model, tmp_path / "out")
    config = json.loads((made / "config.json").read_text())
    assert config["quantization_config"]["edits"][0]["heads"] == [[0, 1], [0], [0, 1]]
    assert Record.of(load(made)).edits == (KeepHeads(heads=((1, 3), (0,), (2, 3))),)


def test_shared_layers_are_stored_once(tmp_path: Path) -> None:
    model = tiny.model("bert")
    Editor(model).apply(ShareLayers(source=(2, 2, 2)))
    stored = load_file(save(model, tmp_path / "out") / "model.safetensors")
    assert {name.split(".")[2] for name in stored if name.startswith("encoder.layer")} == {"2"}
    loaded = load(tmp_path / "out")
    assert loaded.encoder.layer[0].attention.self.query.weight is loaded.encoder.layer[2].attention.self.query.weight


def test_a_tied_head_is_stored_once_and_tied_again(tmp_path: Path) -> None:
    model = narrow("gpt2", "AutoModelForCausalLM")
    stored = load_file(save(model, tmp_path / "out") / "model.safetensors")
    assert "lm_head.weight" not in stored
    loaded = load(tmp_path / "out")
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(loaded.generate(ids, max_new_tokens=5), model.generate(ids, max_new_tokens=5))
    assert (tmp_path / "out" / "generation_config.json").exists()


@pytest.mark.parametrize("packed", [False, True], ids=["floats", "packed"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes(tmp_path: Path, dtype: torch.dtype, packed: bool) -> None:
    model = narrow().to(dtype)
    if packed:
        edit(model, "Pack")
    loaded = load(save(model, tmp_path / "out"))
    assert loaded.dtype == dtype
    inputs = tiny.batch(model)
    assert torch.equal(tiny.outputs(model, inputs), tiny.outputs(loaded, inputs))
    assert load(tmp_path / "out", dtype="float32").dtype == torch.float32


def test_tensors_that_share_memory_by_chance(tmp_path: Path) -> None:
    """Views of one storage, and a tie nobody declared, come back with the right numbers."""
    model = tiny.model("bert")
    both = torch.randn(2, 32)
    model.pooler.dense.bias = torch.nn.Parameter(both[0])
    model.encoder.layer[0].output.dense.bias = torch.nn.Parameter(both[1])
    model.encoder.layer[1].output.dense.weight = model.encoder.layer[0].output.dense.weight
    model.encoder.layer[2].output.dense.weight = torch.nn.Parameter(torch.randn(48, 32).t())
    with pytest.raises(LissomError, match="LSM-442"):
        save(model, tmp_path / "no")  # the tie would be lost, and with it the number of parameters
    model.encoder.layer[1].output.dense.weight = torch.nn.Parameter(torch.randn(32, 48))
    loaded = load(save(model, tmp_path / "out"))
    inputs = tiny.batch(model)
    assert torch.equal(tiny.outputs(model, inputs), tiny.outputs(loaded, inputs))


def test_a_structure_off_the_record_is_refused(tmp_path: Path) -> None:
    model = tiny.model("bert")
    model.encoder.layer[1].output.dense = torch.nn.Linear(20, 32)
    text = refused("LSM-442", save, model, tmp_path / "out")
    assert "encoder.layer.1.output.dense.weight" in text
    assert not (tmp_path / "out").exists()

    class Other(type(model)):  # type: ignore[misc]
        pass

    refused("LSM-441", save, Other(model.config), tmp_path / "out")


def test_force(folder: Path) -> None:
    assert "is not empty. Use --force" in refused("LSM-201", save, tiny.model("bert"), folder)
    save(tiny.model("bert"), folder, force=True)
    assert type(load(folder)).__name__ == "BertModel"


def test_saving_over_the_loaded_model(folder: Path) -> None:
    model = load(folder)
    inputs = tiny.batch(model)
    before = tiny.outputs(model, inputs)
    save(model, folder, force=True)
    assert torch.equal(tiny.outputs(model, inputs), before)
    assert torch.equal(tiny.outputs(load(folder), inputs), before)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_save_that_fails_leaves_the_old_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    import lissom.store.saving

    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(lissom.store.saving, "write_weights", fail)
    with pytest.raises((KeyboardInterrupt, LissomError)) as caught:
        save(tiny.model("bert"), folder, force=True)
    assert isinstance(error, KeyboardInterrupt) or caught.value.code == "LSM-602"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


def test_a_swap_that_was_killed_is_finished_by_load(folder: Path) -> None:
    folder.rename(folder.with_name(".out.lissom-ready"))
    load(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


# ---------------------------------------------------------------------------------------- the bridge and plain loading


def _python(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_dropped_layers_load_without_lissom(tmp_path: Path) -> None:
    model = tiny.model("bert", HEAD)
    Editor(model).apply(KeepLayers(keep=(0, 2)))
    made = save(model, tmp_path / "out")
    assert "quantization_config" not in json.loads((made / "config.json").read_text())
    save_file(tiny.batch(model) | {"wanted": tiny.outputs(model, tiny.batch(model))}, tmp_path / "batch.safetensors")
    ran = _python(
        """
        import sys, torch
        from safetensors.torch import load_file
        from transformers import AutoModelForSequenceClassification
        model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
        batch = load_file(sys.argv[2])
        wanted = batch.pop("wanted")
        torch.testing.assert_close(model(**batch).logits.flatten(), wanted, atol=1e-6, rtol=0)
        assert "lissom" not in sys.modules
        print(model.config.num_hidden_layers)
        """,
        made,
        tmp_path / "batch.safetensors",
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "2"


@pytest.mark.parametrize("first", ["lissom", "transformers.quantizers.auto", "lissom.store.quantizer"])
def test_the_bridge_in_every_order_of_imports(folder: Path, first: str) -> None:
    ran = _python(
        f"""
        import sys, {first}
        if "{first}" == "lissom":
            assert not {{"torch", "transformers", "pydantic"}} & sys.modules.keys(), "import lissom must stay light"
        import lissom
        from transformers import AutoModelForSequenceClassification
        model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
        print(model.bert.encoder.layer[1].intermediate.dense.out_features)
        """,
        folder,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "9"


def test_another_head_on_the_same_folder(folder: Path) -> None:
    bare = load(folder, auto_class="AutoModel")
    assert type(bare).__name__ == "BertModel"
    inputs = tiny.batch(bare)
    whole = load(folder)
    assert torch.equal(bare(**inputs).pooler_output, whole.bert(**inputs).pooler_output)
    assert type(transformers.AutoModel.from_pretrained(folder)).__name__ == "BertModel"


def test_a_loaded_model_trains_and_is_saved_as_any_other(folder: Path, tmp_path: Path) -> None:
    model = load(folder)
    assert not getattr(model, "is_quantized", False)
    assert not hasattr(model, "hf_quantizer")
    assert not hasattr(model.config, "quantization_config")
    rows = [{"input_ids": [1, 5 + i, 2], "attention_mask": [1, 1, 1], "labels": i % 3} for i in range(8)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=3, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True
    )
    before = model.bert.encoder.layer[0].intermediate.dense.weight.detach().clone()
    transformers.Trainer(model=model, args=arguments, train_dataset=rows).train()
    assert not torch.equal(before, model.bert.encoder.layer[0].intermediate.dense.weight)
    model.eval()
    again = load(save(model, tmp_path / "trained"))
    inputs = tiny.batch(model)
    assert torch.equal(tiny.outputs(model, inputs), tiny.outputs(again, inputs))
    model.save_pretrained(tmp_path / "written")  # weights and final config, no record


def test_the_device_and_a_copy(folder: Path) -> None:
    assert load(folder, device="cpu").device.type == "cpu"
    shutil.copytree(folder, folder.with_name("copy"), copy_function=os.link)  # as installers link packages
    load(folder.with_name("copy"))


# ------------------------------------------------------------------------------------------ broken and hostile folders


def test_a_plain_folder(plain: Path) -> None:
    model = load(plain)
    assert type(model).__name__ == "BertForSequenceClassification"
    assert not Record.of(model).edits
    assert not model.training


def test_a_plain_sharded_folder(tmp_path: Path) -> None:
    model = tiny.model("bert", HEAD)
    model.save_pretrained(tmp_path / "out", max_shard_size="60KB")
    index = tmp_path / "out" / "model.safetensors.index.json"
    inputs = tiny.batch(model)
    assert torch.equal(tiny.outputs(load(tmp_path / "out"), inputs), tiny.outputs(model, inputs))
    places = json.loads(index.read_text())["weight_map"]
    name, shard = next(iter(places.items()))
    (tmp_path / "x.safetensors").write_bytes((tmp_path / "out" / shard).read_bytes())
    (tmp_path / "out" / "link.safetensors").symlink_to(tmp_path / "x.safetensors")
    (tmp_path / "out" / "hard.safetensors").hardlink_to(tmp_path / "x.safetensors")
    (tmp_path / "out" / "x.bin").write_bytes(b"x")
    other = next(one for one in places.values() if one != shard)
    for hostile, code in (
        ("../x.safetensors", "LSM-421"),
        (str(tmp_path / "x.safetensors"), "LSM-421"),
        ("link.safetensors", "LSM-422"),
        ("hard.safetensors", "LSM-422"),
        ("x.bin", "LSM-401"),
        ("missing.safetensors", "LSM-402"),
        (other, "LSM-423"),
        (7, "LSM-423"),
    ):
        index.write_text(json.dumps({"metadata": {}, "weight_map": places | {name: hostile}}))
        refused(code, load, tmp_path / "out")
    index.write_text("[]")
    refused("LSM-423", load, tmp_path / "out")


def test_only_a_pickle(plain: Path) -> None:
    torch.save({"a": torch.zeros(1)}, plain / "pytorch_model.bin")
    load(plain)  # the safetensors beside it are taken
    (plain / "model.safetensors").rename(plain / "gone")
    text = refused("LSM-401", load, plain)
    assert "pytorch_model.bin" in text
    assert "use_safetensors=False" in text
    (plain / "pytorch_model.bin").rename(plain / "model.safetensors")
    assert "zip archive" in refused("LSM-401", load, plain)


def test_folders_that_are_no_models(tmp_path: Path, plain: Path) -> None:
    assert "no such model folder" in refused("LSM-402", load, tmp_path / "nothing")
    assert "no such model folder" in refused("LSM-402", load, "./not/here")
    (tmp_path / "empty").mkdir()
    assert "there are no weights" in refused("LSM-404", load, tmp_path / "empty")
    shutil.copy(plain / "model.safetensors", tmp_path / "empty")
    assert "there is no config.json" in refused("LSM-402", load, tmp_path / "empty")
    assert "it lies in" in refused("LSM-402", load, str(plain / "model.safetensors"))
    (plain / "adapter_config.json").write_text("{}")
    assert "adapter" in refused("LSM-404", load, plain)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (plain / "adapter_config.json").rename(adapter / "adapter_config.json")  # an adapter has no config.json
    assert "adapter" in refused("LSM-404", load, adapter)
    (plain / "lissom.json").write_text(json.dumps({"format": 1, "export": {"target": "onnx"}, "files": {}}))
    assert "exported" in refused("LSM-441", load, plain)


def test_a_plain_folder_must_fill_the_model(plain: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = plain / "model.safetensors"
    whole = load_file(path)
    lost = "bert.encoder.layer.1.output.dense.weight"
    for name, kind in ((lost, None), (lost, "AutoModel"), ("classifier.weight", None)):
        save_file({key: one for key, one in whole.items() if key != name}, path, metadata={"format": "pt"})
        assert name.removeprefix("bert.") in refused("LSM-443", load, plain, auto_class=kind)
    kept = {key: one for key, one in whole.items() if "pooler" not in key and "classifier" not in key}
    save_file(kept, path, metadata={"format": "pt"})
    load(plain, auto_class="AutoModel")
    save_file(whole | {"extra": torch.zeros(1)}, path, metadata={"format": "pt"})
    with caplog.at_level(logging.WARNING, "lissom"):
        load(plain)
    assert "not used: 1 tensors, such as extra" in caplog.text
    save_file(whole | {"classifier.weight": torch.zeros(7, 7)}, path, metadata={"format": "pt"})
    refused("LSM-445", load, plain)


def test_a_hub_id_while_offline() -> None:
    text = refused("LSM-703", load, "some-org/some-model")
    assert "HF_HUB_OFFLINE is set" in text
    assert "\n" not in text
    refused("LSM-703", load_tokenizer, "some-org/some-model")


@pytest.mark.parametrize("size", [0, 5, 200, -1])
def test_truncated_weights(folder: Path, plain: Path, size: int) -> None:
    for one in (folder, plain):
        path = one / "model.safetensors"
        path.write_bytes(path.read_bytes()[:size])
        resign(path)
        with pytest.raises(LissomError, match="LSM-41") as caught:
            load(one)
        assert "Download it again" in str(caught.value)


def test_every_damaged_file_is_named(folder: Path) -> None:
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in sorted(whole.keys() - {"lissom.json", "README.md"}):
        (folder / name).write_bytes(whole[name][:-9] + bytes([whole[name][-9] ^ 1]) + whole[name][-8:])
        assert f"digest of {name} does not match lissom.json" in refused("LSM-461", load, folder)
        (folder / name).unlink()
        assert f"{name} is missing" in refused("LSM-462", load, folder)
        (folder / name).write_bytes(whole[name])
    (folder / "README.md").write_text("edited by a person")
    load(folder)


@pytest.mark.parametrize(
    ("entries", "code"),
    [
        ({"format": 2}, "LSM-441"),
        ({"format": 0}, "LSM-441"),
        ({"format": "1"}, "LSM-441"),
        ({"files": {}}, "LSM-441"),
        ({"files": []}, "LSM-441"),
        ({"class": "os.system"}, "LSM-441"),
        ({"class": "logging"}, "LSM-441"),
        ({"class": "pipeline"}, "LSM-441"),
        ({"class": 3}, "LSM-441"),
        ({"class": "BertForMaskedLM"}, "LSM-443"),
        ({"edits": [{"edit": "Exec", "code": "1"}]}, "LSM-452"),
        ({"edits": [{"edit": "KeepLayers", "keep": [0], "path": "/"}]}, "LSM-452"),
        ({"edits": {}}, "LSM-452"),
        ({"edits": [{}] * 2000}, "LSM-452"),
    ],
)
def test_doctored_manifests(folder: Path, entries: dict[str, Any], code: str) -> None:
    change(folder / "lissom.json", **entries)
    refused(code, load, folder)


def test_manifest_names_lead_nowhere_else(folder: Path) -> None:
    content = json.loads((folder / "lissom.json").read_text())
    content["files"]["../secret"] = "0" * 64
    (folder / "lissom.json").write_text(json.dumps(content))
    refused("LSM-421", load, folder)
    (folder / "lissom.json").write_text("[]")
    refused("LSM-441", load, folder)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"edits": []}, "LSM-445"),
        ({"edits": [{"edit": "KeepNeurons", "stack": "", "neurons": [[0], [0], [0]]}]}, "LSM-445"),
        ({"edits": [{"edit": "KeepNeurons", "stack": "", "neurons": [[], [0], [0]]}]}, "LSM-451"),
        ({"edits": [{"edit": "KeepLayers", "stack": "", "keep": [0]}]}, "LSM-444"),
        ({"edits": [{"edit": "Pack", "linears": ["x.__class__"], "embeddings": []}]}, "LSM-451"),
        ({"restore": {"num_hidden_layers": 5}}, "LSM-451"),
        ({"restore": {"num_hidden_layers": 10**9}}, "LSM-432"),
        ({"restore": {"_attn_implementation": "org/kernel"}}, "LSM-431"),
        ({"restore": {"auto_map": {"AutoModel": "x.y"}}}, "LSM-431"),
        ({"restore": {"save_pretrained": 1}}, "LSM-433"),
        ({"restore": []}, "LSM-452"),
        ({"restore": {"hidden_act": "os.system"}}, "LSM-431"),
    ],
)
def test_doctored_records(folder: Path, changes: dict[str, Any], code: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(folder / "config.json", quantization_config=config["quantization_config"] | changes)
    refused(code, load, folder)
    refused(code, transformers.AutoModelForSequenceClassification.from_pretrained, folder)


def test_tensors_that_do_not_fit_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = load_file(path)
    for code, name, changed in (
        ("LSM-443", "classifier.bias", {key: one for key, one in whole.items() if key != "classifier.bias"}),
        ("LSM-444", "extra", whole | {"extra": torch.zeros(1)}),
        ("LSM-445", "classifier.bias", whole | {"classifier.bias": torch.zeros(7)}),
    ):
        save_file(changed, path, metadata={"format": "pt"})
        resign(path)
        assert f'"{name}"' in refused(code, load, folder)


PLANTED = "open('executed', 'w').close()\n"


@pytest.mark.parametrize(
    "entries",
    [
        {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}},
        {"auto_map": {"AutoModel": "org/repo--evil.Model"}, "trust_remote_code": True},
        {"_attn_implementation_internal": "org/kernel"},
        {"_attn_implementation": "org/kernel:fn"},
        {"attn_implementation": "org/kernel"},
        {"_experts_implementation_internal": "org/kernel"},
        {"vision_config": {"auto_map": {"AutoModel": "evil.Model"}, "trust_remote_code": True}},
        {"text_config": {"quantization_config": {"quant_method": "gptq"}}},
        {"custom_pipelines": {"x": {"impl": "evil.Pipe"}}},
        {"transformers_weights": "../../x.bin"},
        {"fusion_config": {"patch_embeddings": True}},
        {"kernel_config": {"x": "org/kernel"}, "use_kernels": True},
    ],
)
def test_configs_that_name_code_are_not_followed(
    plain: Path, entries: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(plain.parent)
    (plain / "evil.py").write_text(PLANTED)
    change(plain / "config.json", **entries)
    with caplog.at_level(logging.WARNING, "lissom"):
        model = load(plain)
    assert type(model).__name__ == "BertForSequenceClassification"
    assert model.config._attn_implementation in ("sdpa", "eager")
    assert not hasattr(model.config, "auto_map")
    assert "ignored, because it could name code" in caplog.text
    change(plain / "config.json", model_type="evil")
    refused("LSM-431", load, plain)
    assert not (plain.parent / "executed").exists()
    assert not (plain / "executed").exists()


@pytest.mark.parametrize(
    ("entries", "code"),
    [
        ({"model_type": "brt"}, "LSM-433"),
        ({"model_type": None}, "LSM-433"),
        ({"model_type": ["bert"]}, "LSM-433"),
        ({"num_hidden_layers": 10**9}, "LSM-432"),
        ({"num_hidden_layers": 1001}, "LSM-432"),
        ({"num_hidden_layers": -5}, "LSM-432"),
        ({"num_hidden_layers": -1}, "LSM-432"),
        ({"num_hidden_layers": 10**40}, "LSM-432"),
        ({"hidden_size": 65537}, "LSM-432"),
        ({"hidden_size": 0}, "LSM-432"),
        ({"hidden_size": "32"}, "LSM-432"),
        ({"hidden_size": 32.5}, "LSM-432"),
        ({"intermediate_size": 10**9}, "LSM-432"),
        ({"vocab_size": 10**8}, "LSM-432"),
        ({"vocab_size": 0}, "LSM-432"),
        ({"num_attention_heads": 0}, "LSM-432"),
        ({"num_attention_heads": 5}, "LSM-432"),
        ({"max_position_embeddings": 10**12}, "LSM-432"),
        ({"layer_types": ["full_attention"] * 20_000}, "LSM-432"),
        ({"hidden_act": "os.system"}, "LSM-446"),
        ({"hidden_dropout_prob": "much"}, "LSM-433"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "LSM-434"),
        ({"quantization_config": "gptq"}, "LSM-434"),
        ({"architectures": ["os.system"]}, "LSM-441"),
        ({"architectures": ["Trainer"]}, "LSM-441"),
        ({"hidden_size": 64}, "LSM-445"),
        ({"num_hidden_layers": 4}, "LSM-443"),
        ({"vocab_size": 10_000_000}, "LSM-432"),
        ({"max_position_embeddings": 10**8}, "LSM-432"),
        ({"num_hidden_layers": 1000, "intermediate_size": 200_000}, "LSM-432"),
    ],
)
def test_doctored_configs(plain: Path, entries: dict[str, Any], code: str) -> None:
    change(plain / "config.json", **entries)
    text = refused(code, load, plain)
    assert len(text) < 700


def test_generated_configs_load_or_are_refused(plain: Path) -> None:
    whole = json.loads((plain / "config.json").read_text())
    chance = random.Random(5)
    values = [None, 0, -1, 2**31, 2**63, 1.5, True, "", "../x", "os.system", [], [None], {}, {"a": {}}, ["x"] * 50, 3]
    keys = [*whole, "layer_types", "rope_parameters", "pruned_heads", "torch_dtype", "name_or_path", "use_cache", "x"]
    ends = set()
    for _ in range(150):
        doctored = whole | {chance.choice(keys): chance.choice(values) for _ in range(chance.randint(1, 2))}
        (plain / "config.json").write_text(json.dumps(doctored))
        try:
            load(plain)
        except LissomError as error:
            ends.add(error.code)
        else:
            ends.add("loads")
    assert {"loads", "LSM-432", "LSM-433", "LSM-441"} <= ends


def test_labels_may_be_any_words(tmp_path: Path) -> None:
    model = tiny.model("bert", HEAD)
    model.config.id2label = {0: "_O", 1: "auto_map", 2: "../x"}
    model.config.label2id = {"_O": 0, "auto_map": 1, "../x": 2}
    loaded = load(save(model, tmp_path / "out"))
    assert loaded.config.label2id == model.config.label2id
    assert loaded.config.id2label == model.config.id2label


def test_links_to_other_files_are_not_read(plain: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    (plain / "config.json").rename(secret)
    (plain / "config.json").symlink_to(secret)
    refused("LSM-422", load, plain)


def test_a_record_does_not_excuse_a_config_that_is_far_larger_than_the_files(folder: Path) -> None:
    (folder / "lissom.json").unlink()
    change(folder / "config.json", vocab_size=2_000_000)
    refused("LSM-432", load, folder, auto_class="AutoModelForTokenClassification")


# ---------------------------------------------------------------------------------------------------------- tokenizers


def test_the_tokenizer_comes_back(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    made = save(narrow(), tmp_path / "out", tokenizer=tokenizer)
    loaded = load_tokenizer(made)
    for text in tiny.texts(20):
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.model_max_length == 64


def test_tokenizers_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused("LSM-435", load_tokenizer, save(narrow(), tmp_path / "none"))
    made = save(narrow(), tmp_path / "out", tokenizer=tiny.tokenizer())
    (made / "evil.py").write_text(PLANTED)
    change(made / "tokenizer_config.json", chat_template=[{"name": "../../x", "template": "t"}])
    refused("LSM-421", load_tokenizer, made)
    change(made / "tokenizer_config.json", chat_template="", auto_map={"AutoTokenizer": ["evil.T", "evil.T"]})
    load_tokenizer(made)
    (made / "tokenizer.json").write_text('{"model": {"type": "WordLevel"}}')
    refused("LSM-461", load_tokenizer, made)
    resign(made / "tokenizer.json")
    with pytest.raises(LissomError, match="LSM-435") as caught:
        load_tokenizer(made)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["chat_template.jinja", "added_tokens.json", "additional_chat_templates/x.jinja"])
def test_a_tokenizer_reads_through_no_link(tmp_path: Path, name: str) -> None:
    made = save(narrow(), tmp_path / "out", tokenizer=tiny.tokenizer())
    (tmp_path / "secret").write_text("{}")
    (made / name).parent.mkdir(exist_ok=True)
    (made / name).symlink_to(tmp_path / "secret")
    refused("LSM-422", load_tokenizer, made)


@pytest.mark.parametrize("key", ["vocab", "merges"])
def test_a_tokenizer_names_no_file_elsewhere(tmp_path: Path, key: str) -> None:
    made = save(narrow(), tmp_path / "out", tokenizer=tiny.tokenizer())
    (tmp_path / "secret").write_text("[PAD]\nhidden\n")
    change(made / "tokenizer_config.json", **{key: str(tmp_path / "secret"), "tokenizer_class": "BertTokenizer"})
    refused("LSM-421", load_tokenizer, made)


def test_public_names() -> None:
    assert lissom.save is save
    assert lissom.load is load
