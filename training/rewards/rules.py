"""The rewards that training knows by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass

from curation.errors import RecipeError
from training.rewards.answers import answer_part, extract_answer
from training.rewards.mathematics import SecondOpinion, answers_equal
from training.rewards.scored import Reward, Scored
from training.rewards.second_opinion import MathVerify, available


@dataclass(frozen=True)
class MathReward:
    """right - wrong, by the answer that stands after the thought; an unparseable or missing answer is wrong.

    reward = right if the extracted answer equals the reference, else wrong  (binary, as in arXiv 2402.03300
    and the 0.5B studies, where it beats tiered rewards), plus format_weight if the thought is well formed.

    >>> MathReward()("<think>1 + 1</think>The answer is \\\\boxed{2}.", "2").reward
    1.0
    >>> MathReward(wrong=-1.0)("<think>It is 2, is it not?", "2").reward
    -1.0
    """

    right: float = 1.0
    wrong: float = 0.0
    format_weight: float = 0.0
    last_number: bool = True
    second_opinion: SecondOpinion | None = None

    def __call__(self, completion: str, answer: str) -> Scored:
        stated = extract_answer(answer_part(completion), last_number=self.last_number)
        correct = stated is not None and answers_equal(answer, stated, self.second_opinion)
        outcome = self.right if correct else self.wrong
        form = float(FormatReward()(completion, answer).reward) if self.format_weight else 0.0
        parts = {"answer": outcome} | ({"format": self.format_weight * form} if self.format_weight else {})
        return Scored(outcome + self.format_weight * form, correct, parts)


_THOUGHT = re.compile(r"(?:<think>)?(?P<thought>.*?)</think>(?P<answer>.*)", re.DOTALL)


@dataclass(frozen=True)
class FormatReward:
    """1 if the completion is one thought and then an answer, "<think>...</think>...", else 0 (DeepSeek-R1,
    arXiv 2501.12948). The opening may have been part of the prompt.

    >>> texts = ("<think>hm</think>4", "hm</think>4", "4", "<think>hm</think>")
    >>> [FormatReward()(text, "").reward for text in texts]
    [1.0, 1.0, 0.0, 0.0]
    """

    def __call__(self, completion: str, answer: str) -> Scored:
        match = _THOUGHT.fullmatch(completion.strip())
        good = bool(
            match
            and match["thought"].strip()
            and match["answer"].strip()
            and "<think>" not in match["thought"] + match["answer"]
            and "</think>" not in match["answer"]
        )
        return Scored(float(good), good, {"format": float(good)})


_CHOICE = re.compile(r"\(?\b([A-J])\b\)?")


@dataclass(frozen=True)
class ChoiceReward:
    """1 if the chosen letter is the reference's, else 0; the letter is boxed, stated, or the last that stands
    alone.

    >>> ChoiceReward()("Hence the answer is (C).", "C").reward, ChoiceReward()("A, B or C", "A").reward
    (1.0, 0.0)
    """

    def __call__(self, completion: str, answer: str) -> Scored:
        part = answer_part(completion)
        stated = extract_answer(part, last_number=False)
        letters = _CHOICE.findall(stated or "") or _CHOICE.findall(part)[-1:]
        correct = bool(letters) and letters[0] == answer.strip().strip("()").upper()
        return Scored(float(correct), correct, {"answer": float(correct)})


@dataclass(frozen=True)
class ExactReward:
    """1 if what stands after the thought is the reference, but for white space at the ends; else 0.

    >>> ExactReward()("<think>..</think> 42 ", "42").reward
    1.0
    """

    def __call__(self, completion: str, answer: str) -> Scored:
        correct = answer_part(completion).strip() == answer.strip()
        return Scored(float(correct), correct, {"answer": float(correct)})


def _mathematics_with_second_opinion() -> Reward:
    if not available():
        raise RecipeError(
            "The reward math-verify needs the package math-verify",
            where="reward",
            remedy="Install it, or choose the reward math, which checks exact numbers without it",
        )
    return MathReward(second_opinion=MathVerify().equal)


def _code() -> Reward:
    from training.rewards.code import CodeReward

    return CodeReward()


REWARDS: dict[str, Callable[[], Reward]] = {
    "math": MathReward,
    "math-verify": _mathematics_with_second_opinion,
    "math+format": lambda: MathReward(format_weight=0.1),
    "format": FormatReward,
    "choice": ChoiceReward,
    "exact": ExactReward,
    "code": _code,
}


def named_reward(name: str) -> Reward:
    """The reward of that name; RecipeError names the ones there are."""
    if name not in REWARDS:
        raise RecipeError(
            f"There is no reward {name!r}",
            where="reward",
            remedy=f"Choose one of {', '.join(sorted(REWARDS))}",
        )
    return REWARDS[name]()


def describe_reward(reward: Reward) -> str:
    """What tells two rewards apart in a run's settings: the name, and the plain values of a dataclass.

    >>> describe_reward(FormatReward()), describe_reward(named_reward)
    ('FormatReward()', 'named_reward')
    """
    if not is_dataclass(reward):
        return getattr(reward, "__qualname__", type(reward).__qualname__)
    values = {f.name: getattr(reward, f.name) for f in fields(reward)}
    told = ", ".join(f"{name}={value!r}" for name, value in values.items() if not callable(value))
    return f"{type(reward).__qualname__}({told})"
