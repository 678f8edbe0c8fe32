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


def answers_equal(reference: str, answer: str, second_opinion: SecondOpinion | None = None) -> bool:
    """Whether `answer` states the value of `reference`.

    1. Texts that are equal but for LaTeX's dressing are equal.
    2. Where both are rational, exact arithmetic decides, without tolerance: 0.333 is not 1/3. A percentage
    equals
       its fraction and, since a question may ask for per cent, its number: 50% = 0.5 = 50.
    3. An exact number against something else, or anything with dots ("1, 2, ..., n"), is not equal unless it
    is
       textually: the second opinion is known to accept wrong ones there.
    4. Otherwise the second opinion (math-verify) decides, and without one the answers are unequal.

    >>> [answers_equal(*pair) for pair in (("1/2", "0.5"), ("50", "50%"), ("1/2", "0.51"), ("3", ""))]
    [True, True, False, False]
    """
    if len(answer) > LONGEST_ANSWER or len(reference) > LONGEST_ANSWER:
        return False
    one, other = plain_expression(reference), plain_expression(answer)
    if not one or not other:
        return False
    if one == other:
        return True
    left, right = exact_value(reference), exact_value(answer)
    if left is not None and right is not None:
        percent = one.endswith("%") - other.endswith("%")
        return (
            left == right or (percent == -1 and left == right * 100) or (percent == 1 and left * 100 == right)
        )
    if second_opinion is None or _DOTS.search(reference) or _DOTS.search(answer):
        return False
    return second_opinion(_ROMAN_E.sub("e", reference), _ROMAN_E.sub("e", answer)) is True
