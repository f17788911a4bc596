"""Maps whose weight is computed: it is computed when someone wants its numbers, and not to tell its dtype."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import nn

from lissom.nn import Int8Linear, KroneckerLinear, LoraLinear, LowRankLinear, ScaledLinear
from lissom.nn.computed import ComputedLinear
from tests import tiny
from tests.contracts.test_edits import edit


def made(dtype: torch.dtype) -> list[ComputedLinear]:
    plain = nn.Linear(4, 6, dtype=dtype)
    return [
        LowRankLinear(4, 6, 2, dtype=dtype),
        KroneckerLinear((3, 2), (2, 2), dtype=dtype),
        LoraLinear(plain, 4, 6, 2, dtype=dtype),
        ScaledLinear(plain, 4),
        ScaledLinear(LowRankLinear(4, 6, 2, dtype=dtype), 4),
        ScaledLinear(Int8Linear(4, 6), 4),
        LoraLinear(Int8Linear(4, 6), 4, 6, 2, dtype=dtype),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_weight_says_its_shape_and_dtype(dtype: torch.dtype) -> None:
    for one in made(dtype):
        whole = one.dense()
        assert (one.weight.shape, one.weight.dtype) == (whole.shape, whole.dtype)
        assert whole.shape == (one.out_features, one.in_features) == (6, 4)
        with pytest.raises(NotImplementedError):
            one.weight.tolist()


@pytest.mark.parametrize("kind", ["Factorize", "Kronecker", "AddLora", "ScaleInputs"])
def test_t5_does_not_compute_it_at_a_forward(kind: str) -> None:
    model = tiny.model("t5", "AutoModelForSeq2SeqLM")
    edit(model, kind)
    kinds = {type(one) for one in model.modules() if isinstance(one, ComputedLinear)}
    assert len(kinds) == 1
    inputs = tiny.batch(model)
    expected = tiny.outputs(model, inputs)
    with mock.patch.object(kinds.pop(), "dense", side_effect=AssertionError("the weight was computed")):
        assert torch.equal(tiny.outputs(model, inputs), expected)
