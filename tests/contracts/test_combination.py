"""One step of training with a teacher, masks and rounding at once.

What is left is sparse, packed, the same when it is loaded, and the same in another runtime.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import lissom
from lissom.anatomy import dissect
from lissom.measure.size import sparsity
from lissom.nn import Int8Linear
from lissom.recipe import Recipe
from lissom.runtime import TorchRunner
from tests import tiny

RECIPE = """
lissom: 1
steps:
  - tune:
      epochs: 6
      batch_size: 8
      learning_rate: 1.0e-3
      learn: {task: {weight: 0.3}, logits: {weight: 0.7}, hidden: {weight: 0.1}}
      while:
        - movement: {sparsity: 0.5}
        - fake_quant: {weights: int8, activations: int8, start: 0.5}
"""


@pytest.mark.parametrize("variant", ["bert", "gpt2", "llama"])
def test_distillation_movement_and_rounding_in_one_step(variant: str, tmp_path: Path):
    torch.set_num_threads(1)
    model = tiny.model(variant, "AutoModelForSequenceClassification")
    data = {"train": tiny.labelled_texts(48), "test": tiny.labelled_texts(24, seed=1)}
    result = lissom.compress(
        model, Recipe.parse(RECIPE, "combined"), data=data, tokenizer=tiny.tokenizer(), max_length=32
    )
    assert all(isinstance(slot.module, Int8Linear) for slot in dissect(result.model).linears())
    assert (sparsity(result.model).value or 0) >= 0.5
    assert result.readings["sparsity"] == sparsity(result.model).value

    result.save(tmp_path / "out")
    loaded, inputs = lissom.load(tmp_path / "out"), tiny.batch(model)
    assert torch.equal(tiny.outputs(loaded, inputs), tiny.outputs(result.model, inputs))

    result.export("onnx", tmp_path / "exported")  # refuses to be written unless it answers as torch does
    texts = tiny.texts(16, seed=2)
    there = lissom.open_runner(tmp_path / "exported", max_length=32).predict(texts)
    here = TorchRunner(result.model, tiny.tokenizer(), max_length=32).predict(texts)
    cosine = (there * here).sum(1) / np.linalg.norm(there, axis=1) / np.linalg.norm(here, axis=1)
    assert cosine.min() > 0.99
