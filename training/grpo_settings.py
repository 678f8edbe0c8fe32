"""The settings of GRPO: how to sample and train, and what is maximised."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from curation.errors import RecipeError
from training.advantages import Deviation, GroupFilter, LeadSettings, Scale
from training.budgets import RolloutSettings
from training.grpo_loss import Denominator, Normalisation
from training.schedules import Schedule, check_schedule
from training.surrogates import RatioLevel, Surrogate, SurrogateName

NEWER_OBJECTIVES = (
    "surrogate",
    "ratio",
    "ratio_cap",
    "sapo_temperatures",
    "vespo_positive",
    "vespo_negative",
)


@dataclass(frozen=True)
class ObjectiveSettings:
    """What is maximised; every choice that the papers leave open or differ in. See advantages and grpo_loss.

    baseline, scale, deviation : advantages ("mean" without a deviation is Dr. GRPO's and LFM's)
    lead                  : GRPO-LEAD's length reward (which takes the place of the reward) and reweighting
    normalisation, denominator, batch_rollouts : denominators of the loss
    clip_low, clip_high   : matter only with more than one update per step
    surrogate, ratio, ratio_cap : what a token contributes to the loss, of training.surrogates; its defaults are
                            PPO's clip of each token's ratio; "sequence" makes it GSPO's
    sapo_temperatures, vespo_positive, vespo_negative : constants of those, advantages above 0 first
    kl_coefficient        : of the divergence to the starting model; 0 does without that model
    overlong_filter       : rollouts cut at their limit stay out of the loss (DAPO)
    overlong_in_baseline  : but their rewards, rightness and lengths count in the group's statistics (DAPO,
    TRL)
    soft_overlong_cache   : tokens before the limit over which DAPO's soft punishment grows; None is without
    group_filter          : groups that train, decided on the binary outcome
    train_forced_tokens   : put forced tokens into the loss, as Elastic Reasoning's code does
    """

    baseline: Literal["mean", "rloo"] = "mean"
    scale: Scale = "none"
    deviation: Deviation = "sample"
    lead: LeadSettings | None = None
    normalisation: Normalisation = "dr_grpo"
    denominator: Denominator = "kept"
    batch_rollouts: int | None = None
    clip_low: float | None = 0.2
    clip_high: float | None = 0.28
    kl_coefficient: float = 0.0
    overlong_filter: bool = True
    overlong_in_baseline: bool = True
    soft_overlong_cache: int | None = None
    group_filter: GroupFilter = "mixed"
    train_forced_tokens: bool = False
    surrogate: SurrogateName = "clip"
    ratio: RatioLevel = "token"
    ratio_cap: float | None = None
    sapo_temperatures: tuple[float, float] = (1.0, 1.05)
    vespo_positive: tuple[float, float] = (2.0, 3.0)
    vespo_negative: tuple[float, float] = (3.0, 2.0)

    @property
    def chosen_surrogate(self) -> Surrogate:
        """The surrogate as training.grpo_loss takes it."""
        return Surrogate(
            self.surrogate,
            self.ratio,
            self.clip_low,
            self.clip_high,
            self.ratio_cap,
            *self.sapo_temperatures,
            vespo_positive=tuple(self.vespo_positive),  # type: ignore[arg-type]
            vespo_negative=tuple(self.vespo_negative),  # type: ignore[arg-type]
        )

    def __post_init__(self) -> None:
        self.chosen_surrogate  # noqa: B018 - refuses what cannot be
        if self.baseline == "rloo" and self.scale != "none":
            raise RecipeError(
                "The baseline rloo is not divided by a deviation",
                where="objective.scale",
                remedy='Use scale "none", or the baseline "mean"',
            )


@dataclass(frozen=True)
class GrpoSettings:
    """How to train; see RolloutSettings for lengths and budgets and ObjectiveSettings for what is maximised.

    replicas             : G, answers to each prompt
    updates              : updates on the rollouts of one step; 1 is exactly on-policy, more need the clips
    micro_batch_rollouts : rollouts of one forward and backward pass; does not change the gradient
    checkpoint_every     : steps between checkpoints, which serve to continue after a kill
    evaluate_every       : steps between evaluations on the held-out prompts; 0 is before and after only
    device               : "cpu", "cuda", or "auto" for the GPU where there is one
    """

    steps: int = 100
    prompts_per_step: int = 8
    replicas: int = 8
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    updates: int = 1
    learning_rate: float = 5e-6
    warmup_steps: int = 0
    schedule: Schedule = "constant"
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip: float = 1.0
    micro_batch_rollouts: int = 16
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_every: int = 10
    evaluate_every: int = 0
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("prompts_per_step", "updates", "micro_batch_rollouts", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} is {getattr(self, name)}", where="grpo", remedy="Give at least 1")
        if self.replicas < 2:
            raise RecipeError(
                "A group of one rollout has no baseline, so it can teach nothing",
                where="grpo.replicas",
                remedy="Give at least 2, better 8",
            )
        if self.rollout.temperature == 0:
            raise RecipeError(
                "Greedy rollouts of a prompt are all the same",
                where="grpo.rollout.temperature",
                remedy="Give a temperature above 0, usually 1",
            )
        check_schedule(self.schedule, steps=self.steps, warmup_steps=self.warmup_steps)

    def deciding(self) -> dict[str, Any]:
        """The settings that decide what a run leaves behind; how often it can be interrupted does not."""
        deciding = {key: value for key, value in asdict(self).items() if key != "checkpoint_every"}
        plain = asdict(ObjectiveSettings())
        # Left out where they are the defaults, so that folders from before there was a choice can be continued.
        deciding["objective"] = {
            key: value
            for key, value in deciding["objective"].items()
            if key not in NEWER_OBJECTIVES or value != plain[key]
        }
        if self.rollout.engine == "own":
            del deciding["rollout"]["engine"]
        return deciding
