"""Which units stay, by hand."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissom.methods.pruning.structured import choose


def test_the_lowest_scores_of_each_layer_go():
    scores = [torch.tensor([3.0, 1.0, 2.0, 4.0]), torch.tensor([1.0, 5.0, 6.0, 2.0])]
    assert choose(scores, 0.5, across="layer") == ((0, 3), (1, 2))


def test_across_the_model_layers_are_compared_by_their_normalised_scores():
    # norms 5 and 10: scaled 0.6 0.8 0.0 and 0.0 0.6 0.8; the best of each layer is safe, three of the rest go
    scores = [torch.tensor([3.0, 4.0, 0.0]), torch.tensor([0.0, 6.0, 8.0])]
    assert choose(scores, 0.5, across="model") == ((1,), (1, 2))


def test_one_unit_of_every_layer_always_stays():
    scores = [torch.tensor([9.0, 8.0]), torch.tensor([0.1, 0.2])]
    assert choose(scores, 0.99, across="model") == ((0,), (1,))
    assert choose(scores, 0.99, across="layer") == ((0,), (1,))


@given(st.lists(st.lists(st.floats(0, 100), min_size=1, max_size=9), min_size=1, max_size=5), st.floats(0, 0.99))
@settings(max_examples=150, deadline=None)
def test_the_share_asked_for_goes_and_nothing_at_ratio_zero(scores: list[list[float]], ratio: float):
    tensors = [torch.tensor(one) for one in scores]
    for across in ("layer", "model"):
        kept = choose(tensors, ratio, across=across)
        assert all(one and list(one) == sorted(set(one)) for one in kept)
        if ratio == 0:
            assert kept == tuple(tuple(range(len(one))) for one in scores)
    total = sum(map(len, scores))
    gone = total - sum(map(len, choose(tensors, ratio, across="model")))
    assert gone == min(total - len(scores), int(ratio * total + 0.5))
