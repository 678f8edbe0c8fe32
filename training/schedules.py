"""Learning rates: pure functions of the step."""

from __future__ import annotations

import math
from typing import Literal, get_args

from curation.errors import RecipeError

Schedule = Literal["linear_to_tenth", "linear_to_zero", "cosine", "constant", "wsd"]
SCHEDULES: tuple[str, ...] = get_args(Schedule)
WSD_DECAY = 0.2  # the part of a "wsd" run in which the rate falls


def rate_factor(schedule: Schedule, step: int, *, steps: int, warmup_steps: int) -> float:
    """The share of the peak learning rate that update number `step`, from 0, of `steps` is made with.

    During the warm-up it rises linearly and reaches 1 at update warmup_steps - 1. Then, for the part p
    in [0, 1) of the remaining updates that are done:

    linear_to_tenth : 1 - 0.9 p                  MobileLLM-R1's pre-training (arXiv 2509.24945, table 2)
    linear_to_zero  : 1 - p                      its mid-training and fine-tuning
    cosine          : 0.1 + 0.45 (1 + cos pi p)  its released pre-training script
    constant        : 1
    wsd             : 1, and over the last fifth of the run 1 - sqrt(q), q in [0, 1) the part of that fifth
                      that is done (Hägele et al., arXiv 2405.18392)

    No update is made with rate 0. Raises RecipeError for an unknown schedule or a warm-up that is not shorter
    than the run.

    >>> [round(rate_factor("linear_to_tenth", s, steps=6, warmup_steps=2), 3) for s in range(6)]
    [0.5, 1.0, 1.0, 0.775, 0.55, 0.325]
    """
    check_schedule(schedule, steps=steps, warmup_steps=warmup_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    part = (step - warmup_steps) / (steps - warmup_steps)
    match schedule:
        case "linear_to_tenth":
            return 1 - 0.9 * part
        case "linear_to_zero":
            return 1 - part
        case "cosine":
            return 0.1 + 0.45 * (1 + math.cos(math.pi * part))
        case "constant":
            return 1.0
        case "wsd":
            falling = max(1, round(WSD_DECAY * steps))
            begun = step - (steps - falling)
            return 1.0 if begun <= 0 else 1 - math.sqrt(begun / falling)


def check_schedule(schedule: str, *, steps: int, warmup_steps: int) -> None:
    """Raise RecipeError for a schedule that does not exist, or a warm-up that does not fit into the run."""
    if schedule not in SCHEDULES:
        raise RecipeError(
            f"There is no learning-rate schedule {schedule!r}",
            where="schedule",
            remedy=f"Choose one of {', '.join(SCHEDULES)}",
        )
    if steps < 1 or not 0 <= warmup_steps < steps:
        raise RecipeError(
            f"A warm-up of {warmup_steps} steps does not fit into a run of {steps}",
            where="warmup_steps",
            remedy="Make the run longer or the warm-up shorter",
        )
