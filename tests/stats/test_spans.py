"""Rows of blocks, run by themselves, give what they gave inside the model."""

import pytest
import torch

from lissom.anatomy import dissect
from lissom.stats.spans import calls, spans
from tests import tiny


@pytest.mark.parametrize(("kind", "rows"), [("bert", 2), ("gpt2", 2), ("llama", 2), ("t5", 3), ("bart", 3)])
def test_a_row_gives_what_it_gave_inside(kind, rows):
    model = tiny.model(kind).eval()
    anatomy, batch = dissect(model), tiny.batch(model)
    found = spans(anatomy, 2)
    assert [len(one.blocks) for one in found][:2] == [2, 1]
    assert len(found) == rows
    for span in found:
        (call,) = calls(model, span, [batch])
        torch.testing.assert_close(call.run(model, span, call.hidden), call.out)
        assert call.mask is batch["attention_mask"]
    (first,), (second,) = calls(model, found[0], [batch]), calls(model, found[1], [batch])
    torch.testing.assert_close(second.hidden, first.out)
    (slope,) = torch.autograd.grad(
        first.run(model, found[0], first.hidden).sum(), found[0].blocks[0].ffn.up.module.weight
    )
    assert slope.abs().sum() > 0


def test_a_block_that_runs_again_is_alone_and_called_as_often():
    model = tiny.model("albert").eval()
    found = spans(dissect(model), 3)
    assert [(len(one.blocks), one.again) for one in found] == [(1, True)]
    made = calls(model, found[0], [tiny.batch(model)] * 2)
    assert len(made) == 2 * model.config.num_hidden_layers
    torch.testing.assert_close(made[1].hidden, made[0].out)


def test_the_error_by_hand_leaves_padding_out():
    model = tiny.model("bert").eval()
    (call,) = calls(model, spans(dissect(model), 1)[0], [tiny.batch(model)])
    wanted = call.out.clone()
    wanted[call.mask == 0] += 100
    assert call.error(call.out, wanted) == 0
    wanted[0, 0, 0] += 3
    assert call.error(call.out, wanted).item() == pytest.approx(9 / (16 * call.out.shape[-1]))  # 18 tokens, 2 padding
