"""Rewards: from the text of a rollout and its reference answer to numbers. Each is a short callable.

A reward is called as `reward(completion, answer)` with the completion's text (special tokens written out,
the end token left out) and the reference answer, and returns a `Scored` or a plain number. Exact answers are
checked in `training.rewards.rational`, everything else by a second opinion in a killable process.
"""

from training.rewards.answers import answer_part, extract_answer, last_boxed
from training.rewards.mathematics import answers_equal
from training.rewards.rational import exact_value
from training.rewards.rules import (
    REWARDS,
    ChoiceReward,
    FormatReward,
    MathReward,
    describe_reward,
    named_reward,
)
from training.rewards.scored import Reward, Scored, score
from training.rewards.second_opinion import MathVerify

__all__ = [
    "REWARDS",
    "ChoiceReward",
    "FormatReward",
    "MathReward",
    "MathVerify",
    "Reward",
    "Scored",
    "answer_part",
    "answers_equal",
    "describe_reward",
    "exact_value",
    "extract_answer",
    "last_boxed",
    "named_reward",
    "score",
]
