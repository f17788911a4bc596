from __future__ import annotations

import pytest
import torch

from lissom.methods.low_rank.ranks import Size, by_energy, uniform

SQUARE = Size(rows=4, columns=4, held=16)


@pytest.mark.parametrize(
    ("ratio", "rows", "columns", "rank"), [(0.5, 384, 384, 96), (0.5, 384, 1536, 153), (1e-6, 4, 4, 1), (0.9, 1, 9, 0)]
)
def test_the_rank_keeps_the_share_of_parameters(ratio: float, rows: int, columns: int, rank: int):
    size = Size(rows=rows, columns=columns, held=rows * columns)
    assert uniform({"a": size}, ratio) == {"a": rank}
    assert size.cost(rank) <= max(ratio * size.held, size.part())


def test_a_ratio_of_one_leaves_all():
    assert uniform({"a": SQUARE, "b": Size(rows=3, columns=4, held=12)}, 1) == {"a": 0, "b": 0}
    assert by_energy({"a": SQUARE}, {"a": torch.ones(4).double()}, 1) == {"a": 0}


def test_of_thin_maps_the_share_of_what_they_hold():
    thin = Size(rows=10, columns=10, held=80)  # rank 4
    assert uniform({"a": thin}, 0.5) == {"a": 2}


def test_the_same_share_of_energy_by_hand():
    """At most 35 of 64 numbers, 4 a part: all eight parts of `flat` are worth the same, one of `steep` nearly all."""
    size = Size(rows=2, columns=2, held=32)
    costs = {"steep": torch.tensor([90.0, 9.0, 0.9, 0.1, 0, 0, 0, 0]), "flat": torch.ones(8)}
    found = by_energy({"steep": size, "flat": size}, {name: one.double() for name, one in costs.items()}, 35 / 64)
    # 7 of 8 parts of `flat` lose 1/8 and take 28; `steep` loses 1/10 with one part, which takes 4
    assert found == {"steep": 1, "flat": 7}


def test_what_saves_nothing_stays():
    """A map whose parts are all worth the same is left whole before it loses any, where the budget bears it."""
    sizes = {"flat": SQUARE, "steep": Size(rows=8, columns=8, held=64)}
    costs = {"flat": torch.ones(4).double(), "steep": torch.tensor([1.0, *[1e-9] * 7]).double()}
    assert by_energy(sizes, costs, 0.5) == {"flat": 0, "steep": 1}
