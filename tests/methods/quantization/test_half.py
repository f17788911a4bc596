import pytest
import torch

import lissom
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods import Given
from lissom.methods.quantization.half import Half
from lissom.methods.quantization.int8 import Int8
from tests import tiny


@pytest.mark.parametrize(("kind", "value"), [("bf16", 1.0), ("fp16", 1.0009765625)])
def test_rounding_by_hand(kind, value):
    # 1 + 2^-10 is the neighbour of 1 in fp16; in bf16, whose neighbour is 1 + 2^-7, it rounds to 1
    editor = Editor(tiny.model("bert"))
    slot = editor.anatomy().stacks[0].blocks[0].ffn.up
    with torch.no_grad():
        slot.weight[0, 0] = 1 + 2**-10
    Half(kind=kind).apply(editor, Given())
    assert slot.weight[0, 0].item() == value


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_it_is_saved_in_half_the_bytes_and_loaded_as_such(kind, tmp_path):
    model = tiny.model("llama", "AutoModelForCausalLM")
    lissom.save(model, tmp_path / "whole")
    editor = Editor(model)
    Half(kind=kind).apply(editor, Given())
    lissom.save(editor.model, tmp_path / "half")
    again = lissom.load(tmp_path / "half")
    assert again.dtype == editor.model.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[kind]
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.6 * sizes[0]


def test_scales_of_int8_layers_stay_exact():
    editor = Editor(tiny.model("bert"))
    Int8().apply(editor, Given())
    scales = editor.anatomy().stacks[0].blocks[0].ffn.up.module.weight_scale.clone()
    Half().apply(editor, Given())
    after = editor.anatomy().stacks[0].blocks[0].ffn.up.module
    assert torch.equal(after.weight_scale, scales)
    assert editor.model.embeddings.LayerNorm.weight.dtype == torch.bfloat16


def test_what_fp16_cannot_hold_is_refused():
    editor = Editor(tiny.model("bert"))
    with torch.no_grad():
        editor.anatomy().stacks[0].blocks[0].ffn.up.weight[0, 0] = 1e6
    with pytest.raises(LissomError, match=r"LSM-901 .*a weight of magnitude 1e\+06 has no finite value in fp16.*bf16"):
        Half(kind="fp16").apply(editor, Given())
    Half(kind="bf16").apply(editor, Given())
