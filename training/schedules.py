"""Learning rates: pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class RatePhase:
    """A stretch of a run with a peak rate, a schedule and a warm-up of its own.

    steps : updates of this phase; the warm-up is among them
    """

    steps: int
    learning_rate: float
    schedule: Schedule
    warmup_steps: int = 0


def phased_rate(phases: Sequence[RatePhase], step: int) -> float:
    """The learning rate of update `step`, from 0, of phases that follow each other.

    MobileLLM-R1's pre-training to a tenth and then its mid-training to zero, at a hundredth of their lengths:

    >>> pre, mid = RatePhase(5000, 4e-3, "linear_to_tenth", 20), RatePhase(500, 3.6e-4, "linear_to_zero")
    >>> [float(f"{phased_rate((pre, mid), s):.3g}") for s in (0, 19, 4999, 5000, 5250, 5499)]
    [0.0002, 0.004, 0.000401, 0.00036, 0.00018, 7.2e-07]
    """
    begun = 0
    for phase in phases:
        if step < begun + phase.steps:
            factor = rate_factor(
                phase.schedule, step - begun, steps=phase.steps, warmup_steps=phase.warmup_steps
            )
            return phase.learning_rate * factor
        begun += phase.steps
    raise RecipeError(
        f"There is no learning rate for step {step}: the phases have {begun} together",
        where="rate_phases",
        remedy="Give them as many steps as the run has",
    )


def check_phases(phases: Sequence[RatePhase], steps: int) -> None:
    """Raise RecipeError for phases that cannot be, or that do not fill a run of `steps` updates."""
    for number, phase in enumerate(phases):
        check_schedule(phase.schedule, steps=phase.steps, warmup_steps=phase.warmup_steps)
        if not (math.isfinite(phase.learning_rate) and phase.learning_rate > 0):
            raise RecipeError(
                f"The learning rate of phase {number} is {phase.learning_rate}",
                where="rate_phases",
                remedy="Give a positive number",
            )
    total = sum(phase.steps for phase in phases)
    if phases and total != steps:
        raise RecipeError(
            f"The phases of the learning rate have {total} steps, and the run {steps}",
            where="rate_phases",
            remedy="Give them as many steps as the run has",
        )


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
