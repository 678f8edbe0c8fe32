"""The policy-gradient loss of GRPO and its relatives, normalised over the whole update.

Where trainers go wrong is the denominator: taken from a micro-batch, it makes the gradient depend on how the
update was cut into pieces. Here every normalisation is one number for each rollout, computed once from the
whole update by `rollout_weights`; the loss of any part of the update is then a plain weighted sum, so that
losses and gradients of the parts add up to those of the whole, whatever the micro-batch, the order or the
padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from curation.errors import DataError, RecipeError
from training.surrogates import Surrogate, token_losses

Normalisation = Literal["grpo", "bnpo", "dapo", "dr_grpo", "luspo"]
Denominator = Literal["kept", "all"]


@dataclass(frozen=True)
class PolicyLoss:
    """The loss of some rollouts and what a log needs to know of it; sums, so that parts of an update add up.

    loss    : scalar with gradient; sum over rollouts of weight x sum over tokens
    tokens  : tokens in the loss
    clipped : tokens among them whose gradient the clipping removed
    kl      : sum over tokens of the k3 estimate of KL(policy || reference), nats; 0 without a reference
    """

    loss: Tensor
    tokens: int
    clipped: int
    kl: float


def rollout_weights(
    tokens: Tensor,
    normalisation: Normalisation,
    *,
    tokens_unfiltered: Tensor | None = None,
    denominator: Denominator = "kept",
    constant: int | None = None,
    batch_rollouts: int | None = None,
) -> Tensor:
    """The weight [N] (float64) of each rollout of an update, whose loss is `sum_i weight_i sum_t loss_it`.

    tokens            : int [N], tokens of each rollout in the loss; 0 for one that a filter masks entirely
    tokens_unfiltered : int [N], the same before any filter (default `tokens`)
    denominator       : "kept" leaves filtered rollouts out of the denominators (verl, OpenRLHF, TRL's dapo);
                        "all" keeps them in, so that filtering never enlarges the others' gradient (TRL's grpo
                        and dr_grpo, oat)
    constant          : tokens, L of dr_grpo: the longest completion allowed
    batch_rollouts    : rollouts in each batch of bnpo, consecutive in the given order

    With n the rollouts and T the tokens that the denominator counts:

    * "grpo"    1 / (n |o_i|): mean over rollouts of the mean over tokens (arXiv 2402.03300)
    * "dapo"    1 / T: mean over the tokens of the whole update (arXiv 2503.14476)
    * "bnpo"    1 / (B T_b): mean over B batches of the mean over the tokens of the batch (what trainers
    compute
                that take dapo's denominator from a micro-batch); equals "dapo" with one batch
    * "dr_grpo" 1 / (n L): a constant, so that length does not change a token's weight (arXiv 2503.20783)
    * "luspo"   1 / n: mean over rollouts of the sum over tokens, for ratios of whole sequences, whose loss is
                the same at each token (arXiv 2602.05261)

    >>> [rollout_weights(torch.tensor([1, 4]), name).tolist() for name in ("grpo", "dapo")]
    [[0.5, 0.125], [0.2, 0.2]]
    """
    kept = tokens.to(torch.float64)
    counted = (
        kept if denominator == "kept" or tokens_unfiltered is None else tokens_unfiltered.to(torch.float64)
    )
    rollouts = (counted > 0).sum().clamp(min=1)
    if normalisation == "grpo":
        weights = 1.0 / (rollouts * kept.clamp(min=1))
    elif normalisation == "dapo":
        weights = torch.ones_like(kept) / counted.sum().clamp(min=1)
    elif normalisation == "dr_grpo":
        if constant is None or constant < 1:
            raise RecipeError(
                "The normalisation dr_grpo needs a constant number of tokens",
                where="normalisation",
                remedy="Give the longest completion allowed",
            )
        weights = torch.ones_like(kept) / (rollouts * constant)
    elif normalisation == "luspo":
        weights = torch.ones_like(kept) / rollouts
    elif normalisation == "bnpo":
        weights = _batch_weights(counted, batch_rollouts or len(kept))
    else:
        raise RecipeError(
            f"There is no normalisation {normalisation!r}",
            where="normalisation",
            remedy="Choose grpo, bnpo, dapo, dr_grpo or luspo",
        )
    return torch.where(kept > 0, weights, 0.0)


def policy_loss(
    logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    weights: Tensor,
    *,
    old_logprobs: Tensor | None = None,
    surrogate: Surrogate | None = None,
    reference_logprobs: Tensor | None = None,
    kl_coefficient: float = 0.0,
) -> PolicyLoss:
    """The loss of some rollouts of an update (arXiv 2402.03300 Eq. 3).

    loss_it = surrogate_it + kl_coefficient k3_it, where the surrogate is -ratio A_i clipped or weighed in one of
    the ways of training.surrogates, with ratio = exp(logprob - old_logprob), and
    k3 = exp(reference - logprob) - (reference - logprob) - 1, an unbiased, non-negative estimate of
    KL(policy || reference) (http://joschu.net/blog/kl-approx.html).

    logprobs     : [N, T] nats, with gradient, at the temperature of sampling
    advantages   : [N];  weights : [N] from `rollout_weights`
    mask         : [N, T] bool; False for padding and for forced tokens, which the policy did not choose
    old_logprobs : [N, T] of the policy that sampled; None means this very policy (a single on-policy update):
                   the ratio is then exactly 1 and the gradient is REINFORCE's
    surrogate    : None is without clips

    Masked entries may hold anything, NaN included: they reach neither loss nor gradient.
    """
    if logprobs.shape != mask.shape or advantages.shape != weights.shape or len(advantages) != len(logprobs):
        raise DataError(
            f"Log-probabilities {tuple(logprobs.shape)}, mask {tuple(mask.shape)}, advantages "
            f"{tuple(advantages.shape)} and weights {tuple(weights.shape)} do not belong together"
        )
    mask = mask.bool()
    logprobs = torch.where(mask, logprobs, 0.0)
    old = logprobs.detach() if old_logprobs is None else torch.where(mask, old_logprobs, 0.0)
    token_loss, clipped = token_losses(logprobs, old, advantages, mask, surrogate or Surrogate())
    kl = 0.0
    if reference_logprobs is not None:
        difference = torch.where(mask, reference_logprobs, 0.0) - logprobs
        k3 = torch.where(mask, torch.exp(difference) - difference - 1.0, 0.0)
        token_loss = token_loss + kl_coefficient * k3
        kl = float(k3.detach().sum())
    per_rollout = torch.where(mask, token_loss, 0.0).sum(1)
    loss = (per_rollout * weights.to(logprobs.dtype)).sum()
    return PolicyLoss(loss, int(mask.sum()), int(clipped.sum()), kl)


def _batch_weights(tokens: Tensor, batch_rollouts: int) -> Tensor:
    """1 / (B T_b) for each rollout, over consecutive batches; batches without tokens count in B."""
    batch = torch.arange(len(tokens)) // batch_rollouts
    batches = int(batch[-1]) + 1 if len(tokens) else 0
    totals = torch.zeros(batches, dtype=torch.float64).index_add_(0, batch, tokens)
    return 1.0 / (batches * totals.clamp(min=1))[batch]
