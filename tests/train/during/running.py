"""What the tests of pruning share: a short run, the weights of the blocks, and a round trip over the disk."""

import torch

import lissom
from lissom.anatomy import dissect
from lissom.edits import Record
from lissom.train.during.weights import trained
from lissom.train.objectives import OBJECTIVES
from lissom.train.run import train
from tests import tiny
from tests.train.during.families import CLASSIFIER, rows

torch.set_num_threads(1)
FAMILIES = ["bert", "roberta", "distilbert", "albert", "gpt2", "llama", "t5", "bart", "mpnet", "modernbert"]
TASK = {"task": OBJECTIVES["task"]()}


def run(work, during, family="bert", model=None, **options):
    """A tiny classifier after two epochs of five steps."""
    model = model or tiny.model(family, CLASSIFIER)
    options = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "rows": rows(), **options}
    train(model, options.pop("rows"), TASK, during=during, work=work, **options)
    return model


def weights(model):
    """Every weight of a linear map in the blocks."""
    return [slot.module.weight.detach() for slot in trained(dissect(model))]


def zeros(model):
    """How many of them are zero, and how many there are."""
    found = weights(model)
    return sum(int((one == 0).sum()) for one in found), sum(one.numel() for one in found)


def widths(model):
    """Heads and neurons of each block."""
    blocks = [block for stack in dissect(model).stacks for block in stack.blocks]
    return [block.attention.kv_heads for block in blocks], [block.ffn.width for block in blocks]


def reloaded(model, folder):
    """The model after saving and loading, which must answer the same."""
    lissom.save(model, folder)
    found = lissom.load(folder)
    batch = tiny.batch(model)
    assert torch.equal(tiny.outputs(model, batch), tiny.outputs(found, batch))
    assert Record.of(found) == Record.of(model)
    return found


def same_bytes(left, right):
    """Whether two models have the same tensors."""
    one, other = left.state_dict(), right.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Stop:
    """Interrupts a run of ten steps after the seventh."""

    def __call__(self, phrase, fraction):
        if round(10 * fraction) == 7:
            raise KeyboardInterrupt
