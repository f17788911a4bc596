"""How numbers and foreign text are written, the same in the terminal, in Markdown and in the report."""

from __future__ import annotations

import math
import re
import unicodedata

_STEERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")


def number(value: float, low: float | None = None, high: float | None = None) -> str:
    """`value` with the digits that its interval supports; without one a whole number in full, else four digits.

    >>> number(0.91342, 0.897, 0.929), number(1234.56, 1190, 1270), number(43726), number(22.713216), number(0.5)
    ('0.913', '1,230', '43,726', '22.71', '0.5')
    >>> number(88077.4)
    '88,080'
    """
    if low is None or high is None or low == high:
        if value == int(value):
            return f"{int(value):,}"
        places = 3 - _magnitude(value)
        digits = _fixed(value, places)
        return digits.rstrip("0").rstrip(".") if places > 0 else digits  # 88,080 keeps its last nought
    return _fixed(value, _places(low, high))


def interval(low: float | None, high: float | None) -> str:
    """Both ends with the same digits, or nothing where there is no interval.

    >>> interval(0.897, 0.929), interval(1190, 1270), interval(None, None)
    ('0.897 to 0.929', '1,190 to 1,270', '')
    """
    if low is None or high is None or low == high:
        return ""
    places = _places(low, high)
    return f"{_fixed(low, places)} to {_fixed(high, places)}"


def times(value: float, low: float | None = None, high: float | None = None) -> str:
    """A ratio: two decimal places below 2, one below 10, none above; fewer where the interval is wide.

    >>> times(4.8123), times(1), times(1.309), times(12.34), times(1.309, 1.1, 1.5)
    ('4.8×', '1×', '1.31×', '12×', '1.3×')
    """
    places = 2 if abs(value) < 2 else 1 if abs(value) < 10 else 0
    if low is not None and high is not None and low != high:
        return f"{_fixed(value, min(places, _places(low, high)))}×"
    digits = _fixed(value, places)
    return f"{digits.rstrip('0').rstrip('.') if places else digits}×"


def clean(text: str, *, keep_lines: bool = False) -> str:
    """`text` with U+FFFD for what steers a terminal or hides text: controls, directions, lone surrogates.

    Line ends and tabs become one space unless `keep_lines`.
    """
    flat = text if keep_lines else re.sub(r"[\n\r\t]+", " ", text)
    return "".join("\ufffd" if _steers(letter) else letter for letter in flat)


def _steers(letter: str) -> bool:
    if letter in "\n\t":
        return False
    return letter in _STEERING or unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")


def _places(low: float, high: float) -> int:
    """Decimal places up to the first digit of half the interval's width, one more where that digit is 1."""
    half = (high - low) / 2 * (1 + 1e-9)  # 6.3 - 5.9 is a little less than 0.4
    magnitude = _magnitude(half)
    return min(6, -magnitude + (1 if half < 2 * 10.0**magnitude else 0))


def _magnitude(value: float) -> int:
    return math.floor(math.log10(abs(value))) if value else 0


def _fixed(value: float, places: int) -> str:
    """Rounded to `places`, which may be negative; a rounded zero has no sign."""
    rounded = round(value, places) + 0.0
    return f"{rounded:,.{max(places, 0)}f}"
