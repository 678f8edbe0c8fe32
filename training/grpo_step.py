"""One step of GRPO between sampling and the optimizer: rewards, advantages, weights, and the gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from training.advantages import (
    group_advantages,
    groups_kept,
    lead_rewards,
    lead_reweighted,
    rloo_advantages,
    soft_overlong_punishment,
)
from training.distributed import ALONE, Ranks
from training.gradient_sum import GradientSum
from training.grpo_loss import policy_loss, rollout_weights
from training.grpo_settings import ObjectiveSettings
from training.losses import linear_logprobs
from training.model import Decoder
from training.rollout import Rollout


@dataclass(frozen=True)
class Judged:
    """A step's rollouts as tables [Q, G]: rewards before and after shaping, outcomes, lengths, and the
    verdicts.

    trained : whether a rollout's tokens are in the loss;  groups_used : groups with at least one that is
    """

    rewards: Tensor
    shaped: Tensor
    correct: Tensor
    lengths: Tensor
    truncated: Tensor
    advantages: Tensor
    trained: Tensor

    @property
    def groups_used(self) -> int:
        return int(self.trained.any(1).sum())


def judge(
    rewards: Tensor,
    correct: Tensor,
    lengths: Tensor,
    truncated: Tensor,
    limit: int,
    objective: ObjectiveSettings,
) -> Judged:
    """Shape rewards, subtract baselines, decide what trains. Tables [Q, G]; lengths and `limit` in tokens."""
    correct, truncated = correct.bool(), truncated.bool()
    counted = torch.ones_like(truncated)
    if objective.overlong_filter and not objective.overlong_in_baseline:
        counted = ~truncated
    shaped = rewards.to(torch.float64)
    if objective.lead is not None:
        shaped = lead_rewards(correct, lengths, objective.lead, counted)
    if objective.soft_overlong_cache is not None:
        shaped = shaped + soft_overlong_punishment(lengths, limit, objective.soft_overlong_cache)
    if objective.baseline == "rloo":
        advantages = rloo_advantages(shaped, counted)
    else:
        advantages = group_advantages(shaped, counted, scale=objective.scale, deviation=objective.deviation)
    if objective.lead is not None:
        advantages = lead_reweighted(advantages, correct, objective.lead, counted)
    trained = groups_kept(correct, counted, objective.group_filter)[:, None].expand_as(correct)
    if objective.overlong_filter:
        trained = trained & ~truncated
    return Judged(rewards, shaped, correct, lengths, truncated, advantages, trained.clone())


def step_weights(
    rollouts: Sequence[Rollout], judged: Judged, limit: int, objective: ObjectiveSettings
) -> Tensor:
    """The weight [N] of each rollout in the loss, from the whole step; 0 for one that is not trained."""
    tokens = torch.tensor(
        [len(r.completion_ids) if objective.train_forced_tokens else r.forced.count(False) for r in rollouts]
    )
    return rollout_weights(
        torch.where(judged.trained.reshape(-1), tokens, 0),
        objective.normalisation,
        tokens_unfiltered=tokens,
        denominator=objective.denominator,
        constant=limit,
        batch_rollouts=objective.batch_rollouts,
    )


@dataclass
class GradientStats:
    """Sums over the tokens of an update, for its log."""

    loss: float = 0.0
    tokens: int = 0
    clipped: int = 0
    kl: float = 0.0
    entropy: float = 0.0
    gap: float = 0.0  # |log-probability at rollout - in the update|
    old: dict[int, Tensor] = field(default_factory=dict)

    def summed(self, ranks: Ranks) -> GradientStats:
        """The same with the sums over all ranks."""
        if ranks.size == 1:
            return self
        sums = [self.loss, self.tokens, self.clipped, self.kl, self.entropy, self.gap]
        loss, tokens, clipped, kl, entropy, gap = ranks.sum_(torch.tensor(sums, dtype=torch.float64)).tolist()
        return GradientStats(loss, int(tokens), int(clipped), kl, entropy, gap, self.old)


def add_gradient(
    model: Decoder,
    rollouts: Sequence[Rollout],
    advantages: Tensor,
    weights: Tensor,
    objective: ObjectiveSettings,
    *,
    temperature: float,
    micro_batch: int,
    reference: Decoder | None = None,
    old: dict[int, Tensor] | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ranks: Ranks = ALONE,
    gradients: GradientSum | None = None,
) -> GradientStats:
    """Add the gradient of one update to the model's parameters, `micro_batch` rollouts at a time.

    advantages, weights : [N] of the rollouts; those with weight 0 are left out altogether
    old                 : log-probabilities [T_i] by rollout, of the policy that sampled; None when it is this
                          one. The returned `old` are this model's, to hand to the next update of the same
                          step
    autocast            : makes the contexts of the forward passes
    ranks, gradients    : of several ranks, which all give the whole update, each takes every so many-th rollout;
                          gradient and statistics are those of the whole, `old` is of the rank's own rollouts

    Rollouts are sorted by length to save padding; which share a micro-batch does not matter (grpo_loss).
    """
    stats = GradientStats()
    used = [i for i in range(len(rollouts)) if float(weights[i]) != 0]
    used.sort(key=lambda i: (len(rollouts[i].prompt_ids) + len(rollouts[i].completion_ids), i))
    used = used[ranks.rank :: ranks.size]
    for first in range(0, len(used), micro_batch):
        if gradients is not None and first + micro_batch >= len(used):
            gradients.begin()
        rows = used[first : first + micro_batch]
        part = [rollouts[i] for i in rows]
        with autocast():
            logprobs, entropy, mask = completion_logprobs(
                model, part, temperature, objective.train_forced_tokens
            )
        before = None if old is None else _padded([old[i] for i in rows], logprobs.shape[1], logprobs)
        anchored = None
        if reference is not None:
            with torch.no_grad(), autocast():
                anchored = completion_logprobs(reference, part, temperature, objective.train_forced_tokens)[0]
        result = policy_loss(
            logprobs,
            advantages[rows].to(logprobs.device),
            mask,
            weights[rows].to(logprobs.device),
            old_logprobs=before,
            surrogate=objective.chosen_surrogate,
            reference_logprobs=anchored,
            kl_coefficient=objective.kl_coefficient,
        )
        result.loss.backward()
        sampled = _padded([torch.tensor(r.logprobs) for r in part], logprobs.shape[1], logprobs)
        stats.loss += float(result.loss.detach())
        stats.tokens += result.tokens
        stats.clipped += result.clipped
        stats.kl += result.kl
        stats.entropy += float(torch.where(mask, entropy, 0.0).sum())
        stats.gap += float(torch.where(mask, (logprobs.detach() - sampled).abs(), 0.0).sum())
        for at, i in enumerate(rows):
            stats.old[i] = logprobs.detach()[at, : len(rollouts[i].completion_ids)]
    if gradients is not None:
        gradients.finish()
    return stats.summed(ranks)


def completion_logprobs(
    model: Decoder, rollouts: Sequence[Rollout], temperature: float, forced_too: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities (with gradient), entropies and the loss mask of completions, each [N, T] in nats.

    Rows are padded on the right; the vocabulary is only met at the completions' tokens, in chunks.
    """
    device = model.output_weight.device
    width = max(len(r.prompt_ids) + len(r.completion_ids) for r in rollouts)
    longest = max(len(r.completion_ids) for r in rollouts)
    ids = torch.zeros(len(rollouts), width, dtype=torch.int64)
    places = torch.zeros(len(rollouts), longest, dtype=torch.int64)
    labels = torch.full((len(rollouts), longest), -100)
    mask = torch.zeros(len(rollouts), longest, dtype=torch.bool)
    for at, rollout in enumerate(rollouts):
        start, length = len(rollout.prompt_ids), len(rollout.completion_ids)
        ids[at, : start + length] = torch.tensor(rollout.prompt_ids + rollout.completion_ids)
        places[at, :length] = torch.arange(start - 1, start - 1 + length)
        labels[at, :length] = torch.tensor(rollout.completion_ids)
        mask[at, :length] = True if forced_too else ~torch.tensor(rollout.forced)
    ids, places, labels, mask = (x.to(device) for x in (ids, places, labels, mask))
    hidden = model(ids[:, :-1])
    chosen = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1])).flatten(0, 1)
    logprobs, entropy = linear_logprobs(
        chosen,
        model.output_weight,
        labels.flatten(),
        temperature=temperature or 1.0,
        softcap=model.softcap,
    )
    return logprobs.view_as(mask), entropy.detach().view_as(mask), mask


def _padded(rows: Sequence[Tensor], width: int, like: Tensor) -> Tensor:
    padded = torch.zeros(len(rows), width, dtype=like.dtype, device=like.device)
    for at, row in enumerate(rows):
        padded[at, : len(row)] = row.to(like)
    return padded
