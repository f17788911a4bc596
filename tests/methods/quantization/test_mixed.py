from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lissom
from lissom.compress import data_for
from lissom.data import load_data
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods import Given
from lissom.methods.quantization.groups import Groups
from lissom.methods.quantization.mixed import Mixed, _row_errors
from lissom.methods.quantization.rtn import Rtn
from lissom.nn.grouped import GroupedLinear
from tests import tiny

CLASSIFIER = "AutoModelForSequenceClassification"


def given() -> Given:
    return Given(data=load_data({"train": tiny.labelled_texts(24)}), tokenizer=tiny.tokenizer(), max_length=32)


def widths(editor: Editor) -> dict[str, int]:
    return {slot.path: slot.module.bits for slot in editor.anatomy().linears()}


def average(editor: Editor) -> float:
    slots = list(editor.anatomy().linears())
    sizes = [slot.in_features * slot.out_features for slot in slots]
    return sum(size * slot.module.bits for size, slot in zip(sizes, slots, strict=True)) / sum(sizes)


@pytest.mark.parametrize("by", ["answers", "hessian"])
@pytest.mark.parametrize("variant", ["bert", "gpt2", "llama", "t5"])
def test_it_stays_within_the_budget_says_the_widths_and_is_loaded_so(by: str, variant: str, tmp_path: Path):
    model = tiny.model(variant, CLASSIFIER)
    editor = Editor(model)
    step = Mixed(bits=3.4, by=by, group=16, codes="rtn")
    step.check(editor.anatomy(), given())
    did = step.apply(editor, given())
    assert all(isinstance(slot.module, GroupedLinear) for slot in editor.anatomy().linears())
    assert did["bits"] == widths(editor)
    assert did["average_bits"] == pytest.approx(average(editor))
    assert 2.9 < average(editor) <= 3.4
    assert len(set(did["bits"].values())) > 1
    assert sum(did[name] for name in did if name.startswith("maps_of_")) == len(did["bits"])
    inputs = tiny.batch(model)
    answer = tiny.outputs(editor.model, inputs)
    lissom.save(editor.model, tmp_path / "saved")
    assert torch.equal(tiny.outputs(lissom.load(tmp_path / "saved"), inputs), answer)


def test_what_does_more_damage_gets_more_bits():
    editor = Editor(tiny.model("bert", CLASSIFIER))
    slots = list(editor.anatomy().linears())
    with torch.no_grad():
        for slot in slots:
            slot.weight.copy_(slot.weight > 0)  # 0 and 1: any width holds them
        slots[4].weight.copy_(torch.randn(slots[4].weight.shape, generator=torch.Generator().manual_seed(0)))
    Mixed(bits=2.5, codes="rtn", group=16).apply(editor, given())
    found = widths(editor)
    assert found[slots[4].path] == max(found.values()) > min(found.values())


def test_with_the_hessian_a_block_has_one_width_and_one_that_rounds_well_few_bits():
    editor = Editor(tiny.model("bert", CLASSIFIER))
    with torch.no_grad():
        for slot in editor.anatomy().stacks[0].blocks[2].slots():
            slot.weight.copy_(0.1 * (slot.weight > 0))
    did = Mixed(bits=2.4, by="hessian", choices=(2, 3), codes="rtn", group=16).apply(editor, given())
    by_block = {path.split(".")[3]: bits for path, bits in did["bits"].items()}
    assert len({(path.split(".")[3], bits) for path, bits in did["bits"].items()}) == 3, "a block has one width"
    assert by_block["2"] == 2
    assert 3 in by_block.values()


def test_row_errors_by_hand():
    change, hessian = torch.tensor([[1.0, -1.0], [0.0, 2.0]]), torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    assert _row_errors(change, hessian).tolist() == [2 - 2 + 3, 12]


def test_one_choice_is_the_method_itself():
    one, other = (Editor(tiny.model("bert", CLASSIFIER)) for _ in range(2))
    Mixed(bits=4, choices=(4,), codes="rtn", group=16).apply(one, given())
    Rtn(bits=4, group=16).apply(other, given())
    state = other.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in one.model.state_dict().items())


def test_gptq_then_hqq_round_the_maps_of_each_width():
    for codes in ("gptq", "hqq"):
        editor = Editor(tiny.model("bert", CLASSIFIER))
        Mixed(bits=3, codes=codes, group=16).apply(editor, given())
        assert 2.5 < average(editor) <= 3
        assert torch.isfinite(tiny.outputs(editor.model, tiny.batch(editor.model))).all()
    assert issubclass(Rtn, Groups)


def test_a_size_is_met_and_used():
    model = tiny.model("bert", CLASSIFIER)
    for bits in (2.5, 5.0):
        editor = Editor(tiny.model("bert", CLASSIFIER))
        weights = sum(slot.weight.numel() for slot in editor.anatomy().linears())
        other = sum(one.nbytes for one in model.state_dict().values()) - 4 * weights
        scales = sum(4 * 2 * slot.out_features for slot in editor.anatomy().linears() if slot.in_features <= 32)
        scales += sum(4 * 3 * slot.out_features for slot in editor.anatomy().linears() if slot.in_features > 32)
        size = (other + scales + weights * bits / 8) / 1e6 + 0.001
        Mixed(size_mb=size, codes="rtn", group=16).apply(editor, given())
        stored = sum(one.nbytes for one in editor.model.state_dict().values()) / 1e6
        assert 0.98 * size < stored <= size


def test_budgets_that_nothing_meets_are_refused():
    editor = Editor(tiny.model("bert", CLASSIFIER))
    with pytest.raises(
        LissomError, match=r"LSM-318 bits: an average of 2\.5 bits, and the smallest of the choices is 3"
    ):
        Mixed(bits=2.5, choices=(3, 4)).check(editor.anatomy(), given())
    with pytest.raises(
        LissomError, match=r"LSM-318 size_mb: 0\.\d+ MB more than the budget are needed, even at 2 bits"
    ):
        Mixed(size_mb=0.001, codes="rtn").apply(editor, given())
    with pytest.raises(LissomError, match="Did you mean"):
        Mixed(skip=("bert.encoder.layer.0.output.dens",)).check(editor.anatomy(), given())


def test_the_hessian_needs_labels():
    editor = Editor(tiny.model("bert", "AutoModelForMaskedLM"))
    texts = data_for(editor.model, {"train": {"text": tiny.labelled_texts(24)["text"]}}, 0)
    gets = Given(data=texts, tokenizer=tiny.tokenizer(), max_length=32)
    with pytest.raises(LissomError, match=r"LSM-821 .*none for masked language modelling\. Choose by: answers\."):
        Mixed(by="hessian").check(editor.anatomy(), gets)
    Mixed(by="answers", codes="rtn").apply(editor, gets)


def test_what_is_skipped_stays():
    editor = Editor(tiny.model("bert", CLASSIFIER))
    did = Mixed(bits=3, codes="gptq", group=16, skip=("*.query",)).apply(editor, given())
    left = [slot.path for slot in editor.anatomy().linears() if not isinstance(slot.module, GroupedLinear)]
    assert len(left) == 3
    assert not set(left) & set(did["bits"])
