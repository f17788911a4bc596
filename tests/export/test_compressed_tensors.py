"""Folders in the compressed-tensors format: the same codes, and the answers of torch through plain transformers."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

import lissom
from lissom.edits import Editor, PackGroups
from lissom.errors import LissomError
from lissom.export import Artifact, export
from lissom.methods.base import Given
from lissom.methods.pruning.prune_neurons import PruneNeurons
from lissom.methods.quantization.hqq import Hqq
from lissom.methods.quantization.int8 import Int8
from lissom.methods.quantization.rtn import Rtn
from lissom.nn import Int8Linear
from lissom.nn.grouped import GroupedLinear, grid, round_to
from lissom.nn.palette import pack_indices
from lissom.nn.static import StaticInt8Linear
from tests import tiny
from tests.export.test_static import static

pytest.importorskip("compressed_tensors", reason="the llm extra is not installed")

from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

from lissom.export.compressed_tensors import BFLOAT16, DECODED, _fitting, _scheme, _words

TARGET = "compressed-tensors"


def llama(**changes: object) -> PreTrainedModel:
    return tiny.model("llama", "AutoModelForCausalLM", **{"num_hidden_layers": 2, **changes})


def rounded(model: PreTrainedModel, method: Rtn | Hqq | Int8) -> PreTrainedModel:
    method.apply(Editor(model), Given())
    return model


def even(model: PreTrainedModel, bits: int, paths: list[str]) -> None:
    """Groups of 16 whose zero point is the middle code."""
    editor, tensors = Editor(model), {}
    for path in paths:
        weight = model.get_submodule(path).weight
        scale, zero = grid(weight, bits=bits, group=16, symmetric=True)
        codes = round_to(weight, scale, zero, bits=bits, group=16)
        tensors[f"{path}.weight"] = pack_indices(codes, bits)
        tensors |= {f"{path}.weight_scale": scale.half(), f"{path}.weight_zero": zero.half()}
    editor.apply(PackGroups(bits=bits, group=16, linears=tuple(paths)), tensors)


def packing(folder: Path) -> dict[str, object]:
    made: dict[str, object] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return made


def plain(folder: Path, model: PreTrainedModel) -> torch.Tensor:
    """What plain transformers answers with the folder."""
    return tiny.outputs(AutoModelForCausalLM.from_pretrained(folder), tiny.batch(model))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Artifact]:
    model = rounded(llama(), Rtn(group=16))
    return model, export(model, TARGET, tmp_path_factory.mktemp("four") / "out", tokenizer=tiny.tokenizer())


def test_words_by_hand() -> None:
    codes = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 0, 9, 0]])
    assert _words(codes, 4).tolist() == [[0x07654321, 0x09]]
    assert _words(codes[:, :5], 8).tolist() == [[0x04030201, 0x05]]


@pytest.mark.parametrize("bits", [4, 8])
def test_words_are_those_of_the_package(bits: int) -> None:
    codes = torch.randint(2**bits, (6, 40), generator=torch.Generator().manual_seed(0))
    theirs = (codes - 2 ** (bits - 1)).to(torch.int8)
    assert torch.equal(_words(codes, bits), pack_to_int32(theirs, bits))
    assert torch.equal(_words(codes.T, bits).T, pack_to_int32(theirs, bits, packed_dim=0))


def test_codes_scales_and_zero_points_are_those_of_the_model(four: tuple[PreTrainedModel, Artifact]) -> None:
    model, artifact = four
    state, path = load_file(artifact.folder / "model.safetensors"), "model.layers.0.mlp.down_proj"
    layer = model.get_submodule(path)
    assert isinstance(layer, GroupedLinear)
    assert state[f"{path}.weight_packed"].shape == (32, 48 * 4 // 32)
    assert state[f"{path}.weight_zero_point"].shape == (32 * 4 // 32, 3)
    assert torch.equal(state[f"{path}.weight_packed"].view(torch.uint8), layer.weight.view(torch.uint8))
    assert torch.equal(state[f"{path}.weight_scale"], layer.weight_scale.float())
    assert state[f"{path}.weight_shape"].tolist() == [32, 48]
    assert f"{path}.weight" not in state
    made = packing(artifact.folder)
    assert made["format"] == "pack-quantized"
    assert made["ignore"] == ["lm_head"]
    assert made["config_groups"]["group_0"]["targets"] == ["Linear"]  # type: ignore[index]
    assert artifact.notes == (DECODED,)


def test_plain_transformers_answers_and_generates_as_torch(four: tuple[PreTrainedModel, Artifact]) -> None:
    model, artifact = four
    torch.testing.assert_close(plain(artifact.folder, model), tiny.outputs(model, tiny.batch(model)))
    again, ids = AutoModelForCausalLM.from_pretrained(artifact.folder), torch.tensor([[5, 6, 7]])
    asked = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    assert torch.equal(again.generate(ids, **asked), model.generate(ids, **asked))


def test_lissom_opens_the_folder_and_compares_its_digests(
    four: tuple[PreTrainedModel, Artifact], tmp_path: Path
) -> None:
    model, artifact = four
    runner = artifact.runner(threads=1)
    assert runner.name == "torch"
    again = lissom.load(artifact.folder)
    torch.testing.assert_close(tiny.outputs(again, tiny.batch(model)), tiny.outputs(model, tiny.batch(model)))
    made = export(rounded(llama(), Rtn(group=16)), TARGET, tmp_path / "out").folder
    (made / "config.json").write_text((made / "config.json").read_text() + " ")
    with pytest.raises(LissomError) as caught:
        lissom.load(made)
    assert caught.value.code == "LSM-461"


@pytest.mark.parametrize("bits", [4, 8])
def test_middle_zero_points_are_left_out(bits: int, tmp_path: Path) -> None:
    model = llama()
    even(model, bits, [slot.path for slot in Editor(model).anatomy().linears()])
    artifact = export(model, TARGET, tmp_path / "out")
    state = load_file(artifact.folder / "model.safetensors")
    assert not any("zero" in name for name in state)
    assert state["model.layers.0.mlp.up_proj.weight_scale"].dtype == torch.float16
    assert "dequantize" not in packing(artifact.folder)
    assert artifact.notes == ()
    torch.testing.assert_close(plain(artifact.folder, model), tiny.outputs(model, tiny.batch(model)))


def test_dynamic_int8_is_rounded_by_token_and_says_so(tmp_path: Path) -> None:
    model = rounded(llama(), Int8())
    artifact = export(model, TARGET, tmp_path / "out")
    state, path = load_file(artifact.folder / "model.safetensors"), "model.layers.1.self_attn.q_proj"
    layer = model.get_submodule(path)
    assert isinstance(layer, Int8Linear)
    assert torch.equal(state[f"{path}.weight"], layer.weight)
    assert torch.equal(state[f"{path}.weight_scale"], layer.weight_scale[:, None])
    assert state["model.embed_tokens.weight"].dtype == torch.float32  # a table has no form
    assert packing(artifact.folder)["format"] == "int-quantized"
    (note,) = artifact.notes
    assert "and with one a tensor in lissom" in note
    assert f"by {artifact.parity['rounding_noise']:.1f} times what rounding" in note
    assert artifact.parity["unrounded_largest_difference"] < 1e-5
    assert 0 < artifact.parity["rounding_noise"] < 2
    ours, theirs = tiny.outputs(model, tiny.batch(model)), plain(artifact.folder, model)
    assert torch.cosine_similarity(ours, theirs, dim=0) > 0.99
    assert not torch.equal(ours, theirs)


def test_scales_of_tokens_are_near_those_of_transformers(tmp_path: Path) -> None:
    artifact = export(rounded(llama(), Int8(per="token")), TARGET, tmp_path / "out")
    assert "and with one a token, at 127 steps, in lissom" in artifact.notes[0]
    assert 0 < artifact.parity["rounding_noise"] < 2


def test_static_int8_answers_as_torch(tmp_path: Path) -> None:
    model = static(llama())
    artifact = export(model, TARGET, tmp_path / "out")
    state, path = load_file(artifact.folder / "model.safetensors"), "model.layers.0.mlp.down_proj"
    layer = model.get_submodule(path)
    assert isinstance(layer, StaticInt8Linear)
    assert state[f"{path}.input_scale"].tolist() == [float(layer.input_scale)]
    assert state[f"{path}.input_zero_point"].tolist() == [int(layer.input_zero) - 128]
    assert artifact.notes == ()
    assert artifact.parity["rounding_noise"] < 0.1
    assert artifact.parity["cosine"] > 0.9999


def test_schemes_are_groups_with_their_own_targets(tmp_path: Path) -> None:
    model = llama()
    first, second = (
        [slot.path for slot in Editor(model).anatomy().linears() if f".{number}." in slot.path] for number in (0, 1)
    )
    even(model, 4, first[:3])
    even(model, 8, first[3:])
    rounded(model, Int8(embeddings=False))
    artifact = export(model, TARGET, tmp_path / "out")
    made = packing(artifact.folder)
    assert made["format"] == "mixed-precision"
    groups = list(made["config_groups"].values())  # type: ignore[attr-defined]
    assert [one["weights"]["num_bits"] for one in groups] == [4, 8, 8]
    assert [one["format"] for one in groups] == ["pack-quantized", "int-quantized", "pack-quantized"]
    assert [sorted(one["targets"]) for one in groups] == [sorted(first[:3]), sorted(second), sorted(first[3:])]
    assert artifact.parity["unrounded_largest_difference"] < 1e-4


def test_bfloat16_says_what_its_scales_lose(tmp_path: Path) -> None:
    model = rounded(llama().to(torch.bfloat16), Rtn(group=16))
    assert BFLOAT16 in export(model, TARGET, tmp_path / "out").notes
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def _narrow() -> PreTrainedModel:
    model = llama()
    PruneNeurons(ratio=0.5).apply(Editor(model), Given())
    model.config.intermediate_size = 40  # such as some other layers have
    return rounded(model, Rtn(group=8))


def _mixed() -> PreTrainedModel:
    model = llama()
    paths = [slot.path for slot in Editor(model).anatomy().linears()]
    even(model, 8, paths[:2])
    return rounded(model, Rtn(group=16))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (llama, "no linear map of this LlamaForCausalLM is packed"),
        (lambda: rounded(llama(), Hqq(group=16)), "whole zero points, and those of model.layers.0.self_attn.q_proj"),
        (lambda: rounded(llama(), Rtn(group=20)), "groups of 20 do not divide the 32 columns of model.layers.0"),
        (lambda: rounded(llama(), Rtn(bits=3, group=16)), "4 or 8 bits, and model.layers.0.self_attn.q_proj has 3"),
        (
            lambda: rounded(tiny.model("gpt2", "AutoModelForCausalLM"), Rtn(group=16)),
            "transformer.h.0.attn.c_attn of GPT2LMHeadModel is a Conv1D",
        ),
        (_narrow, "does not follow from its config alone: model.layers.0.mlp.down_proj.weight"),
        (_mixed, "transformers does not load zero points beside layers of another scheme"),
    ],
    ids=["float", "hqq", "group", "bits", "conv", "structure", "zeros"],
)
def test_what_the_format_cannot_hold_is_refused(make: object, says: str, tmp_path: Path) -> None:
    with pytest.raises(LissomError, match=says) as caught:
        export(make(), TARGET, tmp_path / "out")  # type: ignore[operator]
    assert caught.value.code == "LSM-744"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("columns", "group"), [(768, 128), (576, 64), (24, 8), (36, 9), (20, 10), (131, 131), (4099, 0)]
)
def test_the_group_that_is_proposed_divides_and_can_be_asked_for(columns: int, group: int) -> None:
    assert _fitting(columns) == group


def test_columns_that_no_group_divides_are_left_out() -> None:
    layer = GroupedLinear(4099, 8, bits=4, group=64)
    with pytest.raises(LissomError, match=r'LSM-744 .*No group that a step takes does: .* skip: \["mlp\.up"\]'):
        _scheme(layer, "mlp.up")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LissomError, match="compressed-tensors is not installed") as caught:
        export(llama(), TARGET, tmp_path / "out")
    assert (caught.value.code, caught.value.remedy) == ("LSM-739", 'pip install "lissom[llm]"')
