"""The recurrence against its formula in numpy, and padding that is never read."""

import numpy as np
import torch
from torch import Tensor

from lissom.nn import BiLstm


def layer(width: int = 3, units: int = 2, seed: int = 0) -> BiLstm:
    torch.manual_seed(seed)
    made = BiLstm(width, units)
    for parameter in made.parameters():
        parameter.data.normal_(0, 0.7)
    return made


def by_formula(made: BiLstm, x: Tensor, end: str) -> np.ndarray:
    """i, f, o = σ(W x + R h + b), g = tanh(...), c = f c + i g, h = o tanh(c), in the order that torch stores them."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    w, r, bw, br = (getattr(made.lstm, f"{name}_{end}").detach().double().numpy() for name in names)
    h, c = np.zeros(r.shape[1]), np.zeros(r.shape[1])
    for token in x.double().numpy():
        i, f, g, o = np.split(w @ token + bw + r @ h + br, 4)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
    return h


def test_last_states_of_both_directions() -> None:
    made = layer()
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([5, 3])
    found = made(x, lengths).detach().numpy()
    for row, length in enumerate(lengths):
        text = x[row, :length]
        wanted = np.concatenate([by_formula(made, text, "l0"), by_formula(made, text.flip(0), "l0_reverse")])
        np.testing.assert_allclose(found[row], wanted, atol=1e-6)


def test_what_follows_a_text_changes_nothing() -> None:
    made, x, lengths = layer(), torch.randn(3, 6, 3), torch.tensor([2, 6, 1])
    other = x.clone()
    other[0, 2:], other[2, 1:] = 9.0, torch.nan
    assert torch.equal(made(x, lengths), made(other, lengths))


def test_the_operator_for_export_computes_the_same() -> None:
    made, x, lengths = layer(4, 3), torch.randn(3, 6, 4), torch.tensor([2, 6, 1])
    found = torch.ops.lissom.bilstm(x, lengths, *made.stacked())
    torch.testing.assert_close(found.flatten(1), made(x, lengths))


def test_all_weights_learn() -> None:
    made = layer()
    made(torch.randn(2, 4, 3), torch.tensor([4, 2])).sum().backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in made.parameters())
