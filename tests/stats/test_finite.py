import pytest
import torch

from lissom.errors import LissomError
from lissom.stats.finite import check_finite_inputs, finite_weight


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_no_scale_holds_is_refused_by_name(bad):
    with pytest.raises(LissomError, match=r"LSM-901 a\.b: the weight holds NaN or infinity and cannot be quantized"):
        finite_weight(torch.tensor([[1.0, bad]]), "a.b")
    with pytest.raises(LissomError, match=r"LSM-901 a\.b: an input holds NaN or infinity on a calibration text"):
        check_finite_inputs(torch.tensor([bad]), "a.b")


def test_a_weight_comes_in_float32_without_its_gradient():
    found = finite_weight(torch.nn.Parameter(torch.tensor([[0.5]], dtype=torch.bfloat16)), "a")
    assert (found.dtype, found.requires_grad, found.item()) == (torch.float32, False, 0.5)
