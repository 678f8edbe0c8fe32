"""Word problems: every question, read back and solved in another way, has the stated answer."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.errors import RecipeError
from curation.word_problems import simple_sum, word_problem
from curation.word_templates import TEMPLATES

Answer = int | Fraction


def search(condition: Callable[[int], bool], until: int = 5000) -> int:
    """The only number from 1 on that meets the condition."""
    found = [x for x in range(until) if condition(x)]
    assert len(found) == 1
    return found[0]


def grow(start: int, percent: int, times: int) -> Fraction:
    return Fraction(start) * (1 + Fraction(percent, 100)) ** times


def dice(one: int, two: int, wanted: int) -> Fraction:
    throws = list(itertools.product(range(1, one + 1), range(1, two + 1)))
    return Fraction(sum(a + b == wanted for a, b in throws), len(throws))


def two_kinds(low: int, high: int, count: int, total: int) -> int:
    return search(lambda x: x <= count and (count - x) * low + x * high == total, count + 1)


def consecutive(count: int, total: int) -> int:
    return search(lambda first: sum(range(first, first + count)) == total, total)


# From the numbers in the question, in their order, to the answer: by search and counting where it can be.
SOLVERS: dict[str, Callable[..., Answer]] = {
    "ages": lambda k, years, total: search(lambda b: (b + years) + (k * b + years) == total),
    "arithmetic_sum": lambda a, d, n: sum(a + d * i for i in range(n)),
    "arithmetic_term": lambda a, b, c, n: list(itertools.islice(itertools.count(a, c - b), n))[-1],
    "box_volume": lambda a, b, c: a * b * c,
    "change": lambda n, p, m, q, note: note - sum([p] * n + [q] * m),
    "clock": lambda h, m, lasts: h * 60 + m + lasts,
    "codes": lambda a, b, m, n: math.prod([a] * m + [b] * n),
    "committee": lambda women, men: sum(1 for _ in itertools.combinations(range(women), 2)) * men,
    "compound_growth": grow,
    "consecutive": consecutive,
    "dice_sum": dice,
    "discount": lambda price, off: Fraction(price * (100 - off), 100),
    "distance": lambda speed, minutes: Fraction(speed * minutes, 60),
    "divisors": lambda n: sum(n % d == 0 for d in range(1, n + 1)),
    "equal_bags": lambda a, b: max(d for d in range(1, a + 1) if a % d == b % d == 0),
    "equation_two_sides": lambda a, b, c, d: search(lambda x: a * x + b == c * x + d),
    "exchange": lambda per, amount, fee: per * amount - fee,
    "filling_tank": lambda full, start, gain, loss: search(lambda t: start + t * (gain - loss) == full),
    "fractions_spent": lambda t, a, b, c, d: t * (1 - Fraction(a, b)) * (1 - Fraction(c, d)),
    "frame": lambda w, h, b: 2 * b * (w + h) + 4 * b * b,
    "geometric_term": lambda a, r, n: a * r**n,
    "give_and_get": lambda a, b, c: a - b + c,
    "handshakes": lambda n, times: times * sum(range(n)),
    "last_digit": lambda base, power: int(str(base**power)[-1]),
    "left_over": lambda a, b: a % b,
    "linear_equation": lambda a, b, c: search(lambda x: a * x + b == c),
    "map_scale": lambda scale, cm: Fraction(scale * cm, 100),
    "marble": lambda a, b, c: Fraction(b, a + b + c),
    "meeting_trains": lambda apart, v, w: search(lambda t: t * v + t * w == apart),
    "metres_per_second": lambda kmh, s: Fraction(kmh * 1000 * s, 3600),
    "missing_score": lambda a, b, c, mean: search(lambda x: a + b + c + x == 4 * mean),
    "mixture": lambda m, low, n, high: Fraction(m * low + n * high, m + n),
    "percent_change": lambda a, b: Fraction(100 * (b - a), a),
    "podium": math.perm,
    "profit": lambda n, cost, bad, price: (n - bad) * (price - cost) - bad * cost,
    "pythagoras": lambda a, b: search(lambda c: c * c == a * a + b * b),
    "rectangle_area": lambda around, w: w * Fraction(around - 2 * w, 2),
    "ringing_bells": lambda a, b: next(t for t in range(a, a * b + 1, a) if t % b == 0),
    "rows_and_rest": lambda n, each, extra: sum([each] * n) + extra,
    "share_ratio": lambda total, a, b, c: Fraction(total * b, a + b + c),
    "simple_interest": lambda capital, rate, years: capital * (1 + Fraction(rate * years, 100)),
    "triangle_area": lambda b, h: Fraction(b * h, 2),
    "two_draws": lambda a, b: Fraction(math.comb(a, 2), math.comb(a + b, 2)),
    "two_kinds": two_kinds,
    "unit_price": lambda n, total, m: Fraction(total, n) * m,
    "work_together": lambda a, b: Fraction(a * b, a + b),
}


def test_every_template_has_an_independent_solution() -> None:
    assert set(SOLVERS) == set(TEMPLATES)
    assert len(TEMPLATES) >= 25


@pytest.mark.parametrize("kind", sorted(TEMPLATES))
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**40), index=st.integers(0, 2**40))
def test_the_answer_is_right(kind: str, seed: int, index: int) -> None:
    problem = word_problem(seed, index, kind)
    numbers = [int(number) for number in re.findall(r"\d+", problem.question)]
    assert Fraction(SOLVERS[kind](*numbers)) == Fraction(problem.answer), problem.question
    assert str(Fraction(problem.answer)) == problem.answer, "in lowest terms"


EQUATION = re.compile(r"([\d(][\d\s+*/()-]*) = (-?\d+(?:/\d+)?(?: [*+] \d+)*)")


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**40))
def test_every_equation_of_a_solution_is_true(seed: int) -> None:
    problem = word_problem(seed, 0)
    equations = [e for step in problem.solution_steps for e in EQUATION.findall(step)]
    assert equations
    for left, right in equations:
        assert evaluate(left) == evaluate(right), (left, right)
    # The chain of steps ends at the answer.
    assert problem.answer in re.findall(r"\d+(?:/\d+)?|-\d+", " ".join(problem.solution_steps[-2:]))


def evaluate(expression: str) -> Fraction:
    """The value of digits, + - * / and parentheses, with fractions."""
    exact = re.sub(r"\d+", r"Fraction(\g<0>)", expression)
    return Fraction(eval(exact, {"Fraction": Fraction}))


def test_the_stream_is_fixed_varied_and_mostly_unique() -> None:
    problems = [word_problem(5, i) for i in range(3000)]
    assert problems[100:140] == [word_problem(5, i) for i in range(100, 140)]
    assert len({p.question for p in problems}) > 0.97 * len(problems)
    kinds = Counter(p.kind for p in problems)
    assert set(kinds) == set(TEMPLATES) and min(kinds.values()) > 25
    assert {p.difficulty for p in problems} == {1, 2, 3}
    assert {p.question for p in problems}.isdisjoint({word_problem(6, i).question for i in range(50)})


def test_a_known_problem_stays_what_it_is() -> None:
    """Guards the stream against silent change: `random.Random` seeded by text is stable across versions."""
    assert word_problem(0, 0).question == KNOWN


KNOWN = (
    "At the garden a coupon buys 15 points. Chioma brings 268 coupons, and 2 points are kept as"
    " a charge. How many points does Chioma get?"
)


def test_text_and_chat() -> None:
    problems = [word_problem(1, i) for i in range(40)]
    for problem in problems:
        text = problem.as_text()
        assert problem.question in text and problem.answer in text.rsplit("nswer", 1)[1]
        assert all(step in text for step in problem.solution_steps)
        chat = problem.as_chat()
        user, assistant = chat["messages"]
        assert user == {"role": "user", "content": problem.question} and chat["prompt"] == problem.question
        thought, reply = assistant["content"].split("</think>")
        assert thought.startswith("<think>\n") and problem.solution_steps[0] in thought
        assert re.findall(r"\\boxed\{(.*?)\}", reply) == [problem.answer] == [chat["answer"]]
    assert len({problem.layout for problem in problems}) == 4


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**40), st.integers(2, 30), st.sampled_from([1, 2]))
def test_simple_sums_are_right(index: int, largest: int, steps: int) -> None:
    problem = simple_sum(3, index, largest, steps)
    (expression,) = re.findall(r"\d[\d +*-]*\d", problem.question) or [""]
    assert eval(expression) == int(problem.answer) >= 0
    assert 1 <= len(problem.solution_steps) <= steps
    assert all(eval(left) == int(right) for left, right in (s.split(" = ") for s in problem.solution_steps))
    assert all(int(number) <= largest for number in re.findall(r"\d+", problem.question))
    assert problem.difficulty == 0


def test_what_cannot_be_made_is_a_sentence() -> None:
    with pytest.raises(RecipeError, match="no kind of word problem `trains`"):
        word_problem(0, 0, "trains")
    with pytest.raises(RecipeError, match="Simple sums need"):
        simple_sum(0, 0, largest=1)
