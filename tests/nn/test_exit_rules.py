"""Rules of early exit: scores by hand, and what is the same whatever the rule."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lissom.nn.exit_rules import EVERYBODY, NOBODY, RULES, Memory, Seen, learned

SURE, UNSURE = [4.0, 0.0], [0.0, 0.1]


def scores(rule: str, exits: list[list[list[float]]], constant: float | None = None) -> list[list[float]]:
    """Scores (exits, texts) of logits (exits, texts, classes)."""
    memory: Memory = ()
    found = []
    for number, logits in enumerate(exits, 1):
        own = RULES[rule].constant or 0.0 if constant is None else constant
        score, memory = RULES[rule].score(
            Seen(logits=torch.tensor(logits), judged=None, number=number, constant=own), memory
        )
        found.append(score.tolist())
    return found


def test_confidence_is_the_highest_probability() -> None:
    # softmax of log 3 and 0: 3/4 and 1/4
    assert scores("confidence", [[[math.log(3), 0.0], [0.0, 0.0]]])[0] == pytest.approx([0.75, 0.5])


def test_entropy_is_one_where_sure_and_zero_where_all_classes_are_alike() -> None:
    # H(3/4, 1/4) = 0.811278 bits of one
    found = scores("entropy", [[[math.log(3), 0.0], [0.0, 0.0], [50.0, 0.0]]])[0]
    assert found == pytest.approx([1 - 0.8112781, 0.0, 1.0], abs=1e-6)
    # three classes: one bit of log2(3)
    assert scores("entropy", [[[0.0, 0.0, -99.0]]])[0] == pytest.approx([1 - 1 / math.log2(3)], abs=1e-6)


def test_patience_counts_exits_that_agree_with_the_one_before() -> None:
    one, other = [1.0, 0.0], [0.0, 1.0]
    found = scores("patience", [[one, one], [one, other], [one, other], [other, other]])
    assert found == [[0, 0], [1, 0], [2, 1], [0, 2]]


def test_patience_with_numbers_counts_near_ones() -> None:
    found = scores("patience", [[[1.0]], [[1.05]], [[1.3]], [[1.35]], [[1.3]]], constant=0.1)
    assert found == [[0], [1], [0], [1], [2]]


def test_patience_and_confidence_counts_sure_exits_whatever_they_say() -> None:
    found = scores("patience_confidence", [[SURE], [[0.0, 4.0]], [UNSURE], [SURE]], constant=0.5)
    assert found == [[1], [2], [0], [1]]


def test_votes_are_divided_by_a_power_of_the_exits() -> None:
    one, other = [1.0, 0.0], [0.0, 1.0]
    found = scores("vote", [[one, one], [one, other], [one, other]], constant=0.5)
    assert found[0] == [1.0, 1.0]
    assert found[1] == pytest.approx([2 / math.sqrt(2), 1 / math.sqrt(2)])
    assert found[2] == pytest.approx([3 / math.sqrt(3), 2 / math.sqrt(3)])


def test_learned_is_what_the_judge_says() -> None:
    seen = Seen(logits=torch.zeros(2, 3), judged=torch.tensor([0.2, 0.9]), number=1, constant=0.0)
    assert learned(seen, ())[0].tolist() == pytest.approx([0.2, 0.9])
    with pytest.raises(ValueError, match="no judge"):
        learned(Seen(logits=torch.zeros(2, 3), judged=None, number=1, constant=0.0), ())


@settings(max_examples=30, deadline=None)
@given(rule=st.sampled_from(sorted(RULES)), seed=st.integers(0, 99), classes=st.integers(2, 5))
def test_every_rule_scores_between_everybody_and_nobody_and_each_text_by_itself(rule: str, seed: int, classes: int):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((4, 6, classes), generator=generator) * 3
    judged = torch.rand((4, 6), generator=generator)

    def run(texts: Tensor) -> Tensor:
        memory: Memory = ()
        found = []
        for number in range(4):
            constant = RULES[rule].constant or 0.0
            seen = Seen(
                logits=logits[number, texts], judged=judged[number, texts], number=number + 1, constant=constant
            )
            score, memory = RULES[rule].score(seen, memory)
            found.append(score)
        return torch.stack(found)

    whole = run(torch.arange(6))
    assert bool((whole > EVERYBODY).all())
    assert bool((whole < NOBODY).all())
    alone = torch.cat([run(torch.tensor([text])) for text in range(6)], dim=1)
    torch.testing.assert_close(alone, whole)
