"""The ONNX target: what is in the folder, what runs, what is refused, and that a wrong graph is never kept."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from transformers import PreTrainedModel

from lissom.edits import Editor, Factorize, KeepHeads, KeepNeurons, ShareLayers
from lissom.errors import LissomError
from lissom.export import Artifact, export, graph, parity
from lissom.export.onnx import Forward
from lissom.files import digests
from lissom.methods import Given
from lissom.methods.low_rank.kronecker import Kronecker as KroneckerMethod
from lissom.nn import Int8Linear
from lissom.runtime import OnnxRunner, TorchRunner
from tests import tiny
from tests.export.made import as_run, classifier, only_graph, operators, packed, stored_bytes
from tests.runtime.made import tokenizer

TEXTS = ["a very good film", "the end is near", "bad", "unknown and far and bad and near and good"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Artifact]:
    model = classifier(num_hidden_layers=1)
    return model, export(model, "onnx", tmp_path_factory.mktemp("plain") / "out", tokenizer=tokenizer())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Artifact]:
    """A model with int8 layers. Wide enough that its weights outweigh the graph around them."""
    model = packed(classifier(hidden_size=64, intermediate_size=256))
    return model, export(model, "onnx", tmp_path_factory.mktemp("small") / "out", tokenizer=tokenizer())


def test_the_folder_is_complete(plain: tuple[PreTrainedModel, Artifact]) -> None:
    artifact = plain[1]
    names = {path.relative_to(artifact.folder).as_posix() for path in artifact.files}
    assert names == {"config.json", "lissom.json", "onnx/model.onnx", "tokenizer.json", "tokenizer_config.json"}
    manifest = json.loads((artifact.folder / "lissom.json").read_text())
    assert manifest["files"] == digests(artifact.folder, but=["lissom.json"])
    assert manifest["export"]["parity"] == artifact.parity
    assert artifact.parity["shapes"] == [[1, 1], [1, 7], [3, 16], [8, 64]]
    assert artifact.parity["largest_difference"] < 1e-5
    config = json.loads((artifact.folder / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["model_type"] == "bert"
    assert not [key for key in config if key.startswith("_")]


def test_the_folder_says_how_long_a_text_may_be_and_runs_only_unchanged(tmp_path: Path) -> None:
    model = tiny.model("roberta", "AutoModelForSequenceClassification", pad_token_id=1)
    artifact = export(model, "onnx", tmp_path / "out", tokenizer=tiny.tokenizer())
    assert artifact.runner().max_length == 62
    assert artifact.runner().predict([" ".join(["w5"] * 100)]).shape == (1, 3)
    with (artifact.folder / "config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(LissomError, match=r"LSM-461 .*config\.json"):
        artifact.runner()


def test_inputs_outputs_and_axes(plain: tuple[PreTrainedModel, Artifact]) -> None:
    session = onnxruntime.InferenceSession(str(only_graph(plain[1].folder)))
    free = ["batch", "sequence"]
    found = {value.name: value.shape for value in session.get_inputs()}
    assert found == {"input_ids": free, "attention_mask": free, "token_type_ids": free}
    assert {value.name: value.shape for value in session.get_outputs()} == {"logits": ["batch", 3]}


def test_only_standard_operators_and_no_local_paths(small: tuple[PreTrainedModel, Artifact]) -> None:
    path = only_graph(small[1].folder)
    assert [(one.domain, one.version) for one in onnx.load(path).opset_import if one.domain] == []
    assert str(Path.cwd()).encode() not in path.read_bytes()
    assert b"site-packages" not in path.read_bytes()


@pytest.mark.parametrize("which", ["plain", "small"])
def test_texts_get_the_answers_of_torch(which: str, request: pytest.FixtureRequest) -> None:
    model, artifact = request.getfixturevalue(which)
    runner = artifact.runner(threads=1)
    assert isinstance(runner, OnnxRunner)
    expected = TorchRunner(model, tokenizer()).predict(TEXTS, tokens_per_batch=1)
    np.testing.assert_allclose(runner.predict(TEXTS, tokens_per_batch=1), expected, rtol=1e-3, atol=1e-3)


def test_it_works_without_lissom_and_torch(small: tuple[PreTrainedModel, Artifact]) -> None:
    script = """
