"""Generated mathematics word problems with worked solutions, and very easy sums.

Every problem is a pure function of `(seed, index)`. Numbers are integers and fractions, never floats, so the
answers are exact. The templates are in `curation.word_templates`; all wordings of one kind name their numbers
in the same order, so that a test can read the numbers back from the question and solve it in its own way.
Train and test problems share their templates: held-out loss on them measures the templates, not mathematics
at large.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from curation.errors import RecipeError
from curation.word_templates import TEMPLATES, Worked


@dataclass(frozen=True)
class WordProblem:
    """A problem and its solution.

    question       : the problem, a few sentences
    solution_steps : sentences of the worked solution; each `a = b` in them is true
    answer         : an integer `12` or a fraction in lowest terms `5/6`, without a unit
    kind           : the template, such as `meeting_trains`
    difficulty     : 0 for simple sums, then 1 (one or two steps) to 3
    layout         : which of the plain text layouts `as_text` uses
    """

    question: str
    solution_steps: tuple[str, ...]
    answer: str
    kind: str
    difficulty: int
    layout: int = 0

    def as_text(self) -> str:
        """The problem, its solution and the answer as a plain text document."""
        steps = " ".join(self.solution_steps)
        lines = "\n".join(self.solution_steps)
        numbered = "\n".join(f"{i}. {step}" for i, step in enumerate(self.solution_steps, 1))
        layouts = (
            f"Problem: {self.question}\n\nSolution: {steps}\n\nAnswer: {self.answer}\n",
            f"Question: {self.question}\nStep by step:\n{numbered}\nThe answer is {self.answer}.\n",
            f"{self.question}\n\n{lines}\n\nSo the answer is {self.answer}.\n",
            f"## Exercise\n\n{self.question}\n\n### Solution\n\n{numbered}\n\n**Answer:** {self.answer}\n",
        )
        return layouts[self.layout % len(layouts)]

    def as_chat(self) -> dict[str, Any]:
        """The problem as a chat: `messages` for SFT, `prompt` and `answer` for GRPO.

        The assistant thinks between `<think>` and `</think>` and then gives the answer in `\\boxed{}`.
        """
        thought = "\n".join(self.solution_steps)
        reply = f"<think>\n{thought}\n</think>\nThe answer is \\boxed{{{self.answer}}}."
        messages = [{"role": "user", "content": self.question}, {"role": "assistant", "content": reply}]
        return {"messages": messages, "prompt": self.question, "answer": self.answer}


def word_problem(seed: int, index: int, kind: str | None = None) -> WordProblem:
    """The problem number `index` of the stream `seed`; of a random kind, unless `kind` names one."""
    random = Random(f"word_problem:{seed}:{index}")
    name = random.choice(sorted(TEMPLATES)) if kind is None else kind
    if name not in TEMPLATES:
        raise RecipeError(
            f"There is no kind of word problem `{name}`", remedy=f"Choose of {sorted(TEMPLATES)}"
        )
    template = TEMPLATES[name]
    worked: Worked = template.make(random)
    question = worked.question[0].upper() + worked.question[1:]
    return WordProblem(
        question, worked.steps, str(worked.answer), name, template.difficulty, random.randrange(4)
    )


def simple_sum(seed: int, index: int, largest: int = 20, steps: int = 2) -> WordProblem:
    """A very easy sum, such as `What is 7 + 5?`, for reinforcement learning of a tiny model.

    largest : largest number in the question; products use factors up to half of it
    steps   : 1 for two numbers, 2 for two or three numbers; every value on the way is at least 0
    """
    if largest < 2 or steps not in (1, 2):
        raise RecipeError("Simple sums need `largest` of at least 2 and `steps` of 1 or 2")
    random = Random(f"simple_sum:{seed}:{index}")
    value = random.randint(1, largest)
    expression = str(value)
    worked: list[str] = []
    for _ in range(random.randint(1, steps)):
        # A product only as the first step, so that reading from left to right is right.
        sign = random.choice("+-*" if not worked else "+-")
        if sign == "*":
            value = 1 + value % (largest // 2)
            expression = str(value)
        sign = sign if value else "+"
        other = random.randint(1, {"+": largest, "-": min(value, largest), "*": largest // 2}[sign])
        result = {"+": value + other, "-": value - other, "*": value * other}[sign]
        worked.append(f"{value} {sign} {other} = {result}")
        expression, value = f"{expression} {sign} {other}", result
    question = random.choice(("What is {}?", "Compute {}.", "{} = ?", "Work out {}.")).format(expression)
    return WordProblem(question, tuple(worked), str(value), "simple_sum", 0, random.randrange(4))
