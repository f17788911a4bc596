import logging

import pytest
import torch

from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods import Given
from lissom.methods.low_rank.svd import Svd
from lissom.methods.quantization.int8 import Int8
from lissom.methods.weight_sharing.share_layers import ShareLayers
from lissom.nn import Int8Embedding, Int8Linear
from tests import tiny


def test_every_linear_map_in_the_blocks_and_the_token_table_are_packed():
    editor = Editor(tiny.model("bert", "AutoModelForSequenceClassification"))
    Int8().apply(editor, Given())
    assert sum(isinstance(one, Int8Linear) for one in editor.model.modules()) == 3 * 6
    assert isinstance(editor.model.bert.embeddings.word_embeddings, Int8Embedding)
    assert isinstance(editor.model.classifier, torch.nn.Linear)


def test_codes_by_hand():
    editor = Editor(tiny.model("bert"))
    slot = editor.anatomy().stacks[0].blocks[0].ffn.up
    with torch.no_grad():
        slot.weight[0] = 0
        slot.weight[0, :3] = torch.tensor([1.27, -0.635, 0.004])
    Int8().apply(editor, Given())
    packed = editor.anatomy().stacks[0].blocks[0].ffn.up.module
    assert packed.weight[0, :3].tolist() == [127, -64, 0]  # -63.5 is rounded half to even
    assert packed.weight_scale[0].item() == pytest.approx(0.01)


def test_twice_is_once():
    editor = Editor(tiny.model("bert"))
    Int8().apply(editor, Given())
    answer = tiny.outputs(editor.model, tiny.batch(editor.model))
    Int8().apply(editor, Given())
    assert len(editor.record.edits) == 1
    assert torch.equal(tiny.outputs(editor.model, tiny.batch(editor.model)), answer)


def test_both_factors_of_a_low_rank_map_are_packed():
    editor = Editor(tiny.model("bert"))
    Svd(ratio=0.5).apply(editor, Given())
    Int8().apply(editor, Given())
    assert sum(isinstance(one, Int8Linear) for one in editor.model.modules()) == 3 * 6 * 2


def test_shared_layers_stay_shared():
    editor = Editor(tiny.model("bert"))
    ShareLayers(unique=1).apply(editor, Given())
    Int8().apply(editor, Given())
    blocks = editor.anatomy().stacks[0].blocks
    assert blocks[0].ffn.up.module.weight is blocks[2].ffn.up.module.weight


def test_a_table_tied_to_the_output_stays_and_the_log_says_so(caplog: pytest.LogCaptureFixture):
    editor = Editor(tiny.model("bert", "AutoModelForMaskedLM"))
    with caplog.at_level(logging.WARNING, logger="lissom"):
        Int8().apply(editor, Given())
    assert type(editor.model.get_input_embeddings()) is torch.nn.Embedding
    assert "the token table is tied to cls.predictions.decoder and stays in floating point" in caplog.text


def test_weights_that_are_not_finite_are_refused():
    editor = Editor(tiny.model("bert"))
    with torch.no_grad():
        editor.anatomy().stacks[0].blocks[1].ffn.up.weight[0, 0] = torch.nan
    with pytest.raises(LissomError, match=r"LSM-901 encoder\.layer\.1\.intermediate\.dense: .*NaN"):
        Int8().apply(editor, Given())


def test_a_table_that_the_head_multiplies_by_stays(caplog: pytest.LogCaptureFixture):
    editor = Editor(tiny.model("deberta-v2", "AutoModelForMaskedLM", legacy=False))
    with caplog.at_level(logging.WARNING, logger="lissom"):
        Int8().apply(editor, Given())
    assert type(editor.model.get_input_embeddings()) is torch.nn.Embedding
    assert "the token table is also what the head multiplies by" in caplog.text
    assert torch.isfinite(tiny.outputs(editor.model, tiny.batch(editor.model))).all()
