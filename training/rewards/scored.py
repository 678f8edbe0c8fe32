"""What a reward gives, and the promise that it must keep."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from curation.errors import DataError


@dataclass(frozen=True)
class Scored:
    """What a rollout earns: the reward, whether its answer is right (the outcome that decides solve rates,
    groups and GRPO-LEAD), and the parts that the reward was made of."""

    reward: float
    correct: bool
    parts: dict[str, float] = field(default_factory=dict)


Reward = Callable[[str, str], "Scored | float"]


def score(reward: Reward, completion: str, answer: str, where: str = "") -> Scored:
    """Call a reward and hold it to its promise; a plain number counts as correct when it is above 0.

    DataError if it raises or returns what is not a finite number: one rollout's broken reward, taken as 0,
    would train the model on noise unseen.
    """
    try:
        result = reward(completion, answer)
        scored = result if isinstance(result, Scored) else Scored(float(result), float(result) > 0)
    except Exception as error:
        raise DataError(
            f"The reward function failed with {type(error).__name__}: {error}",
            where=where,
            remedy="Mend it; it must return a number for every text a model may write",
        ) from error
    if not math.isfinite(scored.reward):
        raise DataError(
            f"The reward function returned {scored.reward}, which is not a finite number",
            where=where,
            remedy="Mend it; it must return a finite number for every text a model may write",
        )
    return scored
