"""The reward for code: does the program that stands in the answer pass its tests, in the sandbox?"""

from __future__ import annotations

import ast
import builtins
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from curation.errors import DataError
from training.rewards.answers import answer_part
from training.rewards.sandbox import Limits, Sandbox, Verdict, check_calls, check_program, check_tests
from training.rewards.scored import Scored

_BLOCK = re.compile(r"```[ \t]*(?:python|py|python3)?[ \t]*\r?\n(.*?)```", re.DOTALL | re.IGNORECASE)
_REMEDY = (
    'Write {"function": name, "calls": [[arguments, value], ...]}, {"io": [[input, output], ...]} or '
    '{"tests": code, "functions": [names]} or {"tests": code, "check": name}'
)


def program_in(completion: str) -> str:
    """The last fenced block of the answer part, or the whole part if it has none.

    >>> program_in("Let us see.</think>So:\\n```python\\nx = 1\\n```\\nDone.")
    'x = 1\\n'
    """
    part = answer_part(completion)
    blocks = _BLOCK.findall(part)
    return blocks[-1] if blocks else part


@dataclass
class CodeReward:
    """`right` if the program passes all tests, else `wrong`; the share of passed cases is a part of the record.

    The reference answer is JSON (see `run_tests`). A program that does not end, asks for too much or attacks its
    judge is wrong. The sandbox starts with the first program; a MachineError tells what the machine lacks for it,
    unless `allow_weak`. The reward of one text is the same every time, but for programs at the edge of a limit.
    """

    right: float = 1.0
    wrong: float = 0.0
    limits: Limits = field(default_factory=Limits)
    allow_weak: bool = False

    def __post_init__(self) -> None:
        self._sandboxes: list[Sandbox] = []

    def __call__(self, completion: str, answer: str) -> Scored:
        verdict = run_tests(self._sandbox, program_in(completion), answer)
        share = verdict.passed / verdict.total if verdict.total else 0.0
        reward = self.right if verdict.correct else self.wrong
        return Scored(reward, verdict.correct, {"answer": reward, "passed": share})

    def close(self) -> None:
        """End the sandboxes; the next program starts others."""
        while self._sandboxes:
            self._sandboxes.pop().close()

    def _sandbox(self, number: int) -> Sandbox:
        while len(self._sandboxes) <= number:
            self._sandboxes.append(Sandbox(self.limits, allow_weak=self.allow_weak))
        return self._sandboxes[number]


def run_tests(sandbox: Callable[[int], Sandbox], program: str, answer: str) -> Verdict:
    """Judge `program` by the tests in `answer`, which is one of these, as JSON:

    {"function": "f", "calls": [[[1, 2], 3], ...], "tolerance"?: 1e-6}   values of f for arguments
    {"io": [["4\\n", "8\\n"], ...]}                                      output for input, one run each
    {"tests": "assert f(1) == 2", "functions": ["f"]}                    asserts (MBPP)
    {"tests": "def check(candidate): ...", "check": "f"}                 a function of the tests (HumanEval), which
                                                                         may need other "functions" of the program

    sandbox : sandbox(0) for the program, sandbox(1) for test code. Tuples in calls are written as JSON lists and
    compare equal to tuples that the program returns. Raises DataError for an answer of no such form.
    """
    tests = _tests_of(answer)
    if "calls" in tests:
        cases = [(arguments, value) for arguments, value in tests["calls"]]
        return check_calls(
            sandbox(0),
            _with_lists(program, tests["function"]),
            "_mixwright_call",
            cases,
            tolerance=float(tests.get("tolerance", 0.0)),
        )
    if "io" in tests:
        return check_program(
            sandbox(0), program, [(str(given), str(wanted)) for given, wanted in tests["io"]]
        )
    return check_tests(
        sandbox(0), sandbox(1), program, tests["tests"], tests.get("functions", []), tests.get("check")
    )


def functions_called(tests: str) -> list[str]:
    """Names that test code calls without defining them: those that the candidate must bring.

    Names of Python's own functions count only where the tests call nothing else: then the candidate's function
    has such a name (MBPP's task 126 asks for a `sum`), and it is the outermost call of an assertion.

    >>> functions_called("assert add(1, len([2])) == 3"), functions_called("assert sum(4, 6) == 3")
    (['add'], ['sum'])
    """
    tree = ast.parse(tests)
    nodes = list(ast.walk(tree))
    defined = {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    defined |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    defined |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    called = set(_calls(nodes)) - defined
    own = called - vars(builtins).keys()
    outermost = {name for n in tree.body if isinstance(n, ast.Assert) for name in _calls(ast.walk(n))[:1]}
    return sorted(own or called & outermost)


def _calls(nodes: Iterable[ast.AST]) -> list[str]:
    return [n.func.id for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]


def _with_lists(program: str, function: str) -> str:
    """The program and a wrapper that gives JSON's idea of a value: tuples as lists, keys of dicts as strings."""
    # A plain name, or a method of a class that is made without arguments: "Solution().solve".
    if not all(part.removesuffix("()").isidentifier() for part in function.split(".")):
        raise DataError(f"{function!r} is no name of a function", where="answer", remedy=_REMEDY)
    return program + _WRAPPER.replace("FUNCTION", function)


_WRAPPER = """

def _mixwright_call(*arguments):
    def plain(value):
        if type(value) in (list, tuple):
            return [plain(item) for item in value]
        if type(value) is dict:
            return {k if type(k) is str else str(k): plain(v) for k, v in value.items()}
        return value
    return plain(FUNCTION(*arguments))
"""


def _tests_of(answer: str) -> dict[str, Any]:
    try:
        tests = json.loads(answer)
        if "calls" in tests:
            good = isinstance(tests["function"], str) and all(
                isinstance(arguments, list) for arguments, _ in tests["calls"]
            )
        elif "io" in tests:
            good = all(len(case) == 2 for case in tests["io"])
        else:
            good = isinstance(tests["tests"], str) and bool(tests.get("functions") or tests.get("check"))
    except (ValueError, TypeError, KeyError, RecursionError):
        good = False
    if not good:
        raise DataError(
            f"The tests of a program cannot be read: {answer[:80]!r}", where="answer", remedy=_REMEDY
        )
    return dict(tests)
