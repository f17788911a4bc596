"""What the tests of this folder share: models without dropout, pairs of a teacher and a student cut from it."""

import copy

import torch

from lissom.anatomy import dissect
from lissom.edits import Editor, KeepLayers
from tests import tiny
from tests.train import tiny_rows

CLASSIFIER = "AutoModelForSequenceClassification"


def quiet(model):
    """In training mode, without dropout and without a cache, which training has not either."""
    model.train()
    for module in model.modules():
        if hasattr(module, "config"):
            module.config.use_cache = False
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "layerdrop", "dropout_prob", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def pair(variant, keep=2, head=CLASSIFIER, **changes):
    """A teacher, and a student with `keep` of its layers in each stack, whose weights have moved away since."""
    teacher = tiny.model(variant, head, **changes)
    student = copy.deepcopy(teacher)
    editor = Editor(student)
    for stack in dissect(student).stacks:
        if keep < len(stack.order):
            editor.apply(KeepLayers(stack=stack.name, keep=tuple(range(keep))))
    generator = torch.Generator().manual_seed(7)
    tables = {block.attention.head_bias for stack in dissect(student).stacks for block in stack.blocks} - {""}
    with torch.no_grad():
        for name, one in student.named_parameters():
            if in_layers(student, name) and not name.startswith(tuple(tables) or "\0"):
                one.add_(0.1 * torch.randn(one.shape, generator=generator))
    return student, teacher


def in_layers(model, name):
    """Whether the parameter `name` is one of the blocks."""
    return name.startswith(tuple(f"{block.path}." for stack in dissect(model).stacks for block in stack.blocks))


def rows(**options):
    """Rows that end with the end-of-sequence token, which the heads of some families look at."""
    return tiny_rows.rows(**options).map(lambda row: {**row, "input_ids": [*row["input_ids"][:-1], 2]})
