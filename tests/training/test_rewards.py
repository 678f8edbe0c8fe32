"""Answer checking: exact, bounded in time, and proof against the answers that a policy learns to write."""

import doctest
import subprocess
import sys
import time

import pytest

import training.rewards.answers
import training.rewards.mathematics
import training.rewards.rational
import training.rewards.rules
from curation.errors import DataError, RecipeError
from training.rewards import (
    MathReward,
    MathVerify,
    answers_equal,
    extract_answer,
    named_reward,
    score,
)
from training.rewards.second_opinion import available


@pytest.mark.parametrize("module", ["answers", "mathematics", "rational", "rules"])
def test_examples_in_docstrings(module):
    result = doctest.testmod(getattr(training.rewards, module))
    assert result.attempted and not result.failed


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("1/2", "0.5"), ("0.5", "50%"), ("50", "50\\%"), ("5", "x=5"), ("1000", "1{,}000"),
        ("1234567", "1,234,567"),
        ("10000000000", "10^{10}"), ("3/4", "\\dfrac34"), ("3/2", "1\\frac{1}{2}"), ("-3", "−3"),
        ("18", "$18"),
        ("18", "18 dollars"), ("18", "\\$18.00"), ("5", "5\\text{ apples}"), ("4", "\\sqrt{16}"),
        ("6", "2(3)"),
        ("0.001", "1e-3"), ("-8", "-2^3"), ("12", "12."), ("7/3", "\\left(\\frac{14}{6}\\right)"),
        ("90", "90^\\circ"),
        ("2.5", "2 1/2"), ("120", "5!"), ("1/8", "2^{-3}"),
    ],
)  # fmt: skip
def test_equal_numbers(reference, answer):
    assert answers_equal(reference, answer)


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("1/2004!", "1/2006!"), ("1/2^{99}", "1/2^{98}"),
        ("\\frac{2^{2005}+1}{3*2^{2006}}", "\\frac{1}{3*2^{2006}}"),
        ("1/3", "0.333333"), ("5", "50%"), ("3", "3 or 4"), ("12", "1,2"), ("1", ""), ("1", "."),
        ("", ""), ("", "1"),
        ("100", "1"), ("2", "1+2"), ("12", "1 2"), ("3", "3/0"), ("5", "-5"), ("1000", "1,00"),
    ],
)  # fmt: skip
def test_unequal_numbers(reference, answer):
    assert not answers_equal(reference, answer)


@pytest.mark.parametrize(
    "bomb",
    ["9^9^9^9", "(" * 200 + "1" + ")" * 200, "(10^1000)!", "9" * 5000, "-" * 390 + "1", "2^" * 190 + "2",
     "1e9999", "\\frac" * 70, "!" * 300, "3" + "!" * 300, "1/" * 190 + "1", "\\sqrt{" * 60, "{" * 399],
)  # fmt: skip
def test_no_answer_makes_the_exact_check_hang_or_raise(bomb):
    started = time.process_time()
    assert not answers_equal("17", bomb)
    extract_answer(bomb * 100)
    assert time.process_time() - started < 0.5


def test_integers_are_checked_quickly():
    started = time.process_time()
    for n in range(300):
        MathReward()(f"so <think>a</think> the answer is \\boxed{{{n}}}", str(n))
    assert (time.process_time() - started) / 300 < 1e-3  # 0.3 ms is the aim on an idle machine


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{1} then \\boxed{\\frac{1}{2}} end", "\\frac{1}{2}"),
        ("\\boxed{3} and \\boxed{unclosed", "3"),
        ("She has 5 + 3 = <<5+3=8>>8.\n#### 8", "8"),
        ("the answer is 4. No: the answer is 1,250.", "1,250"),
        ("Answer: $12.50", "$12.50"),
        ("we get 3, 4 and finally 5.", "5"),
        ("the final answer is:\n", None),
        ("", None),
    ],
)
def test_extraction(text, answer):
    assert extract_answer(text) == answer


def test_a_thought_is_not_an_answer():
    reward = MathReward()
    assert not reward("<think>The answer is 4", "4").correct
    assert not reward("<think>The answer is 4</think>", "4").correct
    assert reward("<think>The answer is 5</think>The answer is 4", "4").correct
    assert not reward("<think>x</think>4</think>5", "4").correct


def test_a_reward_that_breaks_its_promise_is_named():
    def raises(completion, answer):
        raise ZeroDivisionError("oh")

    with pytest.raises(DataError, match="failed with ZeroDivisionError"):
        score(raises, "a", "b", "prompt 3, replica 1")
    with pytest.raises(DataError, match="nan"):
        score(lambda c, a: float("nan"), "a", "b")
    assert score(lambda c, a: 1, "a", "b").correct and not score(lambda c, a: 0.0, "a", "b").correct
    with pytest.raises(RecipeError, match="math"):
        named_reward("maths")


@pytest.mark.skipif(not available(), reason="math-verify is not installed")
def test_second_opinion_is_killable_and_its_known_mistakes_are_rejected():
    verify = MathVerify(seconds=5.0)
    try:
        assert answers_equal("2\\sqrt{2}", "\\sqrt{8}", verify.equal)
        assert answers_equal("\\{1,2\\}", "\\{2,1\\}", verify.equal)
        assert not answers_equal("2\\sqrt{2}", "\\sqrt{7}", verify.equal)
        # accepted by math-verify 0.9.0 (its issue 14)
        assert not answers_equal("1-1/\\mathrm{e}", "1+1/\\mathrm{e}", verify.equal)
        assert not answers_equal("1,2,\\ldots,n", "1,3,5,\\ldots,2n-1", verify.equal)
        assert not answers_equal("1:2:3:\\dots", "1:4:9:\\dots", verify.equal)
        verify.seconds = 0.5
        started = time.monotonic()
        assert not answers_equal("x", "9^{9^{9^{9}}}+x", verify.equal)
        assert time.monotonic() - started < 10
        assert verify.timeouts <= 1
        verify.seconds = 30.0
        assert answers_equal(
            "\\sqrt{8}", "2\\sqrt{2}", verify.equal
        )  # a fresh worker, if the last was killed
    finally:
        verify.close()


@pytest.mark.skipif(not available(), reason="math-verify is not installed")
def test_a_script_without_a_main_guard_can_ask_for_the_second_opinion(tmp_path):
    script = tmp_path / "three_lines.py"
    script.write_text(
        "from training.rewards import named_reward\n"
        "reward = named_reward('math-verify')\n"
        "print(reward('\\\\boxed{\\\\sqrt{8}}', '2\\\\sqrt{2}').correct)\n"
    )
    told = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert told.stdout == "True\n"
