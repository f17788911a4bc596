"""Keys and values in few bits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lissom.nn.states import PackedStates


def test_keys_by_hand() -> None:
    """Two channels of eight tokens: 0 to 7 in steps of 1 fit in 4 bits only as 7/15; 0, 15, 0, … are met."""
    x = torch.stack([torch.arange(8.0), torch.tensor([0.0, 15.0] * 4)], -1)[None, None]
    states = PackedStates(4, 8, over_tokens=True)
    states.append(x)
    codes, scale, low = states._tensors
    step = torch.tensor(7 / 15).half()
    assert scale.tolist() == [[[float(step), 1.0]]]
    assert low.tolist() == [[[0.0, 0.0]]]
    assert codes.shape == (1, 1, 2, 4)
    assert codes.view(torch.uint8)[0, 0, 1].tolist() == [0xF0] * 4  # the first token in the lowest bits
    codes_by_hand = [0, 2, 4, 6, 9, 11, 13, 15]  # i / (7/15), rounded
    torch.testing.assert_close(states.dense(torch.float32)[0, 0, :, 0], torch.tensor(codes_by_hand) * step.float())
    assert torch.equal(states.dense(torch.float32)[0, 0, :, 1], x[0, 0, :, 1])
    assert states.nbytes == 2 * 4 + 2 * (2 + 2)


def test_values_have_groups_of_channels() -> None:
    x = torch.tensor([[-1.0, 2.0, 10.0, 40.0], [5.0, 5.0, 5.0, 5.0]])[None, None]
    states = PackedStates(2, 2, over_tokens=False)
    states.append(x)
    _, scale, low = states._tensors
    assert scale[0, 0].tolist() == [1.0, 10.0, 2.0**-24, 2.0**-24]
    assert low[0, 0].tolist() == [-1.0, 10.0, 5.0, 5.0]
    assert torch.equal(states.dense(torch.float32), x)


@given(st.sampled_from((2, 4, 8)), st.booleans(), st.integers(1, 3), st.integers(1, 3), st.sampled_from((6, 8, 16, 24)))
def test_no_value_is_further_than_half_a_step(bits: int, over: bool, batch: int, parts: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(bits + channels)
    states, whole = PackedStates(bits, 8, over_tokens=over), []
    for _ in range(parts):
        whole.append(torch.randn(batch, 2, 16, channels, generator=generator))
        states.append(whole[-1])
    x = torch.cat(whole, 2)
    dense = states.dense(torch.float32)
    assert dense.shape == x.shape
    rows, found = states._grouped(x), states._grouped(dense)
    step = (rows.amax(-1) - rows.amin(-1)) / (2**bits - 1)
    assert bool(((rows - found).abs() <= 0.51 * step[..., None] + 4e-3).all())  # low is rounded to float16
    assert states.nbytes == x.numel() * bits / 8 + rows[..., 0].numel() * 4 or channels == 6


@pytest.mark.parametrize("over", [True, False])
def test_texts_are_chosen_and_repeated(over: bool) -> None:
    x = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    states = PackedStates(8, 8, over_tokens=over)
    states.append(x)
    before = states.dense(torch.float32)
    states.select(torch.tensor([2, 0, 0]))
    assert torch.equal(states.dense(torch.float32), before[[2, 0, 0]])
    assert states.dense(torch.bfloat16).dtype == torch.bfloat16
