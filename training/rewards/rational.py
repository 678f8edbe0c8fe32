"""Exact rational arithmetic on the numbers and small expressions that answers consist of.

A model's answer is untrusted text. It is never evaluated by an interpreter: a recursive-descent parser walks
it once, and every operation that could grow (powers, factorials) is refused before it is carried out when
its result would have more than MAX_BITS bits. So a check costs microseconds and no answer can make it hang.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

MAX_CHARACTERS = 400
MAX_BITS = 1 << 16
MAX_DEPTH = 40

_SPACES = re.compile(r"\\[,;:! ]|\\q?quad\b|~|\s+")
_UNITS = re.compile(r"\\(?:text|mathrm|textbf|mbox|operatorname)\s*\{[^{}]*\}")
_WRAPPED = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox|boxed)\s*\{([-+0-9.,/\s]+)\}")
_NUMBER = re.compile(r"\d+(?:\.\d*)?|\.\d+")
_EXPONENT = re.compile(r"[eE][-+]?\d{1,4}")
_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_NAMED = re.compile(r"^[A-Za-z](?:\([A-Za-z]\))?=(?=[^=]+$)")
_WORDS = {
    "\\left": "", "\\right": "", "\\displaystyle": "", "\\(": "", "\\)": "", "\\[": "", "\\]": "",
    "\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\cfrac": "\\frac", "\\times": "*", "\\cdot": "*",
    "\\div": "/", "×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "**": "^", "\\%": "%", "\\$": "", "$": "",
    "£": "", "€": "", "^\\circ": "", "^{\\circ}": "", "°": "", "{,}": ",",
}  # fmt: skip


def exact_value(text: str) -> Fraction | None:
    """The exact value of a number or rational expression, or None if it is none (or too large to work out).

    Knows decimals, 1,234 and 1{,}234, scientific notation, percentages, fractions (a/b, \\frac{a}{b}), mixed
    numbers (1\\frac12), + - * / ^ !, brackets, square roots of squares, a leading "x =", currency signs and
    trailing units.

    >>> exact_value("1,234.50"), exact_value(r"\\frac{3}{4}"), exact_value("50%"), exact_value("x = -2^3")
    (Fraction(2469, 2), Fraction(3, 4), Fraction(1, 2), Fraction(-8, 1))
    >>> exact_value("1/2004!") == exact_value("1/2006!"), exact_value("9^9^9^9"), exact_value("two")
    (False, None, None)
    """
    if len(text) > MAX_CHARACTERS:
        return None
    plain = plain_expression(text)
    try:
        parser = _Parser(plain)
        value = parser.sum()
        return value if parser.at == len(plain) else None
    except (_NotRational, ZeroDivisionError, RecursionError):
        return None


def plain_expression(text: str) -> str:
    """`text` without LaTeX's dressing, spaces, thousands separators, currency signs, units and a leading "x
    =".

    >>> plain_expression(r"$x = 1{,}000 \\text{ apples}$.")
    '1000'
    """
    text = _WRAPPED.sub(r"\1", text.strip())
    text = _UNITS.sub("", text)
    for written, meant in _WORDS.items():
        text = text.replace(written, meant)
    text = re.sub(r"(\d)\s+(\d+)\s*/\s*(\d+)", r"\1\\frac{\2}{\3}", text.strip())  # 1 1/2
    text = re.sub(r"(?<=[\d.])\s+[A-Za-z][A-Za-z /]*\.?$", "", text)  # 5 apples
    text = re.sub(r"(?<=\d)\\[,!](?=\d{3}(?!\d))", "", text)  # 1\,000
    text = re.sub(r"(?<=[\d.])\s+(?=[\d.])", "_", text.rstrip(" .,;"))  # "1 2" is not 12
    text = _SPACES.sub("", text).rstrip(".,;")
    text = _NAMED.sub("", text)
    return _GROUPED.sub(lambda match: match[0].replace(",", ""), text)


class _NotRational(Exception):
    """The text is not a rational expression, or is too large."""


class _Parser:
    """sum = product {(+|-) product}, product = power {(*|/) power}, power = atom [^ it]."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.depth = text, 0, 0

    def sum(self) -> Fraction:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _NotRational
        value = self.product()
        while (sign := self.peek()) in ("+", "-"):
            self.at += 1
            other = self.product()
            value = _bounded(value + other if sign == "+" else value - other)
        self.depth -= 1
        return value

    def product(self) -> Fraction:
        value = self.signed()
        while True:
            sign = self.peek()
            if sign == "*":
                self.at += 1
                value = _bounded(value * self.signed())
            elif sign == "/":
                self.at += 1
                value = _bounded(value / self.signed())
            elif sign == "(":  # 2(3)
                value = _bounded(value * self.power())
            else:
                return value

    def signed(self) -> Fraction:
        negative = False
        while (sign := self.peek()) in ("+", "-"):
            negative ^= sign == "-"
            self.at += 1
        value = self.power()
        return -value if negative else value

    def power(self) -> Fraction:
        base = self.suffixed()
        if self.peek() != "^":
            return base
        self.at += 1
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _NotRational
        exponent = self.signed()
        self.depth -= 1
        return _power(base, exponent)

    def suffixed(self) -> Fraction:
        value = self.atom()
        while (sign := self.peek()) in ("!", "%"):
            self.at += 1
            value = _factorial(value) if sign == "!" else value / 100
        return value

    def atom(self) -> Fraction:
        if self.text.startswith("\\frac", self.at):
            self.at += 5
            return _bounded(self.argument() / self.argument())
        if self.text.startswith("\\sqrt", self.at):
            self.at += 5
            return _root(self.argument())
        for opening, closing in ("()", "{}"):
            if self.peek() == opening:
                self.at += 1
                value = self.sum()
                self.expect(closing)
                return value
        return self.number()

    def argument(self) -> Fraction:
        """A braced group or, as in \\frac12, one digit."""
        if self.peek() == "{":
            return self.atom()
        digit = self.peek()
        if not digit.isascii() or not digit.isdigit():
            raise _NotRational
        self.at += 1
        return Fraction(int(digit))

    def number(self) -> Fraction:
        match = _NUMBER.match(self.text, self.at)
        if match is None:
            raise _NotRational
        self.at = match.end()
        value = Fraction(match[0] if match[0] != "." else "0")
        exponent = _EXPONENT.match(self.text, self.at)
        if exponent:
            self.at = exponent.end()
            value *= _power(Fraction(10), Fraction(int(exponent[0][1:])))
        if "." not in match[0] and not exponent and self.text.startswith("\\frac", self.at):
            value += self.atom()  # a mixed number
        return _bounded(value)

    def peek(self) -> str:
        return self.text[self.at] if self.at < len(self.text) else ""

    def expect(self, character: str) -> None:
        if self.peek() != character:
            raise _NotRational
        self.at += 1


def _bits(value: Fraction) -> int:
    return max(abs(value.numerator).bit_length(), value.denominator.bit_length())


def _bounded(value: Fraction) -> Fraction:
    if _bits(value) > MAX_BITS:
        raise _NotRational
    return value


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        return _power(_root(base), exponent * 2) if exponent.denominator == 2 else _refuse()
    if abs(exponent.numerator) > MAX_BITS or _bits(base) * abs(exponent.numerator) > MAX_BITS:
        raise _NotRational
    return base**exponent.numerator


def _factorial(value: Fraction) -> Fraction:
    number = value.numerator
    if value.denominator != 1 or number < 0 or number * max(number.bit_length(), 1) > MAX_BITS:
        raise _NotRational
    return Fraction(math.factorial(number))


def _root(value: Fraction) -> Fraction:
    if value < 0:
        raise _NotRational
    root = Fraction(math.isqrt(value.numerator), math.isqrt(value.denominator))
    return root if root * root == value else _refuse()


def _refuse() -> Fraction:
    raise _NotRational