import sys
for name in ("lissom", "torch", "transformers"):
    sys.modules[name] = None  # importing it fails
import json, numpy, onnxruntime, tokenizers
folder = sys.argv[1]
tokenizer = tokenizers.Tokenizer.from_file(folder + "/tokenizer.json")
tokenizer.no_padding()
session = onnxruntime.InferenceSession(folder + "/onnx/model_quantized.onnx")
ids = tokenizer.encode("a very good film")
feeds = {"input_ids": ids.ids, "attention_mask": ids.attention_mask, "token_type_ids": ids.type_ids}
feeds = {one.name: numpy.array([feeds[one.name]], dtype=numpy.int64) for one in session.get_inputs()}
print(json.dumps(session.run(["logits"], feeds)[0].tolist()))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(small[1].folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = small[1].runner(threads=1).predict(["a very good film"])
    np.testing.assert_allclose(json.loads(done.stdout), expected, rtol=1e-4, atol=1e-5)


def test_int8_layers_stay_int8(small: tuple[PreTrainedModel, Artifact], tmp_path: Path) -> None:
    model, artifact = small
    path = only_graph(artifact.folder)
    assert path.name == "model_quantized.onnx"  # and no float copy beside it
    layers = sum(isinstance(module, Int8Linear) for module in model.modules())
    found = operators(path)
    assert found["MatMulInteger"] == layers == 12
    assert found["DynamicQuantizeLinear"] == 8  # q, k and v read the same input
    state = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    assert stored_bytes(path) < state * 1.02
    assert path.stat().st_size < stored_bytes(path) + 40_000
    fused = as_run(path, tmp_path)
    assert fused["DynamicQuantizeMatMul"] + fused["MatMulIntegerToFloat"] == layers
    assert fused["SkipLayerNormalization"] == 0
    config = json.loads((artifact.folder / "config.json").read_text())
    assert config["transformers.js_config"] == {"dtype": "q8"}


def test_int8_parity_is_proved_in_two_parts(small: tuple[PreTrainedModel, Artifact]) -> None:
    figures = small[1].parity
    assert figures["unrounded_largest_difference"] < 1e-5
    assert figures["rounding_noise"] < parity.NOISE
    assert figures["cosine"] > 0.999


def test_one_int8_layer_gives_the_numbers_of_torch() -> None:
    torch.manual_seed(0)
    layer = Int8Linear.from_weight(torch.randn(17, 33), torch.randn(17))
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    made = torch.onnx.export(
        torch.export.export(layer, (torch.randn(2, 5, 33),), dynamic_shapes=(free,)),
        custom_translation_table=graph.translations(),
        opset_version=graph.OPSET,
        input_names=["x"],
        verbose=False,
    )
    session = onnxruntime.InferenceSession(graph.polish(made.model))
    for shape in [(1, 1, 33), (3, 4, 33)]:
        x = torch.randn(shape) * 3 + 1
        np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], layer(x).numpy(), rtol=1e-5, atol=1e-5)


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = classifier(num_hidden_layers=1).to(torch.bfloat16).train()
    before = copy.deepcopy(model.state_dict())
    attention = model.config._attn_implementation
    export(model, "onnx", tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert model.training
    assert model.config._attn_implementation == attention == "sdpa"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    weights = {one.data_type for one in onnx.load(only_graph(tmp_path / "out")).graph.initializer}
    assert onnx.TensorProto.BFLOAT16 not in weights


@pytest.mark.parametrize("quantize", [False, True])
def test_ragged_factorized_and_shared_layers(quantize: bool, tmp_path: Path) -> None:
    model = classifier(num_hidden_layers=3)
    editor = Editor(model)
    editor.apply(KeepHeads(heads=((0, 2, 3), (1,), (1,))))
    editor.apply(KeepNeurons(neurons=(tuple(range(40)), tuple(range(9)), tuple(range(9)))))
    editor.apply(Factorize(ranks={"bert.encoder.layer.0.output.dense": 5}))
    for name, parameter in model.named_parameters():
        if ".down." in name or ".up." in name:
            torch.nn.init.normal_(parameter, std=0.2)
    editor.apply(ShareLayers(source=(0, 1, 1)))
    if quantize:
        packed(model)
    artifact = export(model, "onnx", tmp_path / "out")
    own = {tensor.untyped_storage().data_ptr(): tensor for tensor in model.state_dict().values()}.values()
    # tensors below 1 kB may stand twice
    assert stored_bytes(only_graph(artifact.folder)) < sum(one.numel() * one.element_size() for one in own) + 6000


@pytest.mark.parametrize("quantize", [False, True])
def test_kronecker_products_and_narrow_tables(quantize: bool, tmp_path: Path) -> None:
    model = classifier(num_hidden_layers=1, vocab_size=999)
    KroneckerMethod(ratio=0.25, table=4).apply(Editor(model), Given())
    if quantize:
        packed(model)
    artifact = export(model, "onnx", tmp_path / "out")
    assert stored_bytes(only_graph(artifact.folder)) < sum(one.nbytes for one in model.state_dict().values()) + 6000


@pytest.mark.parametrize("quantize", [False, True])
def test_a_tied_table_is_stored_once(quantize: bool, tmp_path: Path) -> None:
    model = tiny.model("bert", "AutoModelForMaskedLM", num_hidden_layers=1, tie_word_embeddings=True, vocab_size=999)
    table = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is table
    if quantize:
        packed(model)
    artifact = export(model, "onnx", tmp_path / "out")
    held = {one.data_ptr(): one for one in (*model.parameters(), *model.buffers())}.values()
    assert stored_bytes(only_graph(artifact.folder)) < sum(one.numel() * one.element_size() for one in held) + 2000


def checked(file: bytes, model: PreTrainedModel, folder: Path) -> None:
    """What the export does with a graph of `model`."""
    forward = Forward(model, ("input_ids", "attention_mask", "token_type_ids"))
    given = parity.samples(model, forward.inputs)
    forward.name_outputs(given[1])
    (folder / "model.onnx").write_bytes(file)
    parity.check(folder / "model.onnx", forward, given)


def spoilt(path: Path, change: float, kind: int) -> bytes:
    """The graph with one of its larger weights of a kind multiplied by `change`."""
    model = onnx.load(path)
    weights = [one for one in model.graph.initializer if one.data_type == kind and len(one.dims) > 0]
    chosen = max(weights, key=lambda one: (len(one.dims) == 2 and one.dims[0] != 99, int(np.prod(one.dims))))
    array = numpy_helper.to_array(chosen)
    chosen.CopyFrom(numpy_helper.from_array((array * change).astype(array.dtype), chosen.name))
    return bytes(model.SerializeToString())


def test_a_sound_graph_passes(plain: tuple[PreTrainedModel, Artifact], tmp_path: Path) -> None:
    checked(only_graph(plain[1].folder).read_bytes(), plain[0], tmp_path)


@pytest.mark.parametrize(("change", "code"), [(1.01, "LSM-911"), (float("nan"), "LSM-913")])
def test_wrong_float_weights_are_found(
    change: float, code: str, plain: tuple[PreTrainedModel, Artifact], tmp_path: Path
) -> None:
    file = spoilt(only_graph(plain[1].folder), change, onnx.TensorProto.FLOAT)
    with pytest.raises(LissomError) as caught:
        checked(file, plain[0], tmp_path)
    assert caught.value.code == code


@pytest.mark.parametrize("kind", [onnx.TensorProto.FLOAT, onnx.TensorProto.INT8])
def test_wrong_int8_weights_or_scales_are_found(
    kind: int, small: tuple[PreTrainedModel, Artifact], tmp_path: Path
) -> None:
    with pytest.raises(LissomError, match=r"LSM-911 .* where torch answers .* Nothing was written"):
        checked(spoilt(only_graph(small[1].folder), 0.9, kind), small[0], tmp_path)


def test_wrong_rounding_is_found(small: tuple[PreTrainedModel, Artifact], tmp_path: Path) -> None:
    model = onnx.load(only_graph(small[1].folder))
    for node in model.graph.node:
        if node.op_type == "MatMulInteger":
            del node.input[2]  # the zero point of the activations
    with pytest.raises(LissomError, match="LSM-91"):
        checked(model.SerializeToString(), small[0], tmp_path)


def test_a_fixed_axis_is_found(plain: tuple[PreTrainedModel, Artifact], tmp_path: Path) -> None:
    model = onnx.load(only_graph(plain[1].folder))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(LissomError, match=r"LSM-912 onnx/model.onnx: input input_ids is \[1, 'sequence'\]"):
        checked(model.SerializeToString(), plain[0], tmp_path)


def test_an_axis_that_is_only_named_free_is_found(plain: tuple[PreTrainedModel, Artifact], tmp_path: Path) -> None:
    model = onnx.load(only_graph(plain[1].folder))
    for node in model.graph.node:
        node.input[:] = ["as_traced" if name == "input_ids" else name for name in node.input]
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 9]), "traced_shape"))
    model.graph.node.insert(0, helper.make_node("Reshape", ["input_ids", "traced_shape"], ["as_traced"]))
    with pytest.raises(LissomError, match=r"LSM-912 .* does not run at \(batch, sequence\) = \(1, 1\)"):
        checked(model.SerializeToString(), plain[0], tmp_path)


