"""Whether a stated answer equals the reference: exactly where both are rational, by a second opinion
elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable

from training.rewards.rational import exact_value, plain_expression

LONGEST_ANSWER = 2_000  # characters
SecondOpinion = Callable[[str, str], bool | None]

_ROMAN_E = re.compile(r"\\(?:mathrm|rm)\s*\{?\s*e\s*\}?")
_DOTS = re.compile(r"\.\.\.|…|\\[lc]?dots\b")
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mbox)\s*\{([^{}]*)\}")
_IN_BASE = re.compile(r"(-?)0*([0-9A-Z.]+)(?:_\{?(\d+)\}?)?")
# \frac\pi4 and \sqrt2, whose arguments are single letters, digits or commands without braces.
_BARE = r"(\\(?!sqrt|[dtc]?frac)[A-Za-z]+|[A-Za-z0-9])"
_FIRST = re.compile(r"\\(?:[dtc]?(frac)|(sqrt))(?![A-Za-z])\s*" + _BARE)
_SECOND = re.compile(r"(\\[dtc]?frac\s*\{(?:[^{}]|\{[^{}]*\})*\})\s*" + _BARE)


def answers_equal(reference: str, answer: str, second_opinion: SecondOpinion | None = None) -> bool:
    """Whether `answer` states the value of `reference`.

    1. Texts that are equal but for LaTeX's dressing are equal. Of answers in words (\\text{even}, \\text{(C)}) also
       case, brackets around one letter, spaces and dots do not count, and nothing else is asked.
    2. Where both are rational, exact arithmetic decides, without tolerance: 0.333 is not 1/3. A percentage equals
       its fraction and, since a question may ask for per cent, its number: 50% = 0.5 = 50.
    3. Of numbers in a base (11010_2) digits and base decide; an answer may leave out the base, which the question
       names. The second opinion does not look at it.
    4. An exact number against something else, or anything with dots ("1, 2, ..., n"), is not equal unless it is
       textually: the second opinion is known to accept wrong ones there.
    5. Otherwise the second opinion (math-verify) decides, and without one the answers are unequal.

    >>> [answers_equal(*pair) for pair in (("1/2", "0.5"), ("50", "50%"), ("1/2", "0.51"), ("3", ""))]
    [True, True, False, False]
    >>> [answers_equal(*pair) for pair in (("\\\\text{(C)}", "C"), ("\\\\frac34", ".75"), ("12_3", "12_4"))]
    [True, True, False]
    """
    if len(answer) > LONGEST_ANSWER or len(reference) > LONGEST_ANSWER:
        return False
    reference, answer = with_braces(reference), with_braces(answer)
    one, other = plain_expression(reference), plain_expression(answer)
    if not one or not other:  # words alone, which a number may carry as its unit
        return bool(_words(reference)) and _words(reference) == _words(answer)
    if one == other:
        return True
    left, right = exact_value(reference), exact_value(answer)
    if left is not None and right is not None:
        percent = one.endswith("%") - other.endswith("%")
        return (
            left == right or (percent == -1 and left == right * 100) or (percent == 1 and left * 100 == right)
        )
    numbers = [_IN_BASE.fullmatch(text.strip(" $.")) for text in (reference, answer)]
    if numbers[0] and numbers[1] and (numbers[0][3] or numbers[1][3]):
        (*digits, base), (*others, another) = numbers[0].groups(), numbers[1].groups()
        return digits == others and (base == another or None in (base, another))
    if second_opinion is None or _DOTS.search(reference) or _DOTS.search(answer):
        return False
    return second_opinion(_ROMAN_E.sub("e", reference), _ROMAN_E.sub("e", answer)) is True


def with_braces(text: str) -> str:
    """`text` with braces around the bare arguments of \\frac and \\sqrt, which the second opinion misreads.

    >>> with_braces("\\\\frac \\\\pi4 + \\\\sqrt2"), with_braces("\\\\dfrac{\\\\sqrt{2}}3")
    ('\\\\frac{\\\\pi}{4} + \\\\sqrt{2}', '\\\\dfrac{\\\\sqrt{2}}{3}')
    """
    text = _FIRST.sub(lambda found: f"\\{found[1] or found[2]}{{{found[3]}}}", text)
    return _SECOND.sub(r"\1{\2}", text)


def _words(text: str) -> str:
    """What a text without formulas says: "\\text{(C)}" and "C" are C, "\\text{4:30 p.m.}" is 4:30pm."""
    plain = re.sub(r"[\s.$]", "", _TEXT.sub(r"\1", text))
    plain = re.sub(r"^\((\w)\)$", r"\1", plain)
    return plain.lower() if len(plain) > 2 else plain
