"""Methods that look at texts, on models whose decoder writes what the encoder has read."""

from __future__ import annotations

import pytest
import torch

from lissom.data import load_data
from lissom.edits import Editor
from lissom.methods import METHODS, Given
from lissom.nn import Int8Linear, ScaledLinear
from tests import tiny

LOOKING = {
    "auto_round": {"steps": 1, "samples": 8},
    "awq": {"samples": 8},
    "gptq": {"samples": 8},
    "int8": {"mode": "static", "samples": 8},
    "mixed": {"codes": "rtn", "samples": 8},
    "peg": {"samples": 8},
    "reconstruct": {"steps": 1, "samples": 8},
    "smooth": {"multiply": "all", "samples": 8},
    "split_int8": {"samples": 8},
}


@pytest.mark.parametrize("kind", ["t5", "bart"])
@pytest.mark.parametrize("name", LOOKING)
def test_the_decoder_is_given_the_text_too(name: str, kind: str) -> None:
    torch.set_num_threads(1)
    editor = Editor(tiny.model(kind, "AutoModelForSeq2SeqLM"))
    data = load_data({"train": tiny.labelled_texts(8), "validation": tiny.labelled_texts(4, seed=1)})
    given = Given(data=data, tokenizer=tiny.tokenizer(), max_length=16)
    METHODS[name](**LOOKING[name]).apply(editor, given)
    maps = [slot.module for slot in editor.anatomy().linears()]
    assert any(isinstance(one, Int8Linear | ScaledLinear) for one in maps)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        answer = editor.model(input_ids=ids, decoder_input_ids=ids).logits
    assert bool(torch.isfinite(answer).all())