def test_a_missing_output_is_found(plain: tuple[PreTrainedModel, Artifact], tmp_path: Path) -> None:
    model = onnx.load(only_graph(plain[1].folder))
    for node in model.graph.node:
        node.output[:] = ["scores" if name == "logits" else name for name in node.output]
    model.graph.output[0].name = "scores"
    with pytest.raises(LissomError, match=r"LSM-913 onnx/model\.onnx: the graph has no output logits, but scores"):
        checked(model.SerializeToString(), plain[0], tmp_path)


def test_nothing_stays_after_a_failed_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    polish = graph.polish

    def break_it(made: object) -> bytes:
        (tmp_path / "whole.onnx").write_bytes(polish(made))  # type: ignore[arg-type]
        return spoilt(tmp_path / "whole.onnx", 1.5, onnx.TensorProto.FLOAT)

    monkeypatch.setattr(graph, "polish", break_it)
    target = tmp_path / "place" / "out"
    with pytest.raises(LissomError, match="LSM-911"):
        export(classifier(num_hidden_layers=1), "onnx", target)
    assert not target.exists()
    assert not list(target.parent.iterdir())


@pytest.mark.parametrize(
    ("variant", "head", "cause"),
    [
        ("t5", "AutoModelForSeq2SeqLM", "T5ForConditionalGeneration generates with an encoder and a decoder"),
        ("bert", "AutoModelForMultipleChoice", "BertForMultipleChoice does not answer input_ids and attention_mask"),
    ],
)
def test_what_is_no_single_graph_is_refused(variant: str, head: str, cause: str, tmp_path: Path) -> None:
    with pytest.raises(LissomError, match=f"LSM-741 {cause}"):
        export(tiny.model(variant, head), "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_over_two_gibibytes_is_refused(tmp_path: Path) -> None:
    model = classifier(num_hidden_layers=1)
    model.bert.embeddings.word_embeddings = torch.nn.Embedding(2**20, 512, device="meta")
    with pytest.raises(LissomError, match=r"LSM-743 the graph would take 2\.0 GiB, one ONNX file ends at 2 GiB"):
        export(model, "onnx", tmp_path / "out")


def test_unknown_target(tmp_path: Path) -> None:
    with pytest.raises(LissomError, match=r'LSM-218 no export target is called "onix"\. Did you mean "onnx"\?'):
        export(classifier(), "onix", tmp_path / "out")


def test_a_full_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(LissomError, match="LSM-201"):
        export(classifier(), "onnx", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]
