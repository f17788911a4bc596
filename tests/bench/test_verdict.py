import pytest

from lissom.bench.verdict import verdict

from .samples import pair, reading, row


def result(**values):
    """A row like the result of the samples, with some readings replaced: name=(value, low, high)."""
    found = row("result", which=1)
    for one in found["readings"]:
        if one["name"] in values:
            one["value"], one["low"], one["high"] = values[one["name"]]
    return found


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {},
            "result is 4.8 times smaller and 6.1 times faster than original, and shows no difference in accuracy.",
        ),
        (
            {"keep": (0.972, 0.96, 0.984)},
            "result is 4.8 times smaller and 6.1 times faster than original, and keeps 97.2 % of the accuracy.",
        ),
        (
            {"keep": (1.02, 1.01, 1.03), "speedup": (0.5, 0.48, 0.52)},
            "result is 4.8 times smaller and 2.0 times slower than original, and has a better accuracy.",
        ),
        (
            {"speedup": (1.02, 0.97, 1.06), "size_mb": (90.9, None, None)},
            "result has the size of original, shows no difference in speed, and shows no difference in accuracy.",
        ),
        (
            {"speedup": (1.02, 0.97, 1.06), "size_mb": (181.8, None, None)},
            "result is 2 times larger than original, shows no difference in speed, "
            "and shows no difference in accuracy.",
        ),
    ],
)
def test_the_sentence_says_no_more_than_the_intervals(changes, sentence):
    assert verdict([row(), result(**changes)], "original").sentence == sentence


def test_the_figures():
    assert [(one.value, one.label, one.note) for one in verdict(pair(), "original").figures] == [
        ("4.8×", "smaller", "90.9 → 18.94 MB"),
        ("6.1×", "faster", "185 → 1,130 texts/s"),
        ("99.1 %", "of the quality kept", "98.1 to 100.2 %, no difference shown"),
    ]


def test_the_fastest_that_loses_nothing_is_judged():
    fast = result(keep=(0.8, 0.78, 0.82), speedup=(20, 19, 21)) | {"subject": "fast"}
    slow = result(speedup=(2, 1.9, 2.1)) | {"subject": "slow"}
    assert verdict([row(), fast, slow, pair()[1]], "original").sentence.startswith("Of 3 compared, result is 4.8")
    assert verdict([row(), fast, fast | {"subject": "other"}], "original").sentence.startswith("Of 2 compared, fast")


def test_lower_is_better_for_perplexity():
    better = row("b", readings=[reading("perplexity", 20.0, 19.9, 20.1, better="lower")])
    worse = row("w", readings=[reading("perplexity", 25.0, 24.9, 25.1, better="lower")])
    assert verdict([better, worse], "b").sentence == "w has a worse perplexity."
    assert verdict([better, worse], "w").sentence == "b has a better perplexity."


def test_nothing_is_claimed_without_something_to_compare():
    assert verdict([row()]).sentence == "original: Accuracy 0.921, 185 texts/s, 90.9 MB."
    assert verdict(pair()).sentence.startswith("2 models measured side by side; none is named")
    assert verdict([row("x", readings=[])]).sentence == "x: nothing that this page sums up was measured."
    assert verdict([row(readings=[]), row("x", readings=[])], "original").sentence == "x was not compared in quality."
