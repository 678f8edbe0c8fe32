"""The verifiers: all reference solutions of a benchmark accepted, all of a perturbed copy rejected."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from probes.task_programs import program_tests
from probes.tasks import load_task
from training.rewards import MathReward, MathVerify, named_reward, score

CORPORA = Path(os.environ.get("MIXWRIGHT_CORPORA", Path(__file__).parents[3] / "shared" / "corpora"))


def test_gsm8k_solutions_and_perturbed_copies() -> None:
    file = CORPORA / "gsm8k_train.jsonl.gz"
    if not file.exists():
        pytest.skip(f"the corpora are not there: {file}")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    reward = named_reward("math")
    assert len(rows) > 7000
    for row in rows[::5]:
        solution, answer = row["text"][row["completion_start"] :], row["answer"]
        steps, _, stated = solution.rpartition("The answer is ")
        assert stated.strip().strip(".") == answer
        number = float(answer.replace(",", ""))
        assert score(reward, solution, answer).correct
        assert score(reward, f"{steps}\\boxed{{{answer}}}", answer).correct
        assert score(reward, f"{steps}\n#### {answer}", answer).correct
        for wrong in (number + 1, -number - 1, number * 10 + 3, number + 0.5):
            assert not score(reward, f"{steps}The answer is {wrong}.", answer).correct
        assert not score(reward, f"{solution} No: \\boxed{{{answer}7}}", answer).correct
        assert not score(reward, "", answer).correct


# Answers in the forms of MATH's keys, each with one that means the same and one that does not.
MATH = [
    (r"\frac{1}{2}", "0.5", r"\frac{1}{3}"),
    (r"\dfrac{14}{3}", r"\frac{14}{3}", r"\frac{3}{14}"),
    (r"3\sqrt{13}", r"\sqrt{117}", r"13\sqrt{3}"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \frac{\pi}{2})", r"(3, \frac{\pi}{3})"),
    (r"p - q", r"-q + p", r"q - p"),
    (r"x^2 + 2x + 1", r"(x+1)^2", r"(x-1)^2"),
    (r"10\%", r"10\%", r"11\%"),
    (r"[-2, 7)", r"[-2,7)", r"(-2, 7)"),
    (r"1,000", "1000", "100"),
    (r"-\frac{35}{9}", r"-35/9", r"35/9"),
    (
        r"\begin{pmatrix} 1 \\ -2 \end{pmatrix}",
        r"\begin{pmatrix}1\\-2\end{pmatrix}",
        r"\begin{pmatrix}1\\2\end{pmatrix}",
    ),
    (r"2^{10}", "1024", "1023"),
    (r"\text{Evelyn}", "evelyn", r"\text{Eve}"),  # words, labels, times
    (r"\text{(C)}", "C", r"\text{(B)}"),
    (r"\mbox{June 20}", r"\text{June 20}.", "20"),
    (r"\text{A,D}", "A, D", "A"),
    (r"\text{1:03 PM}", r"1:03\text{ p.m.}", "1:03"),
    (r"\text{VW}", "VW", "vw"),
    ("2112_6", "2112_{6}", "2112_7"),  # the second opinion does not see bases
    ("11010_{2}", "011010_2", "26"),
    ("40_9", "40", "41"),
    (r"\frac \pi4 + 2 - \sqrt2", r"2 - \sqrt{2} + \frac{\pi}{4}", r"\frac \pi5 + 2 - \sqrt2"),
    (r"\frac{\sqrt{2}}3", r"\frac{1}{3}\sqrt2", r"\frac{\sqrt{2}}4"),
]
HOSTILE = [
    "\\boxed{" * 3000, "{" * 5000, "\\frac{1}{" * 800 + "2" + "}" * 800, "9" * 20000, "2^{9^{9^{9^{9}}}}",
    "\\input{/etc/passwd}", "__import__('os').system('true')", "1/0", "\\sum_{n=1}^{10^{12}} n", "\x00\u202e7",
    "\\left(" * 500,
]  # fmt: skip


def test_mathematical_answers_and_perturbed_copies() -> None:
    # More time than the reward's own two seconds: a crowded machine is no wrong answer.
    reward = MathReward(second_opinion=MathVerify(seconds=60.0).equal)
    try:
        for key, same, other in MATH:
            for text in (key, same):
                assert score(reward, f"Therefore it is $\\boxed{{{text}}}$.", key).correct, (key, text)
            assert not score(reward, f"Therefore it is $\\boxed{{{other}}}$.", key).correct, (key, other)
            assert not score(reward, "I do not know.", key).correct
    finally:
        reward.second_opinion.__self__.close()  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["math", "math-verify"])
def test_hostile_answers_are_wrong_and_end(name: str) -> None:
    reward = named_reward(name)
    try:
        for text in HOSTILE:
            assert not score(reward, f"$\\boxed{{{text}}}$", "13").correct, text[:40]
        assert score(reward, r"$\boxed{13}$", "13").correct  # it still judges
    finally:
        if name == "math-verify":
            reward.second_opinion.__self__.close()  # type: ignore[attr-defined]


PROGRAMS = [  # a row, its solution, a change that breaks it
    (
        "humaneval",
        {
            "prompt": "def below(numbers, limit):\n    \"\"\"Whether all are below.\"\"\"\n", "entry_point": "below",
            "test": "def check(candidate):\n    assert candidate([1, 2], 3)\n    assert not candidate([1, 3], 3)\n",
        },
        "    return all(n < limit for n in numbers)\n", ("<", "<="),
    ),
    (
        "humaneval",
        {
            "prompt": "import math\n\n\ndef area(r):\n", "entry_point": "area",
            "test": "def check(candidate):\n    assert abs(candidate(3) - 28.274333882) < 1e-6\n",
        },
        "    return math.pi * r ** 2\n", ("**", "*"),
    ),
    (
        "mbpp",
        {
            "text": "", "code": "", "test_setup_code": "limit = 4",
            "test_list": ["assert shared((3, 4), (4, 5)) == (limit,)", "assert shared((1,), (2,)) == ()"],
        },
        "def shared(a, b):\n    return tuple(sorted(set(a) & set(b)))\n", ("&", "|"),
    ),
    (
        "livecodebench",
        {"public_test_cases": '[{"input": "2 3\\n", "output": "5\\n", "testtype": "stdin"}, '
                              '{"input": "-1 1", "output": "0", "testtype": "stdin"}]'},
        "a, b = map(int, input().split())\nprint(a + b)\n", ("a + b", "a - b"),
    ),
]  # fmt: skip


def test_reference_programs_and_perturbed_copies() -> None:
    reward = named_reward("code")
    try:
        for name, row, solution, (old, new) in PROGRAMS:
            task = load_task(name)
            tests = program_tests(task, row, "row")
            head = row.get("prompt", "") if task.generation.head else ""
            assert old in solution
            assert score(reward, head + solution, tests).correct, (name, solution)
            assert not score(reward, head + solution.replace(old, new), tests).correct, (name, solution)
            assert not score(reward, head, tests).correct
    finally:
        reward.close()  # type: ignore[attr-defined]
