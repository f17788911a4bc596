"""Every export target with every family: the files answer as torch does, or the model is refused by name."""

from pathlib import Path

import pytest
from transformers import PreTrainedModel

from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.export import TARGETS, export
from lissom.methods.base import Given
from lissom.methods.quantization.rtn import Rtn
from tests import tiny

EXPORTED = (
    ("roberta", "AutoModelForTokenClassification"),
    ("electra", "AutoModelForSequenceClassification"),
    ("distilbert", "AutoModelForQuestionAnswering"),
    ("albert", "AutoModelForMaskedLM"),
    ("mpnet", "AutoModel"),
    ("deberta-v2", "AutoModelForSequenceClassification"),
    ("deberta-v3", "AutoModelForTokenClassification"),
    ("modernbert", "AutoModelForSequenceClassification"),
    ("t5", "AutoModelForTokenClassification"),
    ("bart", "AutoModelForSequenceClassification"),
    ("gpt2", "AutoModelForSequenceClassification"),
    ("opt", "AutoModelForCausalLM"),
    ("gpt_neox", "AutoModelForCausalLM"),
    ("llama", "AutoModelForCausalLM"),
    ("mistral", "AutoModelForSequenceClassification"),
    ("qwen3", "AutoModelForCausalLM"),
)
"""One head a layout; `bert` is in tests/export, the others share the code of one that is here."""

SAME_CODE = {"bert", "xlm-roberta", "camembert", "t5-gated", "qwen2"}
REFUSED = (
    ("t5", "AutoModel"),
    ("t5-gated", "AutoModelForSeq2SeqLM"),
    ("bart", "AutoModelForSeq2SeqLM"),
    ("mpnet", "AutoModelForMultipleChoice"),
)
EXTRAS = {"openvino": "openvino", "compressed-tensors": "compressed_tensors"}
"""Target -> the package that not every installation has."""
DEPTH = {
    "distilbert": {"n_layers": 1},
    "gpt2": {"n_layer": 1},
    "t5": {"num_layers": 1, "num_decoder_layers": 1},
    "bart": {"encoder_layers": 1, "decoder_layers": 1},
    "modernbert": {"num_hidden_layers": 2},  # local and global attention
}
"""One layer of each kind: tracing takes most of the time, and layers are traced one by one."""


NO_FORM = {("compressed-tensors", "gpt2"): "Conv1D"}
"""(target, variant) -> why the target cannot hold it."""


def made_for(target: str, variant: str, head: str, **changes: object) -> PreTrainedModel:
    """A tiny model; with layers of few bits for the target that is for nothing else."""
    model = tiny.model(variant, head, **changes)
    if target == "compressed-tensors":
        Rtn(group=16).apply(Editor(model), Given())
    return model


@pytest.fixture(autouse=True)
def _engine(request: pytest.FixtureRequest) -> None:
    if "target" in request.fixturenames and request.getfixturevalue("target") in EXTRAS:
        name = EXTRAS[request.getfixturevalue("target")]
        pytest.importorskip(name, reason=f"the {name} extra is not installed")


def test_every_family_is_exported_or_named() -> None:
    assert {variant for variant, _ in EXPORTED} | SAME_CODE == set(tiny.CONFIGS)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("variant", "head"), EXPORTED, ids=str)
def test_the_files_answer_as_torch(target: str, variant: str, head: str, tmp_path: Path) -> None:
    model = made_for(target, variant, head, **DEPTH.get(variant, {"num_hidden_layers": 1}))
    if (target, variant) in NO_FORM:
        with pytest.raises(LissomError, match=NO_FORM[target, variant]):
            export(model, target, tmp_path / "out")
        return
    artifact = export(model, target, tmp_path / "out")
    assert artifact.parity["largest_difference"] < 1e-4
    assert len({tuple(shape) for shape in artifact.parity["shapes"]}) >= 4
    assert (tmp_path / "out" / "lissom.json") in artifact.files


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("variant", "head"), REFUSED, ids=str)
def test_others_are_refused_by_name(target: str, variant: str, head: str, tmp_path: Path) -> None:
    model = made_for(target, variant, head)
    with pytest.raises(LissomError) as caught:
        export(model, target, tmp_path / "out")
    assert caught.value.exit_code == 7
    assert type(model).__name__ in caught.value.cause
    assert not (tmp_path / "out").exists()
