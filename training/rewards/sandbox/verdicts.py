"""Is a program right? By calls with expected values, by its output for an input, or by test code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from training.rewards.sandbox import exchange
from training.rewards.sandbox.sandbox import Ended, Sandbox


@dataclass(frozen=True)
class Verdict:
    """passed of total cases; `outcome` and `detail` tell of the first that failed, if any."""

    passed: int
    total: int
    outcome: Literal["passed", "wrong", "error", "timeout", "memory", "output", "died", "malformed"]
    detail: str = ""

    @property
    def correct(self) -> bool:
        """Whether every case passed, and there was one."""
        return self.outcome == "passed" and self.passed == self.total > 0


def check_calls(
    sandbox: Sandbox,
    source: str,
    function: str,
    cases: Sequence[tuple[Sequence[Any], Any]],
    *,
    tolerance: float = 0.0,
) -> Verdict:
    """Call `function` of `source` with each case's arguments and compare with its expected value here.

    tolerance : largest difference of two floats, relative and absolute; 0 asks for equality
    All cases run in one process, so that a global variable lives on between them, as in the usual test files.
    Stops at the first case that fails.
    """
    passed = 0
    try:
        with sandbox.program(source) as talk:
            for arguments, expected in cases:
                value = talk.call(function, *arguments)
                if not same(value, expected, tolerance):
                    shown = f"{function}{tuple(arguments)!r:.120} gave {value!r:.80}"
                    return Verdict(passed, len(cases), "wrong", shown)
                passed += 1
    except Ended as ended:
        return Verdict(passed, len(cases), ended.reason, ended.detail)
    return Verdict(passed, len(cases), "passed")


def check_program(sandbox: Sandbox, source: str, cases: Sequence[tuple[str, str]]) -> Verdict:
    """Run `source` on each input and compare its output with the expected one, line by line.

    White space at the ends of lines and empty lines at the end do not count. Each case is a run of its own.
    """
    for passed, (stdin, expected) in enumerate(cases):
        try:
            output = sandbox.run(source, stdin)
        except Ended as ended:
            return Verdict(passed, len(cases), ended.reason, ended.detail)
        if output.error is not None:
            return Verdict(passed, len(cases), "error", output.error)
        if _lines(output.text) != _lines(expected):
            return Verdict(passed, len(cases), "wrong", f"wrote {output.text[:80]!r}")
    return Verdict(len(cases), len(cases), "passed")


def check_tests(
    candidate: Sandbox,
    judge: Sandbox,
    source: str,
    tests: str,
    functions: Sequence[str],
    check: str | None = None,
) -> Verdict:
    """Run test code, such as asserts, in a process of its own (`judge`), with the candidate's in another.

    functions : the candidate's functions that the tests may call; calls cross as exact built-in values, so
                that a test sees no change that a function makes to its arguments. An object of a class of the
                candidate's stays there: a test can hand it back, call it and see to its attributes, and it is
                equal to nothing but itself
    check     : HumanEval's form: the tests define `check(candidate)`, which is called with this function

    Counts as one case. Raises ValueError when the tests themselves are broken (not an assertion that failed).
    """
    try:
        # Both processes start at the same time; the program is defined before it is asked anything.
        with (
            candidate.program(source, wait=False) as program,
            judge.tests(tests, list(functions), check) as questions,
        ):
            program.answered()
            while "ask" in (message := questions.hear()):
                try:
                    allowed = [*functions, *([check] if check else []), *exchange.OPERATIONS]
                    answer = _relay(program, message, allowed)
                except Ended as ended:
                    if ended.reason != "error":
                        raise
                    answer = {"error": ended.detail}
                questions.say(answer)
    except Ended as ended:
        return Verdict(0, 1, ended.reason, ended.detail)
    if "failed" in message:
        return Verdict(0, 1, "wrong", message["failed"])
    if "error" in message:
        return Verdict(0, 1, "error", message["error"])
    return Verdict(1, 1, "passed")


def same(value: Any, expected: Any, tolerance: float = 0.0) -> bool:
    """Python's equality between built-in values; floats, also inside lists, tuples and dicts, within tolerance.

    >>> same([1, 2.0000001], [1, 2.0], 1e-6), same([1], (1,)), same(float("nan"), float("nan"))
    (True, False, True)
    """
    if isinstance(expected, float) and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isnan(expected):
            return math.isnan(value)
        try:
            return value == expected or (
                tolerance > 0 and math.isclose(value, expected, rel_tol=tolerance, abs_tol=tolerance)
            )
        except OverflowError:
            return False
    if isinstance(expected, list | tuple):
        return (
            type(value) is type(expected)
            and len(value) == len(expected)
            and all(same(a, b, tolerance) for a, b in zip(value, expected, strict=True))
        )
    if isinstance(expected, dict):
        return (
            type(value) is dict
            and value.keys() == expected.keys()
            and all(same(value[key], expected[key], tolerance) for key in expected)
        )
    return bool(value == expected)


def _relay(program: Any, message: dict[str, Any], allowed: Sequence[str]) -> dict[str, Any]:
    """Hand a question of the tests to the candidate, and its value back; both sides are checked on the way."""
    name = message["ask"]
    if name not in allowed:
        raise Ended("malformed", f"the tests asked for {name!r}")
    try:
        arguments, named = (exchange.decode(message[part], exchange.Held) for part in ("arguments", "named"))
    except (exchange.Unsendable, KeyError) as error:
        raise Ended("malformed", "the tests sent what cannot cross") from error
    value = program.call_with_objects(name, arguments, named)
    return {"value": exchange.encode(value, exchange.number_of)}


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]
