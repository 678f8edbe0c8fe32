"""Numbers as a reader wants them: true minus signs, few digits, units, and a dash for what is not known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

DASH = "–"
MINUS = "−"
THIN = "\u202f"  # narrow no-break space between a number and its unit
_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def known(value: float | None) -> bool:
    """Whether there is a finite number."""
    return value is not None and math.isfinite(value)


def plain(value: float | None, decimals: int) -> str:
    """A number with fixed decimals.

    >>> plain(-0.0314, 3)
    '−0.031'
    """
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{abs(value):,.{decimals}f}"
    return MINUS + text if value < 0 and any(c in "123456789" for c in text) else text


def signed(value: float | None, decimals: int) -> str:
    """A number that always shows its sign, unless it is zero at these decimals.

    >>> signed(0.0314, 3)
    '+0.031'
    """
    text = plain(value, decimals)
    positive = value is not None and math.isfinite(value) and value > 0
    return "+" + text if positive and any(c in "123456789" for c in text) else text


def percent(share: float | None, decimals: int = 1) -> str:
    """A share as a percentage."""
    return DASH if not known(share) else plain(100 * float(share or 0), decimals) + THIN + "%"


def signed_percent(share: float | None, decimals: int = 1) -> str:
    """A relative change as a percentage with its sign."""
    return DASH if not known(share) else signed(100 * float(share or 0), decimals) + THIN + "%"


def span(low: float | None, high: float | None, decimals: int, *, sign: bool = False) -> str:
    """An interval in words, since a dash between two signed numbers is misread.

    >>> span(-0.02, 0.01, 2)
    '−0.02 to 0.01'
    """
    if not known(low) or not known(high):
        return "no interval"
    show = signed if sign else plain
    return f"{show(low, decimals)} to {show(high, decimals)}"


def percent_span(low: float | None, high: float | None, decimals: int = 1, *, sign: bool = False) -> str:
    """An interval of shares as percentages."""
    if low is None or high is None or not known(low) or not known(high):
        return "no interval"
    return span(100 * low, 100 * high, decimals, sign=sign) + THIN + "%"


def count(value: float | None) -> str:
    """A whole number with separators.

    >>> count(12345)
    '12,345'
    """
    return DASH if not known(value) else plain(value, 0)


def compact(value: float | None) -> str:
    """A large number in three digits.

    >>> compact(1_234_567), compact(950)
    ('1.23\u202fM', '950')
    """
    if value is None or not math.isfinite(value):
        return DASH
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            scaled = value / size
            return plain(scaled, 2 if abs(scaled) < 10 else 1 if abs(scaled) < 99.95 else 0) + THIN + unit
    return plain(value, 0)


def size(value: float | None) -> str:
    """A number of bytes.

    >>> size(1_480_000), size(65)
    ('1.48\u202fMB', '65\u202fB')
    """
    text = compact(value)
    return text if text == DASH else f"{text}B" if text[-1].isalpha() else f"{text}{THIN}B"


def scientific(value: float | None, digits: int = 1) -> str:
    """A number as a power of ten, such as floating-point operations.

    >>> scientific(123e12)
    '1.2 × 10¹⁴'
    """
    if value is None or not math.isfinite(value):
        return DASH
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits}e}".split("e")
    return f"{mantissa.replace('-', MINUS)} × {power_of_ten(int(exponent))}"


def power_of_ten(exponent: int) -> str:
    """10 with a raised exponent."""
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def duration(seconds: float | None) -> str:
    """A time for people.

    >>> duration(492.4), duration(3.21)
    ('8 min 12 s', '3.2 s')
    """
    if seconds is None or not math.isfinite(seconds):
        return DASH
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def decimals_for(values: Iterable[float | None], digits: int = 3, least: int = 0, most: int = 6) -> int:
    """Decimals that show the largest of the values with so many significant digits.

    >>> decimals_for([0.0312, -0.004])
    4
    """
    largest = max((abs(v) for v in values if v is not None and math.isfinite(v)), default=0.0)
    if largest == 0:
        return least
    return max(least, min(most, digits - 1 - math.floor(math.log10(largest))))


def telling_decimals(first: float | None, second: float | None, least: int = 4, most: int = 8) -> int:
    """Decimals that tell two numbers apart; `least` for equal ones, and where one is not known.

    >>> telling_decimals(3.05881, 3.05879), telling_decimals(0.2, 0.1), telling_decimals(1.0, 1.0)
    (5, 4, 4)
    """
    if first is None or second is None or first == second:
        return least
    return next((d for d in range(least, most) if f"{first:.{d}f}" != f"{second:.{d}f}"), most)


def scale_exponent(values: Sequence[float | None]) -> int:
    """The power of ten by which to divide values so that the largest has one digit before the point; 0 if near 1.

    >>> scale_exponent([3.1e-5, -2e-6])
    -5
    """
    largest = max((abs(v) for v in values if v is not None and math.isfinite(v)), default=0.0)
    if largest == 0 or 0.1 <= largest < 1000:
        return 0
    return math.floor(math.log10(largest))


def listed(names: Sequence[str], most: int = 4) -> str:
    """Names as a phrase.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def sentence(text: str) -> str:
    """A text with its full stop."""
    return text if text.rstrip().endswith((".", "!", "?", ":")) else f"{text.rstrip()}."


def words(number: int, noun: str) -> str:
    """A number with its noun.

    >>> words(1, "seed"), words(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"
