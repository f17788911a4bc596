import pytest
import torch

from lissom.anatomy import dissect
from lissom.data import load_data
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods import Given
from lissom.methods.pruning.keep_layers import KeepLayers
from tests import tiny


@pytest.mark.parametrize(
    ("keep", "by", "kept"),
    [
        (3, "first", (0, 1, 2)),
        (3, "last", (3, 4, 5)),
        (3, "every-other", (0, 2, 4)),
        (4, "every-other", (0, 1, 3, 4)),
        (6, "every-other", None),
        (0.5, "every-other", (0, 2, 4)),
        (0.6, "first", (0, 1, 2, 3)),
        (0.01, "first", (0,)),
        (0.99, "first", None),
        ((1, 5), "first", (1, 5)),
    ],
)
def test_which_layers_stay(keep: int | float | tuple[int, ...], by: str, kept: tuple[int, ...] | None):
    editor = Editor(tiny.model("bert", num_hidden_layers=6))
    KeepLayers(keep=keep, by=by).apply(editor, Given())
    assert [one.keep for one in editor.record.edits] == ([kept] if kept else [])
    assert editor.model.config.num_hidden_layers == len(kept or range(6))


def test_importance_drops_the_layer_that_does_least():
    editor = Editor(tiny.model("bert", "AutoModelForSequenceClassification"))
    block = editor.anatomy().stacks[0].blocks[1]
    with torch.no_grad():
        for slot in (block.attention.o, block.ffn.down):
            slot.weight.zero_()
            slot.bias.zero_()
    given = Given(data=load_data({"train": tiny.labelled_texts(20)}), tokenizer=tiny.tokenizer())
    KeepLayers(keep=0.7, by="importance").apply(editor, given)
    assert editor.record.edits[0].keep == (0, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 4}, "LSM-318 keep 4 of 3 layers"),
        ({"keep": 0.5, "by": "importance"}, "LSM-317 by: importance looks at texts. Give --data"),
        (
            {"keep": (0, 3)},
            r"LSM-318 layers of encoder.layer: \[0, 3\] is not an ascending choice of at least one of 0 to 2",
        ),
        ({"keep": (1, 0)}, r"LSM-318 layers of encoder.layer: \[1, 0\] is not"),
        ({"keep": 2, "by": "importance"}, "LSM-317 by: importance looks at texts. Give --data"),
        ({"keep": 2, "stack": "decoder"}, 'LSM-712 bert has no stack "decoder"'),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(options: dict[str, object], message: str):
    with pytest.raises(LissomError, match=message):
        KeepLayers(**options).check(dissect(tiny.model("bert")), Given())


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        ("albert", {"num_hidden_groups": 3}, "LSM-318 .*3 shared blocks run in turn"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "LSM-318 .*only the first ones can be kept. Use by: first"),
    ],
)
def test_layers_that_cannot_go_are_known_before_any_work(variant: str, changes: dict[str, object], message: str):
    anatomy = dissect(tiny.model(variant, **changes))
    with pytest.raises(LissomError, match=message):
        KeepLayers(keep=2, by="last").check(anatomy, Given())
