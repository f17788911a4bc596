"""Walking blocks gives each what the whole model gives it, and what is counted are the tokens of texts."""

import pytest
import torch

from lissom.anatomy import dissect
from lissom.stats.blocks import walk
from lissom.stats.hessian import Hessians
from tests import tiny


def padded(model):
    batch = {name: one.clone() for name, one in tiny.batch(model).items() if name in ("input_ids", "attention_mask")}
    mask = torch.ones_like(batch["input_ids"])
    mask[0, -2:] = 0
    return {**batch, "attention_mask": mask}


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_blocks_see_what_the_whole_model_gives_them(kind):
    model = tiny.model(kind).eval()
    anatomy, batch = dissect(model), padded(model)
    slots = [block.ffn.down for block in anatomy.stacks[0].blocks]
    whole = Hessians(slots)
    whole.mask = batch["attention_mask"]
    with torch.no_grad():
        model(**batch)
    whole.close()
    for step, slot in zip(walk(anatomy, [batch]), slots, strict=True):
        found = Hessians([slot])
        step.run(lambda mask, found=found: setattr(found, "mask", mask))
        found.close()
        assert torch.allclose(found.of(slot.path), whole.of(slot.path), rtol=1e-4, atol=1e-5)


def test_padding_is_not_counted_and_a_shared_input_is_summed_once():
    model = tiny.model("bert").eval()
    attention, batch = dissect(model).stacks[0].blocks[0].attention, padded(model)
    seen = []
    handle = attention.q.watch(lambda x, _: seen.append(x))
    found = Hessians([attention.q, attention.k])
    found.mask = batch["attention_mask"]
    with torch.no_grad():
        model(**batch)
    handle.remove()
    found.close()
    rows = seen[0][batch["attention_mask"].bool()]
    assert torch.allclose(found.of(attention.q.path), 2 * rows.t() @ rows, atol=1e-5)
    assert found.of(attention.k.path) is found.of(attention.q.path)
