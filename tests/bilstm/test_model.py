"""The BiLSTM classifier: the formula of the paper, pairs, padding, files, plain transformers, ONNX."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import lissom
from lissom.anatomy import dissect
from lissom.bilstm.config import BiLstmConfig
from lissom.bilstm.model import BiLstmForSequenceClassification
from lissom.errors import LissomError
from lissom.measure.flops import model_flops
from lissom.measure.graph import graph_flops
from lissom.methods.pruning.keep_layers import KeepLayers
from lissom.plan import describe
from tests import tiny
from tests.conftest import ROOT

SEPARATOR = 2


def made(separator: int | None = None, **changes: object) -> BiLstmForSequenceClassification:
    """A small classifier whose weights are large enough for differences to show."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = {"vocab_size": tiny.VOCABULARY, "embedding_size": 6, "units": 4, "hidden_size": 5, "num_labels": 3}
    model = BiLstmForSequenceClassification(BiLstmConfig(**{**sizes, "separator_id": separator, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.6)
    return model.eval()


def logits(model: BiLstmForSequenceClassification, ids: list[list[int]], mask: list[list[int]] | None = None) -> Tensor:
    with torch.inference_mode():
        return model(torch.tensor(ids), None if mask is None else torch.tensor(mask)).logits


def read(model: BiLstmForSequenceClassification, ids: list[int]) -> Tensor:
    return model.bilstm(model.embeddings(torch.tensor([ids])), torch.tensor([len(ids)]))


def test_one_text_by_the_formula() -> None:
    model = made()
    h = read(model, [1, 7, 8, 2])
    wanted = torch.relu(h @ model.hidden.weight.T + model.hidden.bias) @ model.classifier.weight.T
    torch.testing.assert_close(logits(model, [[1, 7, 8, 2]]), (wanted + model.classifier.bias).detach())


def test_a_pair_is_read_apart_and_compared() -> None:
    model = made(SEPARATOR)
    a, b = read(model, [1, 7, 8]), read(model, [9, 5, 2])
    joined = torch.cat([a, b, a * b, (a - b).abs()], dim=-1)
    wanted = model.classifier(torch.relu(model.hidden(joined)))
    torch.testing.assert_close(logits(model, [[1, 7, 8, 2, 9, 5, 2]]), wanted.detach())


@pytest.mark.parametrize("separator", [None, SEPARATOR])
@pytest.mark.parametrize("text", [[1, 7, 8, 2], [1, 7, 2, 9, 5, 2], [4, 5, 6], [2], [5]])
def test_padding_changes_no_bit(separator: int | None, text: list[int]) -> None:
    model, pad = made(separator), [0] * 5
    alone = logits(model, [text], [[1] * len(text)])
    right = logits(model, [text + pad], [[1] * len(text) + [0] * 5])
    left = logits(model, [pad + text], [[0] * 5 + [1] * len(text)])
    other = logits(model, [text + [9] * 5], [[1] * len(text) + [0] * 5])
    for found in (right, left, other, logits(model, [text + pad])):
        assert torch.equal(found, alone)


def test_a_text_does_not_depend_on_its_batch() -> None:
    model = made()
    ids, mask = [[1, 7, 2, 0, 0], [1, 9, 8, 7, 2]], [[1, 1, 1, 0, 0], [1] * 5]
    torch.testing.assert_close(logits(model, ids, mask)[:1], logits(model, [[1, 7, 2]]))


def test_losses_of_classes_and_of_a_number() -> None:
    ids = torch.tensor([[1, 7, 2], [1, 8, 2]])
    model = made()
    loss = model(ids, labels=torch.tensor([0, 2])).loss
    wanted = torch.nn.functional.cross_entropy(model(ids).logits, torch.tensor([0, 2]))
    torch.testing.assert_close(loss, wanted)
    number = made(num_labels=1, problem_type="regression")
    loss = number(ids, labels=torch.tensor([0.5, 1.0])).loss
    torch.testing.assert_close(loss, ((number(ids).logits[:, 0] - torch.tensor([0.5, 1.0])) ** 2).mean())


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = made(SEPARATOR)
    lissom.save(model, tmp_path / "out", tokenizer=tiny.tokenizer())
    loaded = lissom.load(tmp_path / "out")
    inputs = tiny.batch(model)
    assert type(loaded) is BiLstmForSequenceClassification
    assert torch.equal(tiny.outputs(loaded, inputs), tiny.outputs(model, inputs))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Run `import lissom` before `AutoModelForSequenceClassification.from_pretrained(FOLDER)`." in card


@pytest.mark.parametrize("first", ["lissom", "transformers.modeling_utils", "transformers.models.auto.modeling_auto"])
def test_plain_transformers_loads_it_after_import_lissom(tmp_path: Path, first: str) -> None:
    lissom.save(made(), tmp_path / "out")
    code = (
        f"import sys, {first}, lissom\n"
        "from transformers import AutoConfig, AutoModelForSequenceClassification\n"
        "model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])\n"
        "print(type(model).__name__, AutoConfig.from_pretrained(sys.argv[1]).units)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "BiLstmForSequenceClassification 4"


@pytest.mark.parametrize("separator", [None, SEPARATOR])
def test_the_graph_answers_as_torch(tmp_path: Path, separator: int | None) -> None:
    import onnx

    model = made(separator)
    artifact = lissom.export(model, "onnx", tmp_path / "out", tokenizer=tiny.tokenizer())
    assert artifact.parity["largest_difference"] < 1e-5
    texts = ["w5", "w9 w8 w7 w6 w5 w4", "w3 w3"]
    wanted = logits(model, [tiny.tokenizer()(one)["input_ids"] for one in texts[1:2]])
    found = artifact.runner().predict(texts)
    np.testing.assert_allclose(np.asarray(found)[1], wanted[0].numpy(), atol=1e-5)
    nodes = [node.op_type for node in onnx.load(str(tmp_path / "out/onnx/model.onnx")).graph.node]
    assert nodes.count("LSTM") == (1 if separator is None else 2)
    assert "Split" not in nodes
    if separator is None:
        runner = artifact.runner()
        assert graph_flops(runner, runner.graph, 7).value == model_flops(model, 7).value


def test_both_counts_of_operations_agree() -> None:
    model = made()
    reading = model_flops(model, 7)
    maps = 2 * 4 * 4 * (6 + 4)  # directions x gates x units x (width and units)
    assert reading.value == 2 * 7 * maps + 2 * (8 * 5 + 5 * 3)
    assert "agrees" in reading.how


def test_its_anatomy_has_no_layers() -> None:
    anatomy = dissect(made())
    assert anatomy.stacks == ()
    assert anatomy.embeddings == ("embeddings",)
    assert [slot.path for slot in anatomy.head] == ["hidden", "classifier"]
    with pytest.raises(LissomError, match="LSM-712 lissom-bilstm has no layers"):
        KeepLayers(keep=1).check(anatomy, lissom.methods.Given())
    found = describe(made())
    assert found["parts"]["embeddings"] == tiny.VOCABULARY * 6
    assert {found["methods"][name] for name in ("keep_layers", "prune_heads", "svd", "share_layers")} == {
        "no: lissom-bilstm has no layers"
    }
