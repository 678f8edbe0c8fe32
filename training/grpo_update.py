"""The updates of a GRPO step from its judged rollouts: what a run does, and what a replay does again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from curation.errors import DataError
from training.checkpoint import TrainingState
from training.distributed import ALONE, Ranks
from training.gradient_sum import GradientSum
from training.grpo_settings import GrpoSettings
from training.grpo_step import GradientStats, Judged, add_gradient, judge
from training.model import Decoder
from training.optimizer import build_adamw, set_rate
from training.rewards import Scored
from training.rollout import Rollout
from training.schedules import rate_factor


class PolicyUpdates:
    """A policy with its optimizer; `updates` counts what was made.

    reference : the model that the KL term holds the policy to, or None
    ranks     : that make the updates together, each with a copy of the policy
    """

    def __init__(
        self, model: Decoder, reference: Decoder | None, settings: GrpoSettings, ranks: Ranks = ALONE
    ) -> None:
        self.model, self.reference, self.settings, self.updates = model, reference, settings, 0
        self.ranks = ranks
        self.gradients = GradientSum(model.parameters()) if ranks.size > 1 else None
        self.optimizer = build_adamw(
            model,
            weight_decay=settings.weight_decay,
            beta1=settings.beta1,
            beta2=settings.beta2,
            epsilon=settings.epsilon,
        )

    def update(
        self, rollouts: Sequence[Rollout], judged: Judged, weights: torch.Tensor, rate: float, *, where: str
    ) -> tuple[GradientStats, float]:
        """Make the updates of one step; the statistics and the gradient norm before the clip of the first."""
        settings = self.settings
        reported: tuple[GradientStats, float] | None = None
        old: dict[int, torch.Tensor] | None = None
        for _ in range(settings.updates):
            stats = add_gradient(
                self.model,
                rollouts,
                judged.advantages.reshape(-1),
                weights,
                settings.objective,
                temperature=settings.rollout.temperature,
                micro_batch=settings.micro_batch_rollouts,
                reference=self.reference,
                old=old,
                autocast=autocast(settings.precision, self.model),
                ranks=self.ranks,
                gradients=self.gradients,
            )
            norm = self._apply(stats.loss, rate, where)
            old = old or stats.old
            reported = reported or (stats, norm)
        assert reported is not None
        return reported

    def _apply(self, loss: float, rate: float, where: str) -> float:
        """Clip the gradient and make one update with it; its norm before the clip."""
        parameters = list(self.model.parameters())
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not math.isfinite(loss) or not math.isfinite(float(norm)):
            raise DataError(
                f"The loss is {loss}, with a gradient of norm {float(norm)}",
                where=where,
                remedy="Lower learning_rate and start anew from the model, or from an earlier one",
            )
        torch.nn.utils.clip_grads_with_norm_(parameters, self.settings.clip, norm)
        set_rate(self.optimizer, rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.updates += 1
        return float(norm)


def judge_step(
    rollouts: Sequence[Rollout], scored: Sequence[Scored], settings: GrpoSettings, limit: int
) -> Judged:
    """The verdicts on a step's rollouts, which stand prompt by prompt; `limit` is the longest completion."""
    groups = (settings.prompts_per_step, settings.replicas)
    return judge(
        torch.tensor([s.reward for s in scored], dtype=torch.float64).view(groups),
        torch.tensor([s.correct for s in scored]).view(groups),
        torch.tensor([len(r.completion_ids) for r in rollouts]).view(groups),
        torch.tensor([r.truncated for r in rollouts]).view(groups),
        limit,
        settings.objective,
    )


def rate_at(step: int, settings: GrpoSettings) -> float:
    """The learning rate of the step after `step` steps."""
    return settings.learning_rate * rate_factor(
        settings.schedule, step, steps=settings.steps, warmup_steps=settings.warmup_steps
    )


def steps_made(state: TrainingState, settings: GrpoSettings) -> int:
    """Steps behind a checkpoint. Adam counts updates; the data position counts prompts, so many to a step."""
    return state.sequences // settings.prompts_per_step


def autocast(precision: str, model: Decoder) -> Callable[[], AbstractContextManager[Any]]:
    """Contexts in which the matrix products of `model` have that precision."""
    if precision == "float32":
        return nullcontext
    kind = model.output_weight.device.type
    return lambda: torch.autocast(kind, torch.bfloat16)
