"""The settings of on-policy distillation."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any, Literal

from curation.errors import RecipeError
from training.budgets import RolloutSettings
from training.distillation_settings import Distillation, check_distillation, deciding_distillation
from training.schedules import Schedule, check_schedule
from training.settings import TrainSettings


@dataclass(frozen=True)
class OnPolicySettings:
    """How a student learns from a teacher on its own answers; see Distillation for the distance.

    distillation          : teacher, direction and temperature of the distance (not of the sampling, which has its own
                            in `rollout`); alpha must be 0, since the student's own tokens are no labels
    student_share         : share of the steps that read the student's answers (GKD's lambda); 1 is purely on-policy
    prompts_per_step, replicas : a step reads so many answers to each of so many prompts
    micro_batch_sequences : packed rows of one forward and backward pass; does not change the gradient
    checkpoint_every      : steps between checkpoints, which serve to continue after a kill
    evaluate_every        : steps between evaluations on the held-out prompts; 0 is before and after only
    """

    distillation: Distillation
    student_share: float = 1.0
    steps: int = 100
    prompts_per_step: int = 8
    replicas: int = 4
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    learning_rate: float = 5e-6
    warmup_steps: int = 0
    schedule: Schedule = "constant"
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip: float = 1.0
    micro_batch_sequences: int = 16
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_every: int = 10
    evaluate_every: int = 0
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        where = "on-policy distillation"
        for name in ("prompts_per_step", "replicas", "micro_batch_sequences", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} is {getattr(self, name)}", where=where, remedy="Give at least 1")
        if not 0 < self.student_share <= 1:
            raise RecipeError(
                f"student_share is {self.student_share}",
                where=where,
                remedy="Give a share above 0 and at most 1; with 0, use sft with a teacher",
            )
        check_distillation(where, self.distillation)
        if self.distillation.cache != "none" or self.distillation.alpha:
            raise RecipeError(
                "The student's own answers have no labels to learn and no cache of what the teacher says",
                where=where,
                remedy="Set alpha to 0 and cache to none",
            )
        check_schedule(self.schedule, steps=self.steps, warmup_steps=self.warmup_steps)

    def is_students(self, step: int) -> bool:
        """Whether step number `step`, from 0, reads the student's answers: keyed by the seed.

        >>> settings = OnPolicySettings(Distillation("a-folder"), student_share=0.5)
        >>> [settings.is_students(step) for step in range(6)]
        [False, False, True, True, True, True]
        """
        if self.student_share >= 1:
            return True
        return Random(f"on-policy:{self.seed}:{step}").random() < self.student_share

    def train_settings(self, shape: tuple[int, ...]) -> TrainSettings:
        """The same for training.update, for a batch of this shape [rows, tokens]."""
        return TrainSettings(
            sequence_tokens=shape[1],
            batch_sequences=shape[0],
            steps=self.steps,
            learning_rate=self.learning_rate,
            warmup_steps=self.warmup_steps,
            schedule=self.schedule,
            clip=self.clip,
            precision=self.precision,
            micro_batch_sequences=self.micro_batch_sequences,
        )

    def deciding(self) -> dict[str, Any]:
        """The settings that decide what a run leaves behind; the teacher by its weights, not its place."""
        kept = {
            key: value for key, value in asdict(self).items() if key not in ("checkpoint_every", "device")
        }
        return kept | {"distillation": deciding_distillation(self.distillation)}
