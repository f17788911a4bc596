import pytest

from lissom.bench.format import clean, interval, number, times
from lissom.bench.table import lines, markdown, reasons, table
from lissom.errors import LissomError

from .samples import pair, reading, row


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (0, None, None, "0"),
        (22713216, None, None, "22,713,216"),
        (22.713216, None, None, "22.71"),
        (0.00012345, None, None, "0.0001234"),
        (0.91342, 0.897, 0.929, "0.913"),
        (0.91342, 0.87, 0.95, "0.91"),
        (1234.56, 1190, 1270, "1,230"),
        (-0.0001, -0.2, 0.2, "0.0"),
        (5.0, 5.0, 5.0, "5"),
        (2, 1.9, 2.1, "2.00"),
    ],
)
def test_the_interval_decides_the_digits(value, low, high, text):
    assert number(value, low, high) == text


def test_intervals_and_ratios():
    assert interval(1190, 1270) == "1,190 to 1,270"
    assert interval(5, 5) == ""
    assert [times(value) for value in (0.5, 1, 4.8123, 100, 1234)] == ["0.5×", "1×", "4.8×", "100×", "1,234×"]
    assert times(6.123, 5.9, 6.3) == "6.1×"


def test_clean_keeps_words_and_drops_what_steers():
    assert clean("a\x1b[31m\u202eb\nc\ud800") == "a\ufffd[31m\ufffdb c\ufffd"
    assert clean("a\n\tb", keep_lines=True) == "a\n\tb"
    assert clean("نمی‌خواهم 👩‍💻") == "نمی‌خواهم 👩‍💻"


def test_the_table_of_two():
    header, body = table(pair(), "original")
    assert header == ["", "better", "original", "result", "change"]
    assert body == [
        ["Accuracy", "↑", "0.921 (0.902 to 0.938)", "0.913 (0.893 to 0.931)", "no difference shown"],
        ["Quality kept", "↑", "1", "0.991 (0.981 to 1.002)", ""],
        ["Label loyalty", "↑", "1", "0.962 (0.948 to 0.974)", ""],
        ["Size, MB", "↓", "90.9", "18.94", "4.8× smaller"],
        ["Parameters, M", "↓", "22.71", "17.39", "1.31× fewer"],
        ["FLOPs, GFLOP", "↓", "1.356", "0.678", "2× fewer"],
        ["Latency p50, ms", "↓", "12.3 (12.1 to 12.6)", "1.82 (1.79 to 1.86)", "6.8× faster"],
        ["Throughput, texts/s", "↑", "185 (181 to 190)", "1,130 (1,100 to 1,160)", "6.1× more"],
        ["Speed-up", "↑", "1×", "6.1× (5.9 to 6.3)", ""],
    ]


def test_without_a_reference_nothing_is_compared():
    header, body = table(pair())
    assert header[-1] == "result"
    assert all(len(cells) == 4 for cells in body)
    assert not any(cell.change for line in lines(pair()) for cell in line.cells)


def test_overlapping_intervals_show_no_difference():
    noisy = row("result", readings=[reading("latency_ms_p50", 12.0, 11.0, 13.0, unit="ms", better="lower")])
    (line,) = [one for one in lines([row(), noisy], "original") if one.name == "latency_ms_p50"]
    assert line.cells[1].change == "no difference shown"


def test_a_ratio_that_rounds_to_one_is_about_the_same():
    more = row("result", readings=[reading("parameters", 22_773_000, unit="numbers", better="lower")])
    (line,) = [one for one in lines([row(), more], "original") if one.name == "parameters"]
    assert line.cells[1].change == "about the same"


@pytest.mark.parametrize(("share", "cell", "change"), [(0.50523, "0.5052", "+0.5052"), (0.8, "0.8", "+0.8")])
def test_zeros_are_a_share_and_no_multiple_of_the_few_that_any_model_has(share, cell, change):
    dense, sparse = (
        row(name, readings=[reading("sparsity", value, better="none")])
        for name, value in (("original", 5.651e-7), ("result", share))
    )
    (line,) = lines([dense, sparse], "original")
    assert [(one.value, one.change) for one in line.cells] == [("0", ""), (cell, change)]


@pytest.mark.parametrize(("value", "change"), [(0.0, "−0.006"), (0.006, "the same")])
def test_a_fall_to_zero_is_no_change_by_minus_zero(value, change):
    before = row("original", readings=[reading("f1", 0.006, 0.000, 0.019)])
    after = row("result", readings=[reading("f1", value)])
    (line,) = lines([before, after], "original")
    assert line.cells[1].change == change


def test_paired_ratios_count_only_against_their_own_reference():
    first, second = pair()
    other = row("other", which=1)  # measured against "original" too
    (line,) = [one for one in lines([first, second, other], "result") if one.name == "throughput"]
    assert [cell.change for cell in line.cells] == ["6.1× less", "", "no difference shown"]


def test_a_missing_value_says_why():
    rows = [row(), row("result", readings=[reading("energy_j", None, unit="J", better="lower", how="no counter here")])]
    by_name = {line.name: line for line in lines(rows, "original")}
    assert by_name["energy_j"].label == "Energy"
    assert [cell.value for cell in by_name["energy_j"].cells] == ["-", "-"]
    assert "Energy, result: no counter here" in reasons(rows)
    assert "Accuracy, result: not among its readings" in reasons(rows)


def test_what_no_row_has_for_one_reason_is_said_once():
    missing = [reading("accuracy", None, how="no labels")]
    rows = [row(readings=missing), row("result", readings=missing)]
    assert reasons(rows) == ["Accuracy: no labels"]


def test_the_last_row_of_a_subject_counts_and_runtimes_stay_apart():
    rows = [row("a"), row("a", which=1), row("a", runtime="onnxruntime")]
    header, body = table(rows, "a (onnxruntime)")
    assert header[2:] == ["a (torch)", "a (onnxruntime)", "change"]
    assert body[0][2].startswith("0.913")


def test_rows_that_cannot_be_compared():
    with pytest.raises(LissomError, match=r"LSM-844 the rows come from different data: cola, sst2"):
        table([row(), row("b", data={"name": "cola"})])
    with pytest.raises(LissomError, match="LSM-843 there is no row"):
        table([])
    with pytest.raises(LissomError, match=r'LSM-215 no row of "orginal" .* Did you mean "original"\?'):
        table(pair(), "orginal")


def test_markdown_shows_text_literally():
    hostile = "a|b <img src=x onerror=alert(1)> [x](javascript:1) `c` @you\n# d"
    text = markdown([row(), row(hostile, which=1)], "original")
    assert "<img" not in text
    assert r"a\|b &lt;img src=x onerror=alert(1)&gt; \[x\](javascript:1) \`c\` &#64;you # d" in text
    assert len({line.replace(r"\|", "").count("|") for line in text.splitlines()}) == 1
    assert text.splitlines()[1] == "| :-- | :-: | --: | --: | --: |"


def test_markdown_lists_what_was_not_measured():
    text = markdown([row(readings=[reading("energy_j", None, how="no counter")])])
    assert text.endswith("\nNot measured:\n\n- Energy, original: no counter\n")


def test_a_perplexity_is_no_count():
    (line,) = lines([row(readings=[reading("perplexity", 2_345_678.0, better="lower")])])
    assert (line.unit, line.cells[0].value) == ("", "2,345,678")
