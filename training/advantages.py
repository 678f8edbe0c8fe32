"""Advantages of groups of rollouts: from rewards to the numbers that weigh the policy gradient.

A *group* is the G rollouts of one prompt. Every function takes tensors of shape [Q, G] (Q prompts), computes
in float64 and is pure. Three things that trainers differ in are arguments here and never implied:

* whether a rollout cut at its token limit counts in the baseline (`counted`), apart from whether its tokens
are
  in the loss (that is the mask of training.grpo_loss);
* whether a standard deviation divides, over what (the group or the whole batch) and which (n - 1 or n);
* what makes a group uninformative: it is decided on the binary outcome, never on a shaped reward, because
  shaping gives a group without one right answer a spurious variance that trains the model to fail briefly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from curation.errors import DataError, RecipeError

Deviation = Literal["sample", "population"]
Scale = Literal["none", "group", "batch"]
GroupFilter = Literal["mixed", "any_correct", "all"]


@dataclass(frozen=True)
class LeadSettings:
    """The constants of GRPO-LEAD (Zhang & Zuo, arXiv 2504.09696) and what its publications leave open.

    alpha        : strength of the length reward exp(-alpha z)
    k1, k2, k3   : w(rho) = k1 + k2 / (1 + exp(k3 (rho - rho0)))
    rho0         : solve rate at which the weight falls fastest
    k2_reading   : "difference": k2 is B - A of the paper, so w runs from k1 + k2 down to k1 (default; the
    only
                   reading under which the published k2 = 1.1 agrees with the paper's A = 0.4, B = 1.5);
                   "ceiling": k2 is B itself, so w runs from k2 down to k1
    wrong_reward : reward of a wrong answer (-1 in the paper, 0 in its base variant)
    deviation    : standard deviation of the lengths of the right answers (the released code has n - 1)
    epsilon      : added to that deviation
    """

    alpha: float = 0.05
    k1: float = 0.4
    k2: float = 1.1
    k3: float = 10.0
    rho0: float = 0.75
    k2_reading: Literal["difference", "ceiling"] = "difference"
    wrong_reward: float = -1.0
    deviation: Deviation = "sample"
    epsilon: float = 1e-6


def group_advantages(
    rewards: Tensor,
    counted: Tensor | None = None,
    *,
    scale: Scale = "none",
    deviation: Deviation = "sample",
    epsilon: float = 1e-4,
) -> Tensor:
    """Reward minus the mean of its group [Q, G], divided by nothing (Dr. GRPO, arXiv 2503.20783) or by a
    deviation.

    counted : bool [Q, G]; rollouts that form mean and deviation (default all). The others get the advantage
    that
              their reward has against that baseline; in a group with nothing counted all advantages are 0.
    scale   : "none", "group" (GRPO, arXiv 2402.03300) or "batch" (one deviation over all counted rewards)

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0]])).tolist()
    [[0.5, -0.5, -0.5, 0.5]]
    """
    rewards, counted = _checked(rewards, counted)
    mean, number = _mean(rewards, counted)
    advantages = torch.where(number > 0, rewards - mean, 0.0)
    if scale == "none":
        return advantages
    if scale == "group":
        return advantages / (_deviation(rewards, counted, deviation) + epsilon)
    flat = _deviation(rewards.reshape(1, -1), counted.reshape(1, -1), deviation)
    return advantages / (flat + epsilon)


def rloo_advantages(rewards: Tensor, counted: Tensor | None = None) -> Tensor:
    """Reward minus the mean of the *other* rollouts of its group (RLOO, arXiv 2402.14740): unbiased.

    Equals G / (G - 1) times the mean-centred reward when all are counted.

    >>> rloo_advantages(torch.tensor([[1.0, 0.0, 0.0]])).tolist()
    [[1.0, -0.5, -0.5]]
    """
    rewards, counted = _checked(rewards, counted)
    kept = torch.where(counted, rewards, 0.0)
    others = counted.sum(1, keepdim=True) - counted.to(rewards.dtype)
    baseline = (kept.sum(1, keepdim=True) - kept) / others.clamp(min=1)
    return torch.where(others > 0, rewards - baseline, 0.0)


def lead_rewards(
    correct: Tensor, lengths: Tensor, settings: LeadSettings | None = None, counted: Tensor | None = None
) -> Tensor:
    """GRPO-LEAD's reward [Q, G]: exp(-alpha z) for a right answer, `wrong_reward` for a wrong one.

    z = (length - mean) / (deviation + epsilon) over the right (and counted) answers of the group; z = 0
    where they are fewer than two or equally long. With G rollouts |z| <= (n - 1) / sqrt(n), so a right
    answer never falls below a wrong one.

    >>> r = lead_rewards(torch.tensor([[1, 1, 1, 0]]).bool(), torch.tensor([[100, 200, 300, 50]]))
    >>> [round(x, 6) for x in r[0].tolist()]
    [1.051271, 1.0, 0.951229, -1.0]
    """
    settings = settings or LeadSettings()
    lengths, counted = _checked(lengths, counted)
    correct = correct.bool()
    right = correct & counted
    mean, _ = _mean(lengths, right)
    deviation = _deviation(lengths, right, settings.deviation)
    z = torch.where(deviation > 0, (lengths - mean) / (deviation + settings.epsilon), 0.0)
    return torch.where(correct, torch.exp(-settings.alpha * z), settings.wrong_reward)


def lead_weight(rho: Tensor | float, settings: LeadSettings | None = None) -> Tensor:
    """GRPO-LEAD's weight of a solve rate: w(rho) = k1 + k2 / (1 + exp(k3 (rho - rho0))); METHODS of
    LFM-1.3B-Math.

    >>> [round(float(lead_weight(r)), 4) for r in (0, 0.25, 0.5, 0.75, 1)]
    [1.4994, 1.4926, 1.4166, 0.95, 0.4834]
    >>> round(float(lead_weight(0.75, LeadSettings(k2_reading="ceiling"))), 4)
    0.75
    """
    s = settings or LeadSettings()
    rho = torch.as_tensor(rho, dtype=torch.float64)
    factor = s.k2 if s.k2_reading == "difference" else s.k2 - s.k1
    return s.k1 + factor * torch.sigmoid(-s.k3 * (rho - s.rho0))


def lead_reweighted(
    advantages: Tensor,
    correct: Tensor,
    settings: LeadSettings | None = None,
    counted: Tensor | None = None,
) -> Tensor:
    """GRPO-LEAD's difficulty reweighting [Q, G]: A w(rho) where A > 0, and A w(1 - rho) where A <= 0.

    rho is the share of right answers among the counted rollouts of the group. The weights are asymmetric, so
    the advantages of a group no longer sum to 0: a group that is all right is pushed down a little, longest
    most.

    >>> advantages, correct = torch.tensor([[1.5, -0.5, -0.5, -0.5]]), torch.tensor([[1, 0, 0, 0]])
    >>> lead_reweighted(advantages, correct).round(decimals=3).tolist()
    [[2.239, -0.475, -0.475, -0.475]]
    """
    advantages, counted = _checked(advantages, counted)
    rho, _ = _mean(correct.to(torch.float64), counted)
    return advantages * torch.where(
        advantages > 0, lead_weight(rho, settings), lead_weight(1 - rho, settings)
    )


def groups_kept(correct: Tensor, counted: Tensor | None = None, keep: GroupFilter = "mixed") -> Tensor:
    """Bool [Q]: the groups that train, decided on the binary outcome of the counted rollouts.

    "mixed"       : at least one right and one wrong (DAPO's dynamic sampling, arXiv 2503.14476)
    "any_correct" : at least one right; all-right groups stay, for a reward that also knows length
    "all"         : every group

    >>> groups_kept(torch.tensor([[1, 1], [1, 0], [0, 0]])).tolist()
    [False, True, False]
    """
    correct = correct.bool()
    counted = torch.ones_like(correct) if counted is None else counted.bool()
    right, wrong = (correct & counted).any(1), (~correct & counted).any(1)
    if keep == "mixed":
        return right & wrong
    if keep == "any_correct":
        return right
    return torch.ones_like(right)


def soft_overlong_punishment(lengths: Tensor, maximum: int, cache: int) -> Tensor:
    """DAPO's soft punishment (Eq. 13), added to the reward: 0 up to maximum - cache, then linearly down to
    -1.

    lengths in tokens

    >>> soft_overlong_punishment(torch.tensor([50, 80, 90, 101]), 100, 20).tolist()
    [0.0, 0.0, -0.5, -1.0]
    """
    if not 0 < cache <= maximum:
        raise RecipeError(
            f"A soft overlong punishment needs 0 < cache <= maximum, not cache {cache} and maximum {maximum}",
            where="soft_overlong_cache",
            remedy="Give a cache of, say, a fifth of the token limit",
        )
    return ((maximum - cache - lengths.to(torch.float64)) / cache).clamp(-1.0, 0.0)


def _checked(values: Tensor, counted: Tensor | None) -> tuple[Tensor, Tensor]:
    """`values` in float64 and the mask of counted entries; refuses what cannot be a table of groups."""
    if values.ndim != 2:
        raise DataError(f"Rewards must be a table of groups [Q, G], not of shape {tuple(values.shape)}")
    if values.shape[1] < 2:
        raise RecipeError(
            "A group of one rollout has no baseline: its advantage is always 0",
            where="replicas",
            remedy="Sample at least 2 rollouts for each prompt",
        )
    if values.is_floating_point() and not bool(torch.isfinite(values).all()):
        group, replica = (int(i) for i in (~torch.isfinite(values)).nonzero()[0])
        raise DataError(
            f"The reward of a rollout is not a finite number: {values[group, replica].item()}",
            where=f"group {group}, replica {replica}",
            remedy="Mend the reward function; it must return a finite number for every text",
        )
    counted = torch.ones(values.shape, dtype=torch.bool) if counted is None else counted.bool()
    return values.to(torch.float64), counted


def _mean(values: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the counted entries of each row [Q, 1] (0 where there are none) and their number [Q, 1].

    Held between the smallest and the largest: the mean of equal values is then exactly that value, where a
    sum divided by its number may be off by one rounding, which a division by a deviation would blow up.
    """
    number = counted.sum(1, keepdim=True)
    mean = torch.where(counted, values, 0.0).sum(1, keepdim=True) / number.clamp(min=1)
    largest = torch.where(counted, values, -math.inf).amax(1, keepdim=True)
    smallest = torch.where(counted, values, math.inf).amin(1, keepdim=True)
    return torch.where(number > 0, torch.minimum(torch.maximum(mean, smallest), largest), 0.0), number


def _deviation(values: Tensor, counted: Tensor, kind: Deviation) -> Tensor:
    """Standard deviation over the counted entries of each row [Q, 1]; exactly 0 when they are all equal."""
    mean, number = _mean(values, counted)
    squares = torch.where(counted, (values - mean) ** 2, 0.0).sum(1, keepdim=True)
    return (squares / (number - int(kind == "sample")).clamp(min=1)).sqrt()
