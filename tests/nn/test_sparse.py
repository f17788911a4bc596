"""Weights without their zeros: the bytes by hand, and back."""

import pytest
import torch

from lissom.nn.sparse import StoredSparse, pack_zeros, unpack_zeros


def test_bytes_by_hand():
    bits, numbers = pack_zeros(torch.tensor([[0.0, 1.5, 0.0], [2.0, 0.0, 0.5]]))
    assert bits.tolist() == [2 + 8 + 32]
    assert numbers.tolist() == [1.5, 2, 0.5]
    bits, _ = pack_zeros(torch.ones(3, 3))
    assert bits.tolist() == [255, 1]


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (1, 1), (5, 16)])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_and_back(shape, share, dtype):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) >= share)
    found = unpack_zeros(*pack_zeros(weight.to(dtype)), weight.shape)
    assert torch.equal(found, weight.to(dtype))
    assert found.dtype == dtype


def test_masks_that_do_not_fit():
    bits, numbers = pack_zeros(torch.eye(3))
    with pytest.raises(ValueError, match="3 bits are set in the mask of 9 weights, and 2 are stored"):
        unpack_zeros(bits, numbers[:2], torch.Size((3, 3)))
    with pytest.raises(ValueError, match="3 bits are set in the mask of 8 weights, and 3 are stored"):
        unpack_zeros(bits, numbers, torch.Size((2, 4)))


def test_the_module_comes_back():
    linear = torch.nn.Linear(3, 2).requires_grad_(False)
    with torch.no_grad():
        linear.weight[0] = 0
    stored = StoredSparse(linear, 3)
    with torch.no_grad():
        bits, numbers = pack_zeros(linear.weight)
        stored.weight_mask.copy_(bits)
        stored.weight.copy_(numbers)
    wanted = linear(x := torch.randn(4, 3))
    assert stored.whole() is linear
    assert torch.equal(linear(x), wanted)
    assert not linear.weight.requires_grad
