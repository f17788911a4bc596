"""int8 with one scale a token: a text's answer is its own, in every family, and is saved."""

import pytest
import torch

import lissom
from lissom.edits import Editor, Pack
from lissom.errors import LissomError
from lissom.methods import Given
from lissom.methods.quantization.int8 import Int8
from tests import tiny


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5"])
def test_an_answer_does_not_depend_on_its_batch_and_is_saved(kind, tmp_path):
    editor = Editor(tiny.model(kind))
    whole, inputs = tiny.outputs(editor.model, tiny.batch(editor.model)), tiny.batch(editor.model)
    Int8(per="token").apply(editor, Given())
    answer = tiny.outputs(editor.model, inputs)
    assert (answer - whole).norm() < 0.05 * whole.norm()
    alone = tiny.outputs(editor.model, {name: one[:1] for name, one in inputs.items()})
    torch.testing.assert_close(answer[: len(alone)], alone, rtol=1e-4, atol=1e-5)
    lissom.save(editor.model, tmp_path)
    assert torch.equal(tiny.outputs(lissom.load(tmp_path), inputs), answer)


def test_fixed_ranges_are_no_tokens():
    editor = Editor(tiny.model("bert"))
    with pytest.raises(
        LissomError, match=r"LSM-315 int8.per: a range that is fixed beforehand is no token's own. Write"
    ):
        Int8(mode="static", per="token").check(editor.anatomy(), Given())
    with pytest.raises(LissomError, match=r"LSM-451 Pack: inputs with a fixed scale have none a token"):
        editor.apply(Pack(static=True, per_token=True))
