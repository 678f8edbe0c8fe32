"""Judging samples: their text, the answer that it states, the verdict, and which answers of a problem are equal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from probes.generation_result import GenerationSettings
from training.rewards import Reward, answer_part, extract_answer, named_reward, score
from training.rewards.mathematics import answers_equal
from training.rewards.rules import ChoiceReward
from training.rollout import Ending


class Judge:
    """From a sample's tokens to its text, its stated answer and the verdict."""

    def __init__(
        self, reward_name: str, tokenizer: Any, ending: Ending, settings: GenerationSettings
    ) -> None:
        self.name, self.tokenizer, self.ending, self.settings = reward_name, tokenizer, ending, settings
        self.reward: Reward = named_reward(reward_name)

    def verdict(self, ids: Sequence[int], ended: bool, answer: str, head: str) -> dict[str, Any]:
        text = self.tokenizer.decode(list(ids[:-1] if ended else ids), skip_special_tokens=False)
        places = [at for at in (text.find(stop) for stop in self.settings.stop) if at >= 0]
        text = text[: min(places)] if places else text
        scored = score(self.reward, head + text, answer)
        stated = stated_answer(self.name, text)
        return {"text": text, "tokens": len(ids), "correct": scored.correct, "answer": stated}

    def classify(self, rows: Sequence[dict[str, Any]]) -> None:
        """Number the equal answers of one problem's samples from 0; -1 for none."""
        known: dict[str, int] = {}
        firsts: list[str] = []
        for row in rows:
            answer = row["answer"]
            if answer is None:
                row["answer_class"] = -1
                continue
            if answer not in known:
                found = (at for at, first in enumerate(firsts) if self._equal(first, answer))
                known[answer] = next(found, len(firsts))
                if known[answer] == len(firsts):
                    firsts.append(answer)
            row["answer_class"] = known[answer]

    def _equal(self, one: str, other: str) -> bool:
        if not self.name.startswith("math"):
            return False  # equal texts are found before
        opinion: Callable[[str, str], bool | None] | None = getattr(self.reward, "second_opinion", None)
        return answers_equal(one, other, opinion)

    def close(self) -> None:
        """End the sandbox or the process of math-verify, where there is one."""
        opinion = getattr(getattr(self.reward, "second_opinion", None), "__self__", None)
        for holder in (self.reward, opinion):
            close = getattr(holder, "close", None)
            if close is not None:
                close()


def stated_answer(reward_name: str, text: str) -> str | None:
    """The answer that a text states, as the reward of that name reads it; None when it states none.

    Of programs, and of what is compared whole, only an empty text is none.

    >>> stated_answer("math", "So 3 + 4 = 7"), stated_answer("choice", "It is (B)."), stated_answer("exact", " ")
    ('7', 'B', None)
    """
    part = answer_part(text)
    if reward_name.startswith("math"):
        return extract_answer(part)
    if reward_name == "choice":
        return next((letter for letter in "ABCDEFGHIJ" if ChoiceReward()(text, letter).correct), None)
    if reward_name == "code":
        from training.rewards.code import program_in

        return program_in(text).strip() or None
    return part.strip() or None
